"""OFT: what a layer reads is rotated, block by block, which is a rotation of its weight as well.

With R a rotation, a linear layer computes W (x R), so that its weight is W R^T. Files give the
weight of a convolution turned the other way, W R, as OneTrainer trains it.

Source: Qiu et al. 2023, arXiv:2306.07280; rotations from skew matrices as in Qiu et al. 2025,
arXiv:2506.19847: Cayley's (I + Q) / (I - Q), the inverse as the first powers of its series.

Shapes: N out features, M numbers of a weight for each of them, r blocks of width b, r * b = M.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotated(weight: Tensor, packed: Tensor) -> Tensor:
    """A layer's weight with its rotation in it, float32 and of its shape.

    Args:
        weight: [N, in] or [N, in, k, k]; its numbers for one output are the M that are rotated.
        packed: what trains, [r, b (b - 1) / 2], or [1, ...] for one rotation of all blocks.

    Raises:
        RuntimeError: if the shapes do not fit.
    """
    turns = _rotations(packed.float())
    width, size = weight[0].numel(), turns.shape[-1]
    count = width // size
    if count * size != width or len(turns) not in (1, count):
        raise RuntimeError(f"{len(turns)} rotations of {size} do not fit {width} inputs")
    blocks = weight.float().reshape(len(weight), count, size)
    way = "nrc,rdc->nrd" if weight.ndim == 2 else "nrd,rdc->nrc"
    return torch.einsum(way, blocks, turns.expand(count, -1, -1)).reshape(weight.shape)


def _rotations(packed: Tensor) -> Tensor:
    """[r, b (b - 1) / 2] -> [r, b, b]: of the numbers above the diagonal of skew matrices."""
    size = (1 + math.isqrt(1 + 8 * packed.shape[1])) // 2
    rows, columns = torch.triu_indices(size, size, 1, device=packed.device)
    skew = packed.new_zeros(len(packed), size, size)
    skew[:, rows, columns] = packed
    skew = skew - skew.transpose(1, 2)
    square = skew @ skew
    cube = square @ skew
    eye = torch.eye(size, device=packed.device)
    return eye + 2 * (skew + square + cube) + cube @ skew
