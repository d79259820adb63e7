"""What makes steps faster and teaches the same: compiled layers, attention kernels, TF32.

All of it acts for the time of a run only: a notebook's own settings of torch come back after it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from modules.config import AttentionMechanism, ConfigError, DataType, Problem, TrainConfig
from modules.training.placement import LayerOffload

FIRST = {
    AttentionMechanism.FLASH: SDPBackend.FLASH_ATTENTION,
    AttentionMechanism.CUDNN: SDPBackend.CUDNN_ATTENTION,
}
"""The kernel that torch tries first. A layer that it cannot do, such as one with a mask in flash
attention, takes the next: the result is the same."""


def compile_layers(network: nn.Module, device: torch.device) -> str:
    """Compile the repeated layers of a network, each kind of them once.

    Returns:
        Why it was left as it is; empty if it was compiled.
    """
    if why := _no_compiler(device):
        return why
    blocks: Any = network
    if getattr(network, "_repeated_blocks", None):
        blocks.compile_repeated_blocks()
        return ""
    layers = LayerOffload.layers_of(network)
    for layer in layers:
        layer.compile()
    return "" if layers else f"{type(network).__name__} has no repeated layers"


def _no_compiler(device: torch.device) -> str:
    """Why nothing can be compiled for a device; empty if it can be. Compiles a trifle to see."""

    def trifle(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sin() + 1

    try:
        torch.compile(trifle)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - whatever it is, a run without a compiler goes on
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    finally:
        torch._dynamo.reset()
    return ""


@contextmanager
def kernels(config: TrainConfig) -> Iterator[None]:
    """Inside the block, torch multiplies and attends as the config says.

    Raises:
        ConfigError: if this torch cannot be told which attention kernel to prefer.
    """
    with ExitStack() as stack:
        if config.train_dtype in (DataType.FLOAT_32, DataType.TFLOAT_32):
            stack.enter_context(_tensor_float(config.train_dtype is DataType.TFLOAT_32))
        if config.attention_mechanism in FIRST:
            stack.enter_context(_attention(config.attention_mechanism))
        yield


@contextmanager
def _tensor_float(on: bool) -> Iterator[None]:
    """Float32 products of a GPU from 19 bits, or from all 32: torch itself mixes the two."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = on
    try:
        yield
    finally:
        for place, own in zip(places, before, strict=True):
            place.allow_tf32 = own


def _attention(mechanism: AttentionMechanism) -> Any:
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        message = (
            f"attention_mechanism is {mechanism.value}, but torch {torch.__version__} chooses its "
            "attention kernel itself."
        )
        fix = "Update torch to 2.6, or use SDP."
        raise ConfigError([Problem("attention_mechanism", "error", message, fix)])
    usual = [
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    first = FIRST[mechanism]
    return sdpa_kernel([first, *(each for each in usual if each is not first)], set_priority=True)
