"""A denoiser's weights in the layout of the model's original code."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modules.adapters.key_map import Native


def to_native(weights: Mapping[str, Tensor], native: Native) -> dict[str, Tensor]:
    """The state of a diffusers denoiser under its original names.

    Layers that the original holds as one are joined along their outputs, the halves of layers that
    it holds the other way round are swapped, and tables that it holds as a row are flattened.
    """
    found: dict[str, Tensor] = {}
    groups: dict[str, dict[int, Tensor]] = {}
    for key, tensor in weights.items():
        path, leaf = key, ""
        for ending in ("weight", "bias"):
            if key.endswith(f".{ending}"):
                path, leaf = key.removesuffix(f".{ending}"), ending
        place = native.place(path)
        # A bias does not tell the width of the inputs; its weight stands beside it.
        wide = weights.get(f"{path}.weight", tensor)
        if place.swaps(wide.shape[0], wide.shape[-1]):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if native.is_flat(path):
            tensor = tensor.flatten()
        name = native.key(place.name, leaf) if leaf else place.name
        if place.fused:
            groups.setdefault(name, {})[place.member] = tensor
        else:
            found[name] = tensor
    for key, members in groups.items():
        found[key] = torch.cat([members[member] for member in sorted(members)])
    return found
