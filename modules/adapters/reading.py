"""Reading adapter files of every layout: OneTrainer's, kohya's, LyCORIS's, PEFT's, ComfyUI's.

Rather than guess what a key means, every spelling of every layer of the live model is worked out,
and the file's keys are looked up among them; what is not found is reported by name.

Shapes: R rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from modules.adapters.change import ROTATION, widths
from modules.adapters.files import ALPHA, DOWN, UP
from modules.adapters.key_map import Fused, KeyMap, Place
from modules.adapters.lora import LoraLayer
from modules.config import ModelFormat
from modules.families.base import Family

SUFFIXES = {
    DOWN: (
        "lora_down.weight",
        "lora_A.weight",
        "lora.down.weight",
        "lora_linear_layer.down.weight",
    ),
    UP: ("lora_up.weight", "lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight"),
    ALPHA: ("alpha", "lora_alpha"),
    "dora_scale": ("dora_scale", "lora_magnitude_vector.weight", "lora_magnitude_vector"),
    **{
        name: (name,)
        for name in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("oft_R.weight", "oft_R.scaled_oft"),
        )
    },
}
"""By the name that backups use: how files end the keys of such a tensor."""

ENDINGS = sorted(
    ((f".{ending}", name) for name, endings in SUFFIXES.items() for ending in endings),
    key=lambda pair: -len(pair[0]),
)
LEADS = ("base_model.model.", "model.diffusion_model.", "lycoris_")
"""What some writers put before a key; without it the rest is a key of another layout."""


Index = Mapping[str, list[tuple[str, Place]]]
"""By each spelling of a layer: the layers that it is, `part.path`, and where in the tensor."""


@dataclass
class Adapter:
    """What an adapter file holds, under the names that backups use."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """`part.path.suffix`: the tensor."""
    unplaced: list[str] = field(default_factory=list)
    """Keys that belong to no layer of the model, as the file spells them."""

    @property
    def layers(self) -> set[str]:
        """The layers, `part.path`, that it changes."""
        return {split_key(key)[0] for key in self.tensors}


def read_adapter(
    tensors: Mapping[str, Tensor], family: Family, networks: Mapping[str, nn.Module]
) -> Adapter:
    """Find the layer of each tensor of an adapter file.

    A missing alpha is the rank. A layer that the file holds as a part of a whole gets its share.
    What it holds of layers that have no say is left out.

    Args:
        tensors: the file.
        family: the architecture of the model.
        networks: its live networks, by pipeline name.
    """
    found = read_with(tensors, spellings(family, _paths(networks)))
    for key in list(found.tensors):
        part, _, path = key.partition(".")
        if not family.learns(part, path):  # other tools write them all the same
            del found.tensors[key]
    return found


def read_with(tensors: Mapping[str, Tensor], index: Index) -> Adapter:
    """Find the layer of each tensor of an adapter file among known spellings."""
    adapter = Adapter()
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    spelled: dict[str, list[str]] = defaultdict(list)
    for key, tensor in tensors.items():
        if "._aux." in key or key.endswith("_aux"):
            continue  # notes of the tool that wrote the file
        stem, suffix = split_key(key.replace(".default", ""))
        for lead in LEADS:
            if stem not in index and stem.startswith(lead):
                stem = stem.removeprefix(lead)
        if suffix and stem in index:
            outputs = suffix == "dora_scale" and "magnitude" in key  # one a row, of any shape
            groups[stem][suffix] = tensor.reshape(-1, 1) if outputs else tensor
            spelled[stem].append(key)
        else:
            adapter.unplaced.append(key)
    for stem, found in groups.items():
        for name, place in index[stem]:
            own = _own(found, place)
            if own is None:
                adapter.unplaced += spelled[stem]
                break
            adapter.tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in own.items()}
    return adapter


@torch.no_grad()
def verify(
    tensors: Mapping[str, Tensor],
    layers: Iterable[LoraLayer],
    family: Family,
    networks: Mapping[str, nn.Module],
) -> None:
    """Read an adapter back before it is written, so that no file leaves that nobody can use.

    Args:
        tensors: what shall be written.
        layers: the live adapter that it was made from.
        family: the architecture.
        networks: its live networks.

    Raises:
        ValueError: if a number is not finite, a key belongs nowhere, or a layer would come back
            with another weight change.
    """
    check_read_back(tensors, layers, family, spellings(family, _paths(networks)))


@torch.no_grad()
def check_read_back(
    tensors: Mapping[str, Tensor], layers: Iterable[LoraLayer], family: Family, index: Index
) -> None:
    """What `verify` does, by known spellings instead of live networks."""
    if wrong := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{wrong[0]} holds numbers that are not finite ({len(wrong)} such keys); nothing was "
            f"written. Lower the learning rate, and go on from a backup."
        )
    found = read_with(tensors, index)
    if found.unplaced:
        raise ValueError(f"{found.unplaced[0]} names no layer of {family.architecture}.")
    for layer in layers:
        name = f"{layer.part}.{family.adapter_name(layer.part, layer.path)}"
        if f"{name}.{UP}" not in found.tensors:
            raise ValueError(f"{name} would be missing from the file.")
        down, up = found.tensors[f"{name}.{DOWN}"], found.tensors[f"{name}.{UP}"]
        scale = float(found.tensors[f"{name}.{ALPHA}"]) / len(down)
        probe = torch.linspace(-1, 1, layer.down[0].numel(), device=layer.down.device)
        own = layer.up.flatten(1) @ (layer.down.flatten(1) @ probe) * layer.alpha / layer.rank
        back = up.flatten(1) @ (down.flatten(1) @ probe) * scale
        if not torch.allclose(back, own, rtol=1e-3, atol=1e-5):
            raise ValueError(f"{name} would come back with another weight change.")


def verify_found(
    tensors: Mapping[str, Tensor],
    names: Iterable[str],
    family: Family,
    networks: Mapping[str, nn.Module],
) -> None:
    """Read an adapter of any kind back before it is written: each layer has its place.

    Args:
        tensors: what shall be written.
        names: the layers that it changes, `part.path`.
        family: the architecture.
        networks: its live networks.

    Raises:
        ValueError: if a key belongs nowhere, or a layer is missing.
    """
    check_found(tensors, names, spellings(family, _paths(networks)))


def check_found(tensors: Mapping[str, Tensor], names: Iterable[str], index: Index) -> None:
    """What `verify_found` does, by known spellings instead of live networks."""
    back = read_with(tensors, index)
    if odd := [*back.unplaced, *sorted(set(names) - back.layers)]:
        raise ValueError(f"{odd[0]} would not be found in the file again; nothing was written.")


def split_key(key: str) -> tuple[str, str]:
    """A key's layer and the canonical name of its tensor; ("", "") for an unknown ending."""
    for ending, name in ENDINGS:
        if key.endswith(ending):
            return key[: -len(ending)], name
    return "", ""


