"""Adapter files: the key layouts that other tools read, and the one that backups use.

Shapes: R rank, in and out the widths of a layer.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from modules.adapters.key_map import Fused, KeyMap, Place
from modules.adapters.lora import LoraLayer
from modules.atomic import atomic_file
from modules.config import ConfigError, ModelFormat, Problem
from modules.families.base import Family

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
PEFT = {DOWN: "lora_A.weight", UP: "lora_B.weight"}
"""What PEFT and every dotted format call the two matrices."""


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
    """Write a safetensors file atomically, its tensors on the CPU in `dtype`."""
    from safetensors.torch import save_file

    ready = {
        key: tensor.detach().to("cpu", dtype, copy=True).contiguous()
        for key, tensor in tensors.items()
    }
    with atomic_file(path) as temporary:
        save_file(ready, temporary, {"format": "pt", **_model_spec(ready), **(metadata or {})})


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
    zeros. Each scale alpha / R is kept: where they differ they go into the second matrix.
    """
    by_member = {place.member: layer for place, layer in members}
    first = min(by_member)
    unit = by_member[first].up.shape[0] // group.width(first)
    scales = {layer.alpha / layer.rank for layer in by_member.values()}
    ranks = {member: layer.rank for member, layer in by_member.items()}
    total = sum(ranks.values())
    like = by_member[first].up
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


def _model_spec(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The hash and date of the model metadata standard, https://github.com/Stability-AI/ModelSpec."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].view(-1).view(torch.uint8).numpy().tobytes())
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.date": date.today().isoformat(),
        "modelspec.hash_sha256": f"0x{digest.hexdigest()}",
    }
