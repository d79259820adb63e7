"""Sizes that images are trained at: OneTrainer's table of shapes, and which one an image takes.

Films are of a length besides.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

ASPECTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Long side by short side of the buckets, upright and lying."""


class Size(NamedTuple):
    """Pixels of a picture."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    def kept(self, width: int, height: int) -> float:
        """Share of an image's area that is left when it is scaled to cover this and cropped."""
        scale = max(self.height / height, self.width / width)
        return self.height * self.width / (height * scale * width * scale)


class Bucket(NamedTuple):
    """What all images of a batch have in common."""

    height: int
    width: int
    frames: int = 1
    """Length of a film; 1 for pictures, and for single frames of films."""

    @property
    def size(self) -> Size:
        """Its pixels."""
        return Size(self.height, self.width)

    def __str__(self) -> str:
        return f"{self.size}, {self.frames} frames" if self.frames > 1 else str(self.size)


@dataclass(frozen=True)
class Target:
    """One entry of a resolution setting and the sizes that it allows."""

    text: str
    sizes: tuple[Size, ...]

    def nearest(self, width: int, height: int) -> Size:
        """The size whose shape is nearest to an image's; of two equally near ones the first."""
        aspect = height / width
        return min(self.sizes, key=lambda size: abs(aspect - size.height / size.width))


def targets(resolution: str, quantum: int, bucketing: bool) -> tuple[Target, ...]:
    """What a resolution setting allows: `512`, `512,768`, `768x512` (width x height).

    Args:
        resolution: one or more entries between commas; an image takes one of them at random.
        quantum: edges are rounded to a multiple of this many pixels.
        bucketing: allow OneTrainer's shapes around each size; else only squares.

    Raises:
        ValueError: if an entry is no size.
    """
    found = []
    for entry in resolution.split(","):
        text = entry.strip().lower()
        match = re.fullmatch(r"(\d+)(?:\s*x\s*(\d+))?", text)
        if match is None or min(numbers := [int(n) for n in match.groups() if n]) < quantum / 2:
            raise ValueError(
                f"resolution is {resolution!r}, of which {text!r} is no size of {quantum} pixels "
                f"or more. Write 512, several as 512,768, or width and height as 768x512."
            )
        if len(numbers) == 2:
            width, height = numbers
            sizes: tuple[Size, ...] = (Size(_round(height, quantum), _round(width, quantum)),)
        elif bucketing:
            sizes = _shapes(numbers[0], quantum)
        else:
            sizes = (Size(_round(numbers[0], quantum), _round(numbers[0], quantum)),)
        found.append(Target(text, sizes))
    return tuple(found)


def _shapes(edge: int, quantum: int) -> tuple[Size, ...]:
    """Every shape with about the pixels of a square, each once.

    Source: the table of OneTrainer's aspect ratio bucketing.
    """
    lying = [(1.0, aspect) for aspect in ASPECTS]
    upright = [(aspect, 1.0) for aspect in ASPECTS]
    sizes: dict[Size, None] = {}
    for high, wide in [*lying, *upright]:
        scale = edge / math.sqrt(high * wide)
        sizes[Size(_round(high * scale, quantum), _round(wide * scale, quantum))] = None
    return tuple(sizes)


def _round(pixels: float, quantum: int) -> int:
    return max(quantum, round(pixels / quantum) * quantum)
