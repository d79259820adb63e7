"""The loss curve as numbers and as SVG: axes that end where the data end, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 12, 26
COLOUR = "#5865e0"  # reads on white and on black

Point = tuple[float, float]


def finite(steps: Iterable[float], values: Iterable[float]) -> list[Point]:
    """Points with a finite value; a skipped NaN step leaves no hole."""
    pairs = zip(steps, values, strict=True)
    return [(float(x), float(y)) for x, y in pairs if math.isfinite(y)]


def limits(values: Sequence[float]) -> Point:
    """Ends of an axis: those of the values, and apart even where all are equal."""
    low, high = min(values), max(values)
    room = 0.0 if high > low else 0.5 * (abs(low) or 1.0)
    return low - room, high + room


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from `low` to `high`, at most `about` + 1: 1, 2 or 5 times powers of 10."""
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def log_ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from `low` to `high`, both positive, for an axis of powers of ten.

    They are 1, 2 and 5 times each power; fewer where those are more than `about`; the ends
    themselves where less than two are left.
    """
    powers = [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * p for p in powers for f in factors if low <= f * p <= high]
        if len(found) <= about:
            break
    return found if len(found) > 1 else [low, high]


def svg(raw: Sequence[Point], smooth: Sequence[Point], label: str) -> str:
    """Both curves as SVG that needs no style sheet: GitHub and mail strip those.

    Args:
        raw: step and loss, at least one point.
        smooth: step and smoothed loss.
        label: the curve in words, for those who do not see it.
    """
    (x0, x1), (y0, y1) = limits([x for x, _ in raw]), limits([y for _, y in raw])

    def across(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    def line(points: Sequence[Point], width: float, opacity: float) -> str:
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        return (
            f'<polyline points="{path}" fill="none" stroke="{COLOUR}" stroke-width="{width}" '
            f'stroke-opacity="{opacity}" stroke-linejoin="round"/>'
        )

    grid = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}" '
        f'stroke="currentColor" stroke-opacity="0.2"/>'
        f'<text x="{LEFT - 8}" y="{down(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in ticks(y0, y1, 5)
    ]
    grid += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{x:g}</text>'
        for x in ticks(x0, x1, 8)
    ]
    return (
        f'<svg class="ot-curve" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'style="display:block;width:100%;max-height:{HEIGHT + 60}px">'
        f'<g font-size="11" fill="currentColor">{"".join(grid)}</g>'
        f"{line(raw, 1, 0.4)}{line(smooth, 2, 1)}</svg>"
    )
