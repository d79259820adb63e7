"""Where the files of a model keep the weight of each layer, found without loading the model.

A model is a diffusers folder, a single file of the original layout, or a file of its denoiser alone
under diffusers' or the original names.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modules.adapters.files import AdapterError
from modules.adapters.key_map import Native, Place
from modules.adapters.recognise import (
    WIDTHS,
    distinct_families,
    numbers_in,
    possible_layers,
)
from modules.config import ModelFormat, ModelType
from modules.families import all_families, family_for
from modules.families.base import Family
from modules.families.folders import read_index
from modules.families.saving import open_clip_name
from modules.tensor_files import Shape, open_tensors

BARE = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")
"""What may stand before the keys of a denoiser in a file of its own."""


@dataclass(frozen=True)
class StoredModel:
    """The files of a model, and the layers in them."""

    family: Family
    path: Path
    layers: Mapping[Path, Mapping[str, list[tuple[str, Place]]]]
    """By file and key: the layers `part.path` that the weight holds, and where in it."""

    def homes(self) -> dict[str, tuple[Path, str, Place]]:
        """By layer, `part.path`: its file, key, and place in the weight."""
        return {
            name: (file, key, place)
            for file, of_file in self.layers.items()
            for key, held in of_file.items()
            for name, place in held
        }


def find_model(path: Path, model_type: ModelType | None = None) -> StoredModel:
    """Look into a model's files.

    Args:
        path: a folder or a file.
        model_type: of the model, where it is known.

    Raises:
        AdapterError: if it is no model, of no known architecture, or of several.
        OSError: if it is missing.
        ValueError: if a file is damaged.
    """
    if path.is_dir():
        return _folder(path, model_type)
    if path.suffix != ".safetensors":
        raise AdapterError(
            f"{path} is neither a diffusers folder nor a .safetensors file. Convert it first."
        )
    return _file(path, model_type)


def own_part(weight: Tensor, place: Place) -> Tensor:
    """A layer's weight as diffusers has it, out of the weight that a file holds."""
    if place.transposed:
        return weight.T
    rows = weight[_rows(place, weight.shape[0])]
    return torch.cat(rows.chunk(2)[::-1]) if place.swaps(*rows.shape[:2]) else rows


def put_part(weight: Tensor, place: Place, own: Tensor) -> None:
    """Write a layer's weight, as diffusers has it, into the weight that a file holds."""
    if place.transposed:
        weight.copy_(own.T)
        return
    if place.swaps(*own.shape[:2]):
        own = torch.cat(own.chunk(2)[::-1])
    weight[_rows(place, weight.shape[0])] = own


def _rows(place: Place, height: int) -> slice:
    if place.fused is None:
        return slice(0, height)
    unit = height // place.fused.total
    start = unit * sum(place.fused.width(member) for member in range(place.member))
    return slice(start, start + unit * place.fused.width(place.member))


def _folder(path: Path, model_type: ModelType | None) -> StoredModel:
    index = read_index(path)
    if index is None:
        raise AdapterError(f"{path} has no model_index.json, so it is no diffusers folder.")
    kind = index.get("_class_name", "")
    families = [each for each in all_families() if each.pipeline == kind]
    if model_type is not None:
        families = [each for each in families if model_type in each.model_types]
    if not families:
        wanted = f", not {model_type.value}" if model_type else ""
        raise AdapterError(f"{path} holds a {kind}, which is no known architecture{wanted}.")
    settings = path / "unet" / "config.json"
    if len(families) > 1 and settings.is_file():
        width = json.loads(settings.read_text(encoding="utf-8")).get("cross_attention_dim")
        name = WIDTHS.get(width, "")
        families = [each for each in families if each.architecture.startswith(name)]
    family = families[0]
    layers: dict[Path, dict[str, list[tuple[str, Place]]]] = {}
    for part in (family.denoiser, *family.text_encoders):
        for file in sorted((path / part).glob("*.safetensors")):
            with open_tensors(file) as opened:
                layers[file] = dict(_plain_names(family, part, opened.shapes))
    return StoredModel(family, path, layers)


def _plain_names(
    family: Family, part: str, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, list[tuple[str, Place]]]]:
    for key, shape in shapes.items():
        if key.endswith(".weight") and len(shape.sizes) > 1:
            path = key.removesuffix(".weight")
            yield key, [(f"{part}.{family.adapter_name(part, path)}", Place(path))]


def _file(path: Path, model_type: ModelType | None) -> StoredModel:
    with open_tensors(path) as opened:
        shapes, metadata = opened.shapes, opened.metadata
    named = metadata.get("modelspec.architecture", "")
    families: Iterable[Family] = distinct_families()
    if model_type is not None:
        families = [family_for(model_type)]
    else:
        families = [each for each in families if each.architecture == named] or families
    numbers = numbers_in(shapes)
    found = [
        StoredModel(family, path, {path: _single(family, shapes, numbers)}) for family in families
    ]
    largest = max(len(each.layers[path]) for each in found)
    best = [each for each in found if len(each.layers[path]) == largest]
    if not largest:
        raise AdapterError(f"{path} holds no model of a known architecture.")
    if len(best) > 1:
        wide = [s.sizes[1] for k, s in shapes.items() if k.endswith("attn2.to_k.weight")]
        name = WIDTHS.get(wide[0], "") if wide else ""
        best = [each for each in best if each.family.architecture.startswith(name)]
    if len(best) != 1:
        names = ", ".join(each.family.model_types[0].value for each in best)
        raise AdapterError(f"{path} fits several architectures: {names}. Say which it is.")
    return best[0]


def _single(
    family: Family, shapes: Mapping[str, Shape], numbers: Sequence[int]
) -> dict[str, list[tuple[str, Place]]]:
    """The layers of a file, under whichever of the family's names has most of its keys."""
    paths = possible_layers(family, numbers)
    original = family.lora_formats[ModelFormat.ORIGINAL_LORA]
    native = original.native
    ways = [{part: (*held, native) for part, held in family.single_file.items()}]
    for prefix in {original.prefixes[family.denoiser]: None, **dict.fromkeys(BARE)}:
        ways += [
            {family.denoiser: (prefix, "denoiser", each)}
            for each in (native, family.file_layout, family.comfy_layout, None)
        ]
    found = [_held(family, shapes, paths, way) for way in ways]
    return max(found, key=len)


def _held(
    family: Family,
    shapes: Mapping[str, Shape],
    paths: Mapping[str, list[str]],
    way: Mapping[str, tuple[str, str, Native | None]],
) -> dict[str, list[tuple[str, Place]]]:
    held: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for part, (prefix, layout, native) in way.items():
        for path in paths.get(part, ()):
            name = family.adapter_name(part, path)
            key, place = _stored(name if layout != "denoiser" else path, layout, native)
            if f"{prefix}{key}" in shapes and len(shapes[f"{prefix}{key}"].sizes) > 1:
                held[f"{prefix}{key}"].append((f"{part}.{name}", place))
    return dict(held)


def _stored(path: str, layout: str, native: Native | None) -> tuple[str, Place]:
    """Key and place of a layer's weight in a layout."""
    if layout == "denoiser":
        if native is None:
            return f"{path}.weight", Place(path)
        place = native.place(path)
        return native.key(place.name, "weight"), place
    if layout == "open_clip":
        return open_clip_name(path)
    return f"{path}.weight", Place(path)
