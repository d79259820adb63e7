"""Random numbers that depend on nothing but their names.

Every choice about an image has a stream of its own, named by the concept's seed, the choice, the
image's content and the variation. So switching one choice on moves no other, and an image keeps its
choices when it is renamed or when others come and go.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray


def stream(*names: object) -> random.Random:
    """A generator of its own for these names; the same in every process and version."""
    return random.Random("/".join(map(str, names)))


def permutation(count: int, *names: int) -> NDArray[np.int64]:
    """0 ... count-1 in an order that depends on the names alone, non-negative and below 2**32.

    Sorts raw random words, whose stream numpy guarantees; it may change its own `permutation`.
    """
    words = np.random.Philox(np.random.SeedSequence(names)).random_raw(count)
    return np.argsort(words, kind="stable")
