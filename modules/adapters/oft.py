"""OFT: on convolutions as files and merged weights mean it, and what its block size comes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def remarks(networks: Mapping[str, nn.Module], asked: int) -> Iterator[str]:
    """What a block size comes to on layers whose inputs it does not divide, in words.

    peft takes the nearest size that does; blocks of 1 have nothing that could turn.

    Args:
        networks: with the adapter, by part.
        asked: the block size that the config names.
    """
    found: dict[str, int] = {}
    for part, network in networks.items():
        for path, layer in network.named_modules():
            if ADAPTER in getattr(layer, "oft_R", ()):
                sizes: Any = layer.oft_block_size
                found[f"{part}.{path}"] = sizes[ADAPTER]
    still = [name for name, size in found.items() if size == 1]
    other = {name: size for name, size in found.items() if size not in (1, asked)}
    if still:
        yield (
            f"oft_block_size is {asked}, of which {_listed(still)} can only take blocks of 1: "
            "nothing is learnt there. Choose a size that divides the width of those layers."
        )
    if other:
        sizes = ", ".join(map(str, sorted(set(other.values()))))
        yield (
            f"oft_block_size is {asked}, but {_listed(list(other))} take blocks of {sizes}, "
            "because it does not divide their inputs."
        )


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - 1} more layers" if len(names) > 1 else ""
    return names[0] + rest
