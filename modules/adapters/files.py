"""Adapter files: the key layouts that other tools read, and the one that backups use.

Shapes: R rank, in and out the widths of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from modules.adapters.key_map import Fused, KeyMap, Place
from modules.adapters.lora import LoraLayer
from modules.config import ConfigError, ModelFormat, Problem
from modules.families.base import Family
from modules.tensor_files import MODEL_SPEC, Shape, finite, write_tensors

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
PEFT = {DOWN: "lora_A.weight", UP: "lora_B.weight"}
"""What PEFT and every dotted format call the two matrices."""


class AdapterError(ValueError):
    """An adapter file that does not fit the model, or is none; the text says what it is."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        AdapterError: if it is gone, or is something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise AdapterError(f"{path} does not exist. Check the path of the LoRA.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is no safetensors file ({error}).") from error


def to_canonical(layers: Iterable[LoraLayer], family: Family) -> dict[str, Tensor]:
    """`part.path.lora_down.weight`, `.lora_up.weight`, `.alpha`: what backups hold."""
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        name = f"{layer.part}.{family.adapter_name(layer.part, layer.path)}"
        tensors[f"{name}.{DOWN}"] = layer.down
        tensors[f"{name}.{UP}"] = layer.up
        tensors[f"{name}.{ALPHA}"] = torch.tensor(layer.alpha)
    return tensors


def to_format(
    layers: Iterable[LoraLayer], family: Family, model_format: ModelFormat
) -> dict[str, Tensor]:
    """The adapter as the readers of a format expect it.

    Layers that the original code of a model holds as one (q, k and v) become one adapter of the
    summed rank, whose weight change is exactly theirs.

    Raises:
        ConfigError: if the family does not have the format, or the format has no place for a part
            that trained.
    """
    if model_format not in family.lora_formats:
        known = ", ".join(each.value for each in family.lora_formats)
        raise _format_error(
            f"output_model_format is {model_format.value}, which {family.architecture} does not "
            f"have as an adapter.",
            f"Use one of {known}.",
        )
    key_map = family.lora_formats[model_format]
    wholes: dict[str, list[tuple[Place, LoraLayer]]] = defaultdict(list)
    for layer in layers:
        if layer.part not in key_map.prefixes:
            raise _format_error(
                f"{model_format.value} has no place for {layer.part}, which trained.",
                f"Use DIFFUSERS_LORA, or turn {layer.part}.train off.",
            )
        place = key_map.place(layer.part, family.adapter_name(layer.part, layer.path))
        wholes[place.name].append((place, layer))
    tensors: dict[str, Tensor] = {}
    for name, members in wholes.items():
        place, layer = members[0]
        down, up, alpha = layer.down, layer.up, layer.alpha
        if place.fused:
            down, up, alpha = _fuse(place.fused, members)
        if place.swaps(up.shape[0], down.shape[1]):
            up = torch.cat(up.chunk(2)[::-1])
        tensors |= _entries(key_map, name, down, up, alpha)
    return tensors


def load_canonical(
    tensors: Mapping[str, Tensor], layers: Iterable[LoraLayer], family: Family
) -> None:
    """Copy a backup's adapter into the live one.

    Raises:
        ValueError: if a layer is missing, left over, or of another shape; nothing is copied then.
    """
    live = to_canonical(layers, family)
    if odd := sorted(live.keys() ^ tensors.keys()):
        side = "lacks" if odd[0] in live else "has a layer that this run lacks:"
        raise ValueError(
            f"the backup {side} {odd[0]} ({len(odd)} such keys); were the layers other?"
        )
    for key, tensor in live.items():
        found, expected = tuple(tensors[key].shape), tuple(tensor.shape)
        if found != expected:
            raise ValueError(f"{key} is {found} in the backup, {expected} in this run")
        if key.endswith(".alpha") and not torch.equal(tensor, tensors[key].to(tensor)):
            raise ValueError(f"{key} is {tensors[key]:g} in the backup, {tensor:g} in this run")
    with torch.no_grad():
        for key, tensor in live.items():
            tensor.copy_(tensors[key])


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file atomically, its numbers in `dtype`, whole ones as they are.

    Raises:
        ValueError: if a number is not finite, or not in that type; nothing is written then.
    """
    shapes = {key: Shape.of(tensor, dtype) for key, tensor in tensors.items()}
    notes = {"format": "pt", **MODEL_SPEC, **(metadata or {})}
    write_tensors(path, shapes, lambda key: finite(tensors[key], shapes[key].dtype, key), notes)


def _entries(
    key_map: KeyMap, name: str, down: Tensor, up: Tensor, alpha: float
) -> dict[str, Tensor]:
    """The tensors of one layer under the format's names.

    DIFFUSERS_LORA has no place for alpha, so alpha / R is folded into the second matrix: every
    reader then gets the same weight change, whatever it assumes.
    """
    if key_map.folds_alpha:
        up = up * (alpha / down.shape[0])
        return {f"{name}.{PEFT[DOWN]}": down, f"{name}.{PEFT[UP]}": up}
    names = PEFT if key_map.peft else {DOWN: DOWN, UP: UP}
    return {
        f"{name}.{names[DOWN]}": down,
        f"{name}.{names[UP]}": up,
        f"{name}.{ALPHA}": torch.tensor(alpha),
    }


def _fuse(group: Fused, members: list[tuple[Place, LoraLayer]]) -> tuple[Tensor, Tensor, float]:
    """One adapter for layers that share their input: first matrices stacked, second ones apart.

    The second matrix is block diagonal; a layer of the group that has no adapter is a block of
    zeros. Each scale alpha / R is kept: where they differ they go into the second matrix. Layers
    that were trained as one, and so have the same first matrix, become one of that rank again.
    """
    by_member = {place.member: layer for place, layer in members}
    first = min(by_member)
    unit = by_member[first].up.shape[0] // group.width(first)
    scales = {layer.alpha / layer.rank for layer in by_member.values()}
    ranks = {member: layer.rank for member, layer in by_member.items()}
    total = sum(ranks.values())
    like = by_member[first].up
    same = all(
        layer.alpha == by_member[first].alpha and torch.equal(layer.down, by_member[first].down)
        for layer in by_member.values()
    )
    if same and len(by_member) == len(group.members):
        ups = torch.cat([by_member[member].up for member in sorted(by_member)])
        return by_member[first].down, ups, by_member[first].alpha
    rows, column = [], 0
    for member in range(len(group.members)):
        height = unit * group.width(member)
        block = like.new_zeros(height, total, *like.shape[2:])
        if layer := by_member.get(member):
            factor = 1.0 if len(scales) == 1 else layer.alpha / layer.rank
            block[:, column : column + layer.rank] = layer.up * factor
            column += layer.rank
        rows.append(block)
    down = torch.cat([by_member[member].down for member in sorted(by_member)])
    alpha = total * (scales.pop() if len(scales) == 1 else 1.0)
    return down, torch.cat(rows), alpha


def _format_error(message: str, fix: str) -> ConfigError:
    return ConfigError([Problem("output_model_format", "error", message, fix)])
