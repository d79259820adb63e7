"""By how much an adapter changes a layer's weight.

Shapes: R rank, in and out the widths of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modules.adapters.files import ALPHA, DOWN, UP
from modules.adapters.rotation import rotated

ROTATION = "oft_R.weight"
"""Name of what OFT trains."""


def weight_change(tensors: Mapping[str, Tensor], base: Tensor, strength: float = 1.0) -> Tensor:
    """The change of a layer's weight, in float32, of the weight's shape and on its device.

    Args:
        tensors: the adapter of the layer, by the names that backups use.
        base: the weight, [out, in] or [out, in, k, k]; only DoRA and OFT read its numbers.
        strength: 1 is as it was trained.

    Raises:
        KeyError: if it is no adapter.
        RuntimeError: if the shapes do not fit, or it is an OFT with scales.
    """
    at = {
        name: tensor.to(base.device, torch.float32)
        for name, tensor in tensors.items()
        if name != ALPHA
    }
    if ROTATION in at:
        if "oft_R.scaled_oft" in at:
            raise RuntimeError("an OFT with scales is not read here")
        return (rotated(base, at[ROTATION]) - base.float()) * strength
    factor = scale_of(tensors) * strength
    if DOWN not in at:
        return _dense(at).reshape(base.shape) * factor
    down, up = at[DOWN].flatten(1), at[UP].flatten(1)
    change = (up @ down).reshape(base.shape) * factor
    if "dora_scale" not in at:
        return change
    return _resized(base.float(), change, at["dora_scale"])


def _resized(base: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: the sum is brought to the trained length, output by output or input by input.

    Source: Liu et al. 2024, arXiv:2402.09353, equation 5; lengths by input as OneTrainer has them.
    """
    changed = base + change
    rows = changed.flatten(1)
    if per_input(magnitude):
        lengths = changed.transpose(0, 1).flatten(1).norm(dim=1)
        factor = (magnitude.flatten() / lengths).reshape(1, -1, *[1] * (base.ndim - 2))
    else:
        factor = (magnitude.flatten() / rows.norm(dim=1)).reshape(-1, *[1] * (base.ndim - 1))
    difference: Tensor = changed * factor - base
    return difference


def per_input(magnitude: Tensor) -> bool:
    """Whether DoRA's lengths, [1, in, ...] or [out, 1, ...], are those of the inputs."""
    return magnitude.ndim >= 2 and magnitude.shape[0] == 1 and magnitude.shape[1] > 1


def scale_of(tensors: Mapping[str, Tensor]) -> float:
    """Alpha / R of an adapter's layer; 1 where it has no alpha, or no rank to divide it by."""
    rank = kronecker_rank(tensors)
    if DOWN in tensors:
        rank = tensors[DOWN].shape[0]
    elif "hada_w1_b" in tensors:
        rank = tensors["hada_w1_b"].shape[0]
    return float(tensors[ALPHA]) / rank if rank and ALPHA in tensors else 1.0


def _dense(at: Mapping[str, Tensor]) -> Tensor:
    """Weight change of LoHa or LoKr at scale 1.

    Source: Yeh et al. 2024, arXiv:2309.14859, equations 5 and 8.
    """
    if "hada_w1_a" in at:
        return _hada(at, 1) * _hada(at, 2)
    first = at["lokr_w1"] if "lokr_w1" in at else at["lokr_w1_a"] @ at["lokr_w1_b"]
    second = _kronecker_second(at)
    first = first.reshape(*first.shape, *[1] * (second.ndim - 2))
    return torch.kron(first, second.contiguous())


def widths(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Outputs and inputs of the layer that an adapter changes.

    Raises:
        KeyError: if its tensors do not tell, as those of OFT, or are no adapter's.
    """
    if DOWN in tensors:
        return tensors[UP].shape[0], tensors[DOWN].shape[1]
    if "hada_w1_a" in tensors:
        return tensors["hada_w1_a"].shape[0], tensors["hada_w1_b"].shape[1]
    whole = [tensors.get(f"lokr_w{side}") for side in (1, 2)]
    ends = [
        (tensors[f"lokr_w{side}_a"], tensors[f"lokr_w{side}_b"]) if it is None else (it, it)
        for side, it in enumerate(whole, 1)
    ]
    (first, left), (second, right) = ends
    return first.shape[0] * second.shape[0], left.shape[1] * right.shape[1]


def kronecker_rank(at: Mapping[str, Tensor]) -> int:
    """Rank of the factors of a LoKr that are split; 0 where both are whole."""
    for name in ("lokr_w2_b", "lokr_w1_b"):
        if name in at:
            return at[name].shape[0]
    return 0


def _hada(at: Mapping[str, Tensor], side: int) -> Tensor:
    first, second = at[f"hada_w{side}_a"], at[f"hada_w{side}_b"]
    if f"hada_t{side}" in at:
        return torch.einsum("i j k l, j r, i p -> p r k l", at[f"hada_t{side}"], second, first)
    return first @ second


def _kronecker_second(at: Mapping[str, Tensor]) -> Tensor:
    if "lokr_w2" in at:
        return at["lokr_w2"]
    first, second = at["lokr_w2_a"], at["lokr_w2_b"]
    if "lokr_t2" in at:
        return torch.einsum("i j k l, i p, j r -> p r k l", at["lokr_t2"], first, second)
    product = first @ second.flatten(1)
    return product.reshape(first.shape[0], *second.shape[1:])