def spellings(family: Family, paths: Mapping[str, Iterable[str]]) -> Index:
    """Every spelling of every layer.

    Args:
        family: the architecture.
        paths: by part, the module paths of its layers.
    """
    index: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for part, of_part in paths.items():
        maps = [key_map for key_map in _key_maps(family) if part in key_map.prefixes]
        for path in of_part:
            name = family.adapter_name(part, path)
            for key_map in maps:
                for spelling in {name, path}:
                    place = key_map.place(part, spelling)
                    entry = (f"{part}.{name}", place)
                    if entry not in index[place.name]:
                        index[place.name].append(entry)
    return index


def _paths(networks: Mapping[str, nn.Module]) -> dict[str, Iterable[str]]:
    return {part: layer_paths(network) for part, network in networks.items()}


def layer_paths(network: nn.Module) -> Iterator[str]:
    """Paths of the layers that can carry an adapter; what an adapter adds is not among them."""
    adapted = ""
    for path, layer in network.named_modules():
        if adapted and path.startswith(adapted):
            continue
        if hasattr(layer, "base_layer"):
            adapted = f"{path}."
            yield path
        elif isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d):
            yield path


def _key_maps(family: Family) -> Iterator[KeyMap]:
    """The family's formats, and what other tools make of the same names."""
    yield from family.lora_formats.values()
    natives = {key_map.native for key_map in family.lora_formats.values()}
    for native in natives | {None, *family.read_also}:
        for prefix in ("lora_unet_", "lora_transformer_", "lora_prior_unet_", "lycoris_"):
            yield KeyMap({family.denoiser: prefix}, native, dotted=False)
        for prefix in ("", "diffusion_model.", f"{family.denoiser}."):
            yield KeyMap({family.denoiser: prefix}, native)
    comfy = family.lora_formats[ModelFormat.COMFY_LORA]
    for number, encoder in enumerate(family.text_encoders, 1):
        prefixes = [f"lora_te{number}_", *(["lora_te_"] if len(family.text_encoders) == 1 else [])]
        if "t5xxl" in comfy.prefixes.get(encoder, ""):  # kohya's number of a T5 everywhere
            prefixes.append("lora_te3_")
        for prefix in prefixes:
            yield KeyMap({encoder: prefix}, dotted=False)
        if encoder in comfy.native_parts:  # which transformers names otherwise since its 4.52
            yield KeyMap({encoder: comfy.prefixes[encoder]})
            yield replace(comfy, prefixes={encoder: f"{encoder}."})
            for prefix in prefixes:
                yield replace(comfy, prefixes={encoder: prefix}, dotted=False)


