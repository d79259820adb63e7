"""Weights of 16 bits that learn as weights of 32 do.

bfloat16 keeps eight bits of a number: a change of less than 1/512 of a weight is rounded away, at
every step anew, and learning stands still. So the optimizer sees float32, and its result is rounded
up or down at random, the nearer the likelier. Each rounding errs; their mean does not.

Source: Zamirai et al. 2020, arXiv:2010.06192.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def round_at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """Values of float32 as bfloat16, whose expectation is the values themselves.

    Args:
        values: what to round; numbers that bfloat16 holds stay as they are.
        generator: on their device.
    """
    # bfloat16 is float32 without its low 16 bits. A random number below 2^16 carries into the rest
    # with just the chance that they are of the way to the next bfloat16, away from zero.
    bits = torch.randint(
        0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    bits += values.view(torch.int32)
    bits &= -(1 << 16)
    return bits.view(torch.float32).to(torch.bfloat16)


@contextmanager
def widened(
    parameters: Iterable[nn.Parameter], generator: torch.Generator | None = None
) -> Iterator[None]:
    """Parameters of bfloat16, and their gradients, are float32 inside; others stay as they are.

    At the end they are bfloat16 again, rounded, and their gradients are gone.

    Args:
        parameters: what an optimizer is about to change.
        generator: rounds at random; None rounds to nearest.
    """
    narrow = [(p, p.data) for p in parameters if p.dtype == torch.bfloat16]
    for parameter, stored in narrow:
        gradient, parameter.grad = parameter.grad, None
        parameter.data = stored.float()
        if gradient is not None:
            parameter.grad = gradient.float()
    try:
        yield
    finally:
        for parameter, stored in narrow:
            wide, parameter.grad = parameter.data, None
            parameter.data = stored
            stored.copy_(round_at_random(wide, generator) if generator else wide)
