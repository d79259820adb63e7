"""LoRA on live networks: which layers get one, and what they hold.

R rank. Source: Hu et al. 2021, arXiv:2106.09685; layers are peft's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modules.config import ConfigError, Problem

ADAPTER = "default"
"""The name under which peft keeps the adapter that trains."""


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """The adapter of one layer: weight change = up @ down * alpha / R."""

    part: str
    """Pipeline name of the network, such as "unet"."""
    path: str
    """Module path of the adapted layer inside that network."""
    down: Tensor
    """[R, in] for a linear layer, [R, in, k, k] for a convolution."""
    up: Tensor
    """[out, R] for a linear layer, [out, R, 1, 1] for a convolution."""
    alpha: float

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return self.down.shape[0]


def matching_layers(network: nn.Module, layer_filter: str, regex: bool) -> list[str]:
    """Paths of the linear and convolution layers that a filter selects; see `matching`."""
    paths = [name for name, layer in network.named_modules() if _takes_lora(layer)]
    return matching(paths, layer_filter, regex)


def matching(names: Sequence[str], layer_filter: str, regex: bool) -> list[str]:
    """The names of layers, or of weights, that a filter selects.

    `layer_filter` is a comma-separated list; a name is selected if it contains an item, or matches
    it as a regular expression. An empty item selects every name.

    Raises:
        ConfigError: if an item selects nothing, or is no regular expression.
    """
    selected: set[str] = set()
    for item in (part.strip() for part in layer_filter.split(",")):
        try:
            found = [name for name in names if (re.search(item, name) if regex else item in name)]
        except re.error as error:
            raise _filter_error(
                f"layer_filter item {item!r} is no regular expression: {error}.",
                "Mend the expression, or turn layer_filter_regex off.",
            ) from error
        if not found:
            examples = ", ".join(names[:: max(1, len(names) // 4)][:4])
            raise _filter_error(
                f"layer_filter item {item!r} matches none of the {len(names)} layers.",
                f"Use a part of a layer's path, such as {examples}; leave it empty for all layers.",
            )
        selected.update(found)
    return [name for name in names if name in selected]


def add_lora(
    network: nn.Module, layers: Iterable[str], *, rank: int, alpha: float, dropout: float, seed: int
) -> list[nn.Parameter]:
    """Freeze a network, put a fresh adapter on its layers and return what trains, in float32.

    The adapter changes nothing yet: `up` starts at zero. `seed` fixes `down`.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(layers), bias="none"
    )
    return inject(network, config, seed)


def inject(network: nn.Module, config: Any, seed: int) -> list[nn.Parameter]:
    """Freeze a network, put a fresh adapter of a peft config on it; what trains, in float32."""
    from peft import inject_adapter_in_model

    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # the adapter's first values come from our seed alone
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network, ADAPTER)
    trainable = [p for p in network.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.data = parameter.data.float()
    return trainable


@contextmanager
def without_adapter(networks: Iterable[nn.Module]) -> Iterator[None]:
    """The networks answer as they did before any training, inside the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [
        layer
        for network in networks
        for layer in network.modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    for layer in layers:
        # The attribute rather than peft's method, which also changes what requires a gradient.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def lora_layers(networks: Mapping[str, nn.Module]) -> Iterator[LoraLayer]:
    """The live adapter of every layer of the given networks; tensors are not copied."""
    for part, network in networks.items():
        for path, layer in network.named_modules():
            if ADAPTER in getattr(layer, "lora_A", ()):
                down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
                alpha = float(layer.lora_alpha[ADAPTER])
                yield LoraLayer(part, path, down.weight, up.weight, alpha)


def _takes_lora(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1  # a grouped convolution has no low-rank form that readers know
    return isinstance(layer, nn.Linear)


def _filter_error(message: str, fix: str) -> ConfigError:
    return ConfigError([Problem("layer_filter", "error", message, fix)])