def _own(found: Mapping[str, Tensor], place: Place) -> dict[str, Tensor] | None:
    """A layer's share of what the file holds; None if there is no telling."""
    if not (DOWN in found and UP in found):
        return dict(found) if _stands_alone(found, place) else None
    down, up = found[DOWN], found[UP]
    alpha = found.get(ALPHA, torch.tensor(float(down.shape[0])))
    rest = {key: tensor for key, tensor in found.items() if key not in (DOWN, UP, ALPHA)}
    if place.swaps(up.shape[0], down.shape[1]):
        up = torch.cat(up.chunk(2)[::-1])
        for key, lengths in rest.items():  # of DoRA; those of the inputs stay in their order
            if len(lengths) == len(up):
                rest[key] = torch.cat(lengths.chunk(2)[::-1])
    if place.fused:
        if rest or up.shape[0] % place.fused.total:
            return None
        down, up, alpha = _unfuse(down, up, alpha, place.fused, place.member)
    return {DOWN: down, UP: up, ALPHA: alpha.reshape(()).float(), **rest}


def _stands_alone(found: Mapping[str, Tensor], place: Place) -> bool:
    """Whether a LoHa, LoKr or OFT changes one layer, its outputs in the order of that layer."""
    if place.fused or not found.keys() - {ALPHA}:
        return False
    if ROTATION in found:  # turns the inputs alone
        return True
    try:
        return not place.swaps(*widths(found))
    except KeyError:
        return not (place.swapped or place.swapped_if_double)


def _unfuse(
    down: Tensor, up: Tensor, alpha: Tensor, group: Fused, own_member: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The adapter of one layer of a whole: its own block, or the whole's rank where there is none.

    A file that holds separately trained layers is block diagonal, so that each keeps its own rank;
    in a file that was trained as one, all share the first matrix.
    """
    count = len(group.members)
    widths = [group.width(member) for member in range(count)]
    unit = up.shape[0] // group.total
    blocks = torch.split(up, [unit * width for width in widths])
    rank = down.shape[0]
    own = rank // count
    diagonal = rank % count == 0 and all(
        not block[:, : own * member].any() and not block[:, own * (member + 1) :].any()
        for member, block in enumerate(blocks)
    )
    if not diagonal:
        return down, blocks[own_member], alpha
    at = slice(own * own_member, own * (own_member + 1))
    return down[at], blocks[own_member][:, at], alpha / count
