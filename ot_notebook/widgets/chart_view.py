"""What the dashboard's chart says: which curves, in which colours, with which marks; as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from ot_notebook.services import curve
from ot_notebook.services.history import MarkKind
from ot_notebook.widgets.compare_view import Found, find_runs, points_of
from ot_notebook.widgets.overlay import COLOURS, DASHES, Overlay, overlay
from ot_notebook.widgets.texts import brief
from ot_notebook.widgets.view_state import curve_caption, number

if TYPE_CHECKING:
    from ot_notebook.services.trainer_service import TrainerService

Floats = npt.NDArray[np.float64]

SERIES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "images_per_second": "Images a second",
}
"""What can be drawn, and its name for people."""

ALONE = {**SERIES, "validation_loss": "Validation loss", "corrected_loss": "Loss, evened out"}
"""The same where a chart draws one curve at a time."""

RANGES = {"all": 1.0, "half": 0.5, "tenth": 0.1}
"""Share of the newest steps that is drawn."""

MARKS: dict[MarkKind, tuple[str, str]] = {
    "sample": ("#1b86ae", "samples"),
    "backup": ("#1a8a66", "backup"),
    "save": ("#8a7414", "model saved"),
    "setting": ("#c4650a", "setting changed"),
}
"""Colour and word of each kind of mark."""

EPOCH_COLOUR = "#8a93a5"

MAX_EPOCHS = 40
"""Epochs up to which their ends are marked: more would be a line."""

MAX_OTHERS = len(COLOURS) - 1


@dataclass(frozen=True)
class Line:
    """One curve; `colour` counts in `COLOURS`."""

    name: str
    steps: Floats
    values: Floats
    colour: int = 0
    faint: bool = False
    dashed: bool = False


class Other(TypedDict):
    """A run that may be laid under this one; `colour` is None while it is not."""

    key: str
    label: str
    colour: int | None


class ToolsView(TypedDict):
    """All that the tools of the chart draw."""

    series: str
    choices: list[list[str]]
    log: bool
    zoom: bool
    range: str
    key: list[list[str]]
    """Name, colour and kind (line, faint, dashed or dot) of what is drawn."""
    others: list[Other]
    caption: str


@dataclass
class ChartChoice:
    """What a person has chosen to see."""

    series: str = "loss"
    log: bool = False
    zoom: bool = False
    range: str = "all"
    others: dict[str, int] = field(default_factory=dict)
    """Colours of the other runs that are drawn, by key."""
    known: list[Found] = field(default_factory=list)
    """Runs that are offered."""

    def look(self, service: TrainerService) -> None:
        """Find the runs that can be laid under this one."""
        here = service.run.workspace if service.run is not None else None
        found = {one.key: one for folder in {None, here} for one in find_runs(folder)[0]}
        own = service.run.id if service.run is not None else ""
        runs = [one for one in found.values() if one.run.id != own]
        self.known = sorted(runs, key=lambda one: one.run.started, reverse=True)[:60]

    def toggle(self, key: str, on: bool) -> None:
        """Draw another run, or no longer; the oldest makes room where there is no colour left."""
        self.others.pop(key, None)
        if on and any(one.key == key for one in self.known):
            if len(self.others) == MAX_OTHERS:
                del self.others[next(iter(self.others))]
            free = set(range(1, MAX_OTHERS + 1)) - set(self.others.values())
            self.others[key] = min(free)


def lines(service: TrainerService, choice: ChartChoice, points: int) -> list[Line]:
    """The curves of what is chosen; the run's own come first, and of them the faint one.

    Args:
        service: whose run it is.
        choice: what to draw.
        points: of a curve at most.
    """
    history = service.history

    def own(name: str, label: str, **look: Any) -> Line:
        return Line(label, *history.points(name, points), **look)

    if choice.series == "loss":
        drawn = [own("loss", "each step", faint=True), own("smooth_loss", "smooth")]
        drawn.append(own("validation_loss", "validation", colour=3, dashed=True))
        drawn.append(own("corrected_loss", "timesteps evened out", colour=2))
    else:
        parts = [name for name in history.names if name.startswith(f"{choice.series}.")]
        names = parts or [choice.series]
        drawn = [
            own(name, name.partition(".")[2] or ALONE[choice.series], colour=place % len(COLOURS))
            for place, name in enumerate(names)
        ]
    wanted = "smooth_loss" if choice.series == "loss" else choice.series
    for one in choice.known:
        if one.key in choice.others:
            steps, values = _columns(points_of(one, wanted))
            drawn.append(Line(one.run.id, steps, values, choice.others[one.key]))
    last = max((line.steps[-1] for line in drawn if len(line.steps)), default=0.0)
    first = last * (1 - RANGES[choice.range])
    return [_cut(line, first, choice.log) for line in drawn]


def _columns(points: Sequence[curve.Point]) -> tuple[Floats, Floats]:
    table = np.array(points, float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _cut(line: Line, first: float, log: bool) -> Line:
    keep = line.steps >= first if first else np.ones(len(line.steps), bool)
    if log:
        keep = keep & ~(line.values <= 0)
    return Line(
        line.name, line.steps[keep], line.values[keep], line.colour, line.faint, line.dashed
    )


def marks(service: TrainerService) -> list[tuple[float, str, str]]:
    """Step, colour and words of what happened, epochs among them."""
    found = []
    epochs, last = service.max_epoch, service.max_step
    if 1 < epochs <= MAX_EPOCHS:
        done = [n for n in range(1, epochs) if n * last / epochs <= service.step]
        found = [(n * last / epochs, EPOCH_COLOUR, f"Epoch {n + 1} begins") for n in done]
    return found + [
        (float(m.step), MARKS[m.kind][0], brief(m.text, 200)) for m in service.history.marks
    ]


def tools_view(service: TrainerService, choice: ChartChoice, drawn: Sequence[Line]) -> ToolsView:
    """Everything the tools draw."""
    key = [
        [line.name, COLOURS[line.colour], _kind(line)]
        for line in drawn
        if len(line.steps) or line.name in ("each step", "smooth")
    ]
    kinds = {mark.kind for mark in service.history.marks}
    if any(colour == EPOCH_COLOUR for _, colour, _ in marks(service)):
        key.append(["epochs", EPOCH_COLOUR, "dot"])
    key += [[word, colour, "dot"] for kind, (colour, word) in MARKS.items() if kind in kinds]
    return ToolsView(
        series=choice.series,
        choices=[list(pair) for pair in SERIES.items()],
        log=choice.log,
        zoom=choice.zoom,
        range=choice.range,
        key=key,
        others=[
            Other(
                key=one.key,
                label=f"{one.run.id} · {one.state}",
                colour=choice.others.get(one.key),
            )
            for one in choice.known
        ],
        caption=caption(service, choice, drawn),
    )


def _kind(line: Line) -> str:
    return "faint" if line.faint else "dashed" if line.dashed else "line"


def caption(service: TrainerService, choice: ChartChoice, drawn: Sequence[Line]) -> str:
    """What is drawn in words: the last values."""
    if choice.series == "loss":
        said = [curve_caption(service)]
    else:
        said = [
            f"{line.name} {number(float(line.values[-1]))} at step {line.steps[-1]:.0f}."
            for line in drawn
            if len(line.values) and math.isfinite(line.values[-1])
        ]
    return " ".join(said)


def as_overlay(service: TrainerService, choice: ChartChoice, points: int) -> Overlay:
    """The same curves, placed for an SVG."""
    drawn = lines(service, choice, points)
    curves = [(line.name, line.colour, curve.finite(line.steps, line.values)) for line in drawn]
    placed = overlay(curves, choice.log, caption(service, choice, drawn))
    for line in placed["lines"]:
        line["dash"] = DASHES[1] if line["name"] == "validation" else ""
    return placed
