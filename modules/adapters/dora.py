"""DoRA with one length an input, as OneTrainer and LyCORIS have it; peft has one an output.

Shapes: R rank, in and out the widths of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modules.adapters.lora import ADAPTER


class InputLengths(nn.Module):
    """The trained length of each input column of a layer's weight; takes the place of peft's.

    With W' = W + up @ down * alpha / R the layer computes (W' * length / |W'|) x, columns of W'
    measured without a gradient. Such a factor belongs to an input, so that it can scale x instead
    and the frozen weight, however it is stored, is used as it is.

    Source: Liu et al. 2024, arXiv:2402.09353, equation 5, along the other axis.

    Args:
        base_layer: the layer that is adapted, linear or a convolution.
    """

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(_lengths(base_layer.weight.detach().float()))
        """[1, in], or [1, in, 1, 1] for a convolution: as files have it."""

    def forward(
        self,
        inputs: Tensor,
        *,
        lora_A: Any,  # noqa: N803 - peft's names
        lora_B: Any,  # noqa: N803
        scaling: float,
        base_layer: Any,
        base_result: Tensor | None = None,
        adapter_name: str = ADAPTER,  # noqa: ARG002
    ) -> Tensor:
        """What is to be added to the layer's own output."""
        base = base_layer.weight.detach().float()
        down, up = lora_A.weight.detach().float(), lora_B.weight.detach().float()
        change = (up.flatten(1) @ down.flatten(1)).reshape(base.shape)
        factor = self.weight / (_lengths(base + change * scaling) + torch.finfo(base.dtype).eps)
        if base.ndim == 2:
            factor = factor.flatten()
        scaled = inputs * factor.to(inputs.dtype)
        if base_result is None:
            base_result = base_layer(inputs)
        own: Tensor = base_layer(scaled) + lora_B(lora_A(scaled)) * scaling
        return own - base_result


def measure_inputs(network: nn.Module) -> None:
    """Give every DoRA of a network one length an input in the place of one an output."""
    for layer in list(network.modules()):
        magnitudes: Any = getattr(layer, "lora_magnitude_vector", ())
        if ADAPTER in magnitudes:
            magnitudes[ADAPTER] = InputLengths(layer.base_layer)


def _lengths(weight: Tensor) -> Tensor:
    """Length of each input's column, [1, in, ...]."""
    lengths: Tensor = torch.linalg.norm(weight.transpose(0, 1).flatten(1), dim=1)
    return lengths.reshape(1, -1, *[1] * (weight.ndim - 2))
