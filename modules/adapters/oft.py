"""OFT on convolutions, as files and merged weights mean it."""

from __future__ import annotations

from typing import Any

from peft.tuners.oft.layer import Conv2d
from torch import Tensor, nn

from modules.adapters.lora import ADAPTER
from modules.adapters.rotation import rotated


class RotatedConv(Conv2d):  # type: ignore[misc]
    """A convolution whose weight is rotated, as OneTrainer has it.

    peft's own rotates patches of the input and adds them up where they overlap: a pixel counts as
    often as there are patches with it, so that even without any rotation the layer answers
    otherwise than its base, and otherwise than with what it merges.
    """

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """[B, C, H, W] -> [B, N, H, W]."""
        base: Any = self.base_layer
        if self.disable_adapters:
            answer: Tensor = base(inputs)
            return answer
        weight = rotated(base.weight, self.oft_R[ADAPTER].weight).to(base.weight.dtype)
        return base._conv_forward(inputs, weight, base.bias)  # type: ignore[no-any-return]


def rotate_weights(network: nn.Module) -> None:
    """Let every convolution with peft's OFT rotate its weight."""
    for layer in network.modules():
        if type(layer) is Conv2d:
            layer.__class__ = RotatedConv
