"""An adapter of any kind, by the names that backups use, as a file of any format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from modules.adapters.change import kronecker_rank, per_input
from modules.adapters.files import (
    ALPHA,
    DOWN,
    UP,
    AdapterError,
    to_format,
)
from modules.adapters.kinds import MAGNITUDE, AdapterLayer, in_format
from modules.adapters.lora import LoraLayer
from modules.adapters.reading import Index, check_found, check_read_back, split_key
from modules.config import ModelFormat
from modules.families.base import Family


def by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`part.path`: the tensors of that layer, by the names that backups use."""
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, suffix = split_key(key)
        layers[name][suffix] = tensor
    return dict(layers)


def in_any_format(
    tensors: Mapping[str, Tensor], family: Family, index: Index, model_format: ModelFormat
) -> dict[str, Tensor]:
    """The tensors of a file of that format, read back to be sure.

    Args:
        tensors: `part.path.suffix`, as backups name them.
        family: the architecture.
        index: every spelling of its layers.
        model_format: of the file.

    Raises:
        ConfigError: if the family lacks the format, or the format has no place for a layer.
        AdapterError: if the format's readers would not see what the adapter does.
        ValueError: if a layer would come back otherwise.
    """
    plain: list[LoraLayer] = []
    others: list[AdapterLayer] = []
    for name, of in by_layer(tensors).items():
        part, _, path = name.partition(".")
        floats = {suffix: tensor.float() for suffix, tensor in of.items()}
        if floats.keys() == {DOWN, UP, ALPHA}:
            down, up = floats[DOWN], floats[UP]
            plain.append(LoraLayer(part, path, down, up, float(floats[ALPHA])))
        else:
            others.append(_other(part, path, floats, model_format))
    written = to_format(plain, family, model_format)
    check_read_back(written, plain, family, index)
    if others:
        rest = in_format(others, family, model_format)
        check_found(rest, (f"{each.part}.{each.path}" for each in others), index)
        written |= rest
    return written


def stored_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The type of most of a file's numbers."""
    counts: dict[torch.dtype, int] = defaultdict(int)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def _other(
    part: str, path: str, tensors: dict[str, Tensor], model_format: ModelFormat
) -> AdapterLayer:
    """The layer of a DoRA, LoHa, LoKr or OFT."""
    alpha = float(tensors.pop(ALPHA)) if ALPHA in tensors else None
    rank = kronecker_rank(tensors)
    if DOWN in tensors:
        rank = tensors[DOWN].shape[0]
    magnitude = tensors.get(MAGNITUDE)
    if magnitude is not None:
        if per_input(magnitude) and model_format is ModelFormat.DIFFUSERS_LORA:
            raise AdapterError(
                f"{part}.{path} is a DoRA with lengths by input, [1, in], which "
                f"{model_format.value} does not carry. Merge it into its model instead."
            )
        if not per_input(magnitude):
            tensors[MAGNITUDE] = magnitude.reshape(-1, 1)
    scale = alpha / rank if alpha is not None and rank else 1.0
    return AdapterLayer(part, path, tensors, alpha, scale)
