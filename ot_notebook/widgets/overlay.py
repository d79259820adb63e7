"""Curves of several runs on one pair of axes: where each line and tick lies, and as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TypedDict

from ot_notebook.services.curve import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Point,
    limits,
    ticks,
)

COLOURS = ("#5865e0", "#c4650a", "#1a8a66", "#b8449f", "#8a7414", "#1b86ae")
"""One for each run that is compared; each reads on white and on black."""

DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "12 4")
"""So that lines differ without colour, too."""

MAX_RUNS = len(COLOURS)


class Tick(TypedDict):
    """A labelled place on an axis, in units of the drawing."""

    at: float
    text: str


class CurveLine(TypedDict):
    """One curve; `points` is what a polyline takes."""

    name: str
    colour: str
    dash: str
    points: str


class Overlay(TypedDict):
    """Everything that is drawn, in a frame of WIDTH by HEIGHT."""

    width: int
    height: int
    frame: list[float]
    across: list[Tick]
    down: list[Tick]
    lines: list[CurveLine]
    label: str
    ends: list[float]
    """Values at the frame's left, right, bottom and top; exponents of ten where `log`."""
    log: bool


def overlay(curves: Sequence[tuple[str, int, Sequence[Point]]], log: bool, label: str) -> Overlay:
    """Place curves on common axes.

    Args:
        curves: name, number of its colour, and points of each; empty ones are left out.
        log: whether the vertical axis is logarithmic; values that are not positive are left out.
        label: the drawing in words, for those who do not see it.
    """
    scale = math.log10 if log else float
    drawn = [
        (name, number, [(x, scale(y)) for x, y in points if y > 0 or not log])
        for name, number, points in curves
    ]
    drawn = [one for one in drawn if one[2]]
    frame = [float(LEFT), float(TOP), float(WIDTH - RIGHT), float(HEIGHT - BOTTOM)]
    if not drawn:
        return Overlay(
            width=WIDTH,
            height=HEIGHT,
            frame=frame,
            across=[],
            down=[],
            lines=[],
            label=label,
            ends=[],
            log=log,
        )
    x0, x1 = limits([x for _, _, points in drawn for x, _ in points])
    y0, y1 = limits([y for _, _, points in drawn for _, y in points])

    def across(x: float) -> float:
        return round(LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

    return Overlay(
        width=WIDTH,
        height=HEIGHT,
        frame=frame,
        across=[Tick(at=across(x), text=f"{x:g}") for x in ticks(x0, x1, 8)],
        down=[Tick(at=down(y), text=f"{10**y if log else y:.3g}") for y in ticks(y0, y1, 5)],
        lines=[
            CurveLine(
                name=name,
                colour=COLOURS[number],
                dash=DASHES[number],
                points=" ".join(f"{across(x)},{down(y)}" for x, y in points),
            )
            for name, number, points in drawn
        ],
        label=label,
        ends=[x0, x1, y0, y1],
        log=log,
    )


def overlay_svg(view: Overlay) -> str:
    """The drawing as SVG that needs no style sheet: GitHub and mail strip those."""
    left, _, right, _ = view["frame"]
    foot = view["height"] - 6
    grid = [
        f'<line x1="{left}" x2="{right}" y1="{tick["at"]}" y2="{tick["at"]}" '
        f'stroke="currentColor" stroke-opacity="0.2"/>'
        f'<text x="{left - 8}" y="{tick["at"] + 4}" text-anchor="end">{tick["text"]}</text>'
        for tick in view["down"]
    ]
    grid += [
        f'<text x="{tick["at"]}" y="{foot}" text-anchor="middle">{tick["text"]}</text>'
        for tick in view["across"]
    ]
    lines = [
        f'<polyline points="{line["points"]}" fill="none" stroke="{line["colour"]}" '
        f'stroke-width="2" stroke-dasharray="{line["dash"]}" stroke-linejoin="round"/>'
        for line in view["lines"]
    ]
    return (
        f'<svg class="ot-overlay" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{escape(view["label"])}" viewBox="0 0 {view["width"]} {view["height"]}" '
        f'style="display:block;width:100%;max-height:{view["height"] + 60}px">'
        f'<g font-size="11" fill="currentColor">{"".join(grid)}</g>{"".join(lines)}</svg>'
    )
