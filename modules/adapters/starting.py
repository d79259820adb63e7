"""A fresh adapter takes up the numbers of a file, to learn on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from modules.adapters.change import scale_of
from modules.adapters.files import ALPHA, DOWN, UP
from modules.adapters.reading import Adapter
from modules.adapters.writing import by_layer
from modules.config import ConfigError
from modules.config.problems import error

FIRST = (UP, "hada_w1_a", "lokr_w1", "lokr_w1_a")
"""The factor that takes what two scales differ by, as far as a kind has one."""


class Live(NamedTuple):
    """The adapter of a layer that a run trains."""

    tensors: Mapping[str, Tensor]
    """By the names that backups use, not copied."""
    scale: float
    """Factor of the weight change: alpha / rank."""


@torch.no_grad()
def go_on_from(file: str, found: Adapter, live: Mapping[str, Live]) -> None:
    """Give a run's adapter the weight change of a file's; layers that it lacks stay as they are.

    Args:
        file: its name, for messages.
        found: what it holds.
        live: what the run trains, by layer, `part.path`.

    Raises:
        ConfigError: if it changes layers that the run does not train, or is of another kind or
            size.
    """
    if odd := [*found.unplaced, *sorted(found.layers - live.keys())]:
        message = f"{file} holds {odd[0]}, which this run does not train ({len(odd)} such)."
        raise error("lora_model_name", message, "Widen layer_filter, or train that part too.")
    for path, held in by_layer(found.tensors).items():
        theirs = {name: tensor for name, tensor in held.items() if name != ALPHA}
        own = live[path]
        _check(file, path, theirs, own.tensors)
        ratio = scale_of(held) / own.scale
        first = next((name for name in FIRST if name in theirs), None)
        for name, tensor in theirs.items():
            whole = tensor.float() * ratio if name == first else tensor
            own.tensors[name].copy_(whole.reshape(own.tensors[name].shape))


def _check(file: str, path: str, theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if theirs.keys() != own.keys():
        message = f"{file} has {_names(theirs)} for {path}, this run {_names(own)}."
        raise _other(message)
    if DOWN in theirs and len(theirs[DOWN]) != len(own[DOWN]):
        rank = len(theirs[DOWN])
        message = f"{file} is of rank {rank}, lora_rank is {len(own[DOWN])}."
        raise error("lora_model_name", message, f"Set lora_rank to {rank}.")
    for name, tensor in theirs.items():
        if _size(tensor) != _size(own[name]):
            message = (
                f"{file} has {name} of {tuple(tensor.shape)} for {path}, this run of "
                f"{tuple(own[name].shape)}."
            )
            raise _other(message)


def _size(tensor: Tensor) -> tuple[int, ...]:
    """The shape without what tools write otherwise: a kernel of one pixel."""
    shape = tuple(tensor.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _names(tensors: Mapping[str, Tensor]) -> str:
    return " and ".join(sorted(name.removesuffix(".weight") for name in tensors))


def _other(message: str) -> ConfigError:
    fix = "Set peft_type, and what belongs to it, as when the file was made."
    return error("lora_model_name", message, fix)
