"""Weights of 16 bits that learn as weights of 32 do.

bfloat16 keeps eight bits of a number: a change of less than 1/512 of a weight is rounded away, at
every step anew, and learning stands still. So the optimizer sees float32, and its result is rounded
up or down at random, the nearer the likelier. Each rounding errs; their mean does not.

float16 keeps eleven, but nothing below 6e-8: squares of gradients and what an optimizer adds to
them would be zero. So it sees float32 as well, and its result is rounded to the nearest.

Source: Zamirai et al. 2020, arXiv:2010.06192.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

NARROW = (torch.bfloat16, torch.float16)
"""Types of 16 bits."""


def wide_types(at_random: bool) -> tuple[torch.dtype, ...]:
    """Types of weights that an optimizer shall see in float32.

    Args:
        at_random: whether those of bfloat16 are rounded at random.
    """
    return NARROW if at_random else (torch.float16,)


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
    parameters: Iterable[nn.Parameter],
    generator: torch.Generator | None = None,
    types: Collection[torch.dtype] = NARROW,
) -> Iterator[None]:
    """Parameters of 16 bits, and their gradients, are float32 inside; others stay as they are.

    At the end they are of 16 bits again, rounded, and their gradients are gone.

    Args:
        parameters: what an optimizer is about to change.
        generator: rounds those of bfloat16 at random; None rounds to nearest.
        types: of the parameters that shall be float32.
    """
    narrow = [(p, p.data) for p in parameters if p.dtype in types]
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
            if generator is not None and stored.dtype == torch.bfloat16:
                wide = round_at_random(wide, generator)
            stored.copy_(wide)
