"""What a run has said so far, in memory: what a view replays when it is displayed."""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from modules.training import events as e

Floats = npt.NDArray[np.float64]
Level = Literal["info", "warning", "error"]

MAX_POINTS = 20_000
"""Points of one series in memory; beyond, extremes stand for their neighbours. All are on disk."""

MAX_LINES = 2_000
"""Lines of the log in memory."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log; its `number` rises, over all runs of a service."""

    number: int
    time: float
    level: Level
    text: str


MarkKind = Literal["sample", "backup", "save", "setting"]

MAX_MARKS = 2_000
"""Marks in memory, the newest."""


@dataclass(frozen=True, slots=True)
class CurveMark:
    """Something that happened at a step, to be seen beside the curve."""

    step: int
    kind: MarkKind
    text: str


class Series:
    """Values over steps, in bounded memory. When full, each four points become their extremes."""

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._max_points = max_points
        self._steps = array("d")
        self._values = array("d")

    def add(self, step: float, value: float) -> None:
        """Append a point. A step back, as to a backup, replaces what followed it."""
        if self._steps and step <= self._steps[-1]:
            self.cut(step)
        self._steps.append(step)
        self._values.append(value)
        if len(self._steps) >= self._max_points:
            steps, values = thin(*self.arrays(), self._max_points // 2)
            self._steps = array("d", steps.tobytes())
            self._values = array("d", values.tobytes())

    def extend(self, steps: Floats, values: Floats) -> None:
        """Append points; steps rise."""
        steps, values = thin(
            np.append(self._steps, steps), np.append(self._values, values), self._max_points // 2
        )
        self._steps, self._values = array("d", steps.tobytes()), array("d", values.tobytes())

    def cut(self, step: float) -> None:
        """Drop the points at and after `step`."""
        keep = bisect_left(self._steps, step)
        del self._steps[keep:], self._values[keep:]

    def arrays(self) -> tuple[Floats, Floats]:
        """Copies of steps and values."""
        return np.array(self._steps, float), np.array(self._values, float)


class History:
    """Series, samples and log of one run. Written by the dispatcher, read from any thread.

    Args:
        first_line: number of the first line of its log; a view tells lines apart by it.
    """

    def __init__(self, first_line: int = 0) -> None:
        self._lock = threading.Lock()
        self._series: dict[str, Series] = {}
        self._samples: list[e.SampleImage] = []
        self._log: deque[LogLine] = deque(maxlen=MAX_LINES)
        self._marks: deque[CurveMark] = deque(maxlen=MAX_MARKS)
        self._lines = first_line

    def points(self, name: str, max_points: int) -> tuple[Floats, Floats]:
        """Steps and values of a series, at most `max_points`, with every extreme among them.

        Args:
            name: "loss", "smooth_loss", "corrected_loss", "validation_loss", "learning_rate",
                "grad_norm", "images_per_second", or "learning_rate.<part>" where several parts
                train. Empty before its first value.
            max_points: length at which the curve is thinned out; at least 2.
        """
        with self._lock:
            if name not in self._series:
                return np.empty(0), np.empty(0)
            steps, values = self._series[name].arrays()
        return thin(steps, values, max_points)

    def curves(self, first_step: float = 0) -> dict[str, tuple[Floats, Floats]]:
        """The curves of steps from `first_step` on, by name, as they are drawn."""
        with self._lock:
            series = {name: each.arrays() for name, each in self._series.items()}
        return {
            name: (steps[steps >= first_step], values[steps >= first_step])
            for name, (steps, values) in series.items()
            if name != "validation_loss"
        }

    @property
    def samples(self) -> list[e.SampleImage]:
        """Every sample of the run, oldest first."""
        with self._lock:
            return list(self._samples)

    @property
    def log(self) -> list[LogLine]:
        """The newest lines of the log, oldest first."""
        with self._lock:
            return list(self._log)

    @property
    def marks(self) -> list[CurveMark]:
        """What happened at which step; samples of one step are one mark."""
        with self._lock:
            return list(self._marks)

    @property
    def next_line(self) -> int:
        """Number of the line that comes next."""
        return self._lines

    @property
    def names(self) -> list[str]:
        """Names of the series that have points."""
        with self._lock:
            return list(self._series)

    def add(self, event: e.Event, at: float) -> None:
        """Take in an event that was sent at `at`, in seconds since 1970."""
        with self._lock:
            self._take(event, at)

    def extend(self, name: str, steps: Floats, values: Floats) -> None:
        """Append points to a series; steps rise."""
        with self._lock:
            self._series.setdefault(name, Series()).extend(steps, values)

    def cut(self, step: float) -> None:
        """Drop the points of every series at and after `step`."""
        with self._lock:
            for series in self._series.values():
                series.cut(step)

    def note(self, text: str, level: Level = "info") -> None:
        """Add a line that no run sent."""
        with self._lock:
            self._line(time.time(), level, text)

    def _take(self, event: e.Event, at: float) -> None:
        match event:
            case e.LossUpdate():
                for name, value in values_of(event).items():
                    self._series.setdefault(name, Series()).add(event.step, value)
            case e.SampleImage():
                self._samples.append(event)
                self._mark(event.step, "sample", f"Samples at step {event.step}")
                self._line(at, "info", f"Sample of {event.prompt!r} at step {event.step}")
            case e.StatusLine(text):
                self._line(at, "info", text)
            case e.BackupCreated(path, step):
                self._mark(step, "backup", f"Backup at step {step}")
                self._line(at, "info", f"Backup at step {step}: {path}")
            case e.ModelSaved(path, layout, step, _):
                self._mark(step, "save", f"Model saved at step {step}")
                self._line(at, "info", f"Model at step {step}, as {layout}: {path}")
            case e.ValidationLoss(step, loss, _, raw):
                self._series.setdefault("validation_loss", Series()).add(step, loss)
                beside = "" if raw is None else f" ({raw:.4f} without EMA)"
                self._line(at, "info", f"Validation loss at step {step}: {loss:.4f}{beside}")
            case e.SettingChanged(setting, old, new, step):
                self._mark(step, "setting", f"{setting} is {new} after step {step}")
                self._line(at, "info", f"{setting} is {new} instead of {old} after step {step}")
            case e.Warned(message):
                self._line(at, "warning", message)
            case e.RunFailed(error, advice):
                self._line(at, "error", f"{error} {advice}".strip())
            case e.Progress() | e.TaskProgress() | e.TrainingState():
                pass  # the service's traits show them
            case _:
                assert_never(event)

    def _mark(self, step: int, kind: MarkKind, text: str) -> None:
        mark = CurveMark(step, kind, text)
        if mark not in list(self._marks)[-4:]:  # other things may happen between two samples
            self._marks.append(mark)

    def _line(self, at: float, level: Level, text: str) -> None:
        if text:
            self._log.append(LogLine(self._lines, at, level, text))
            self._lines += 1


def values_of(event: e.LossUpdate) -> dict[str, float]:
    """The numbers of a step by the name of their series."""
    values = {
        "loss": event.loss,
        "smooth_loss": event.smooth_loss,
        "learning_rate": max(event.learning_rate.values(), default=0.0),
        "grad_norm": event.grad_norm,
        "images_per_second": event.images_per_second,
    }
    if event.corrected_loss is not None:
        values["corrected_loss"] = event.corrected_loss
    if len(event.learning_rate) > 1:
        values |= {f"learning_rate.{part}": rate for part, rate in event.learning_rate.items()}
    return values


def thin(steps: Floats, values: Floats, max_points: int) -> tuple[Floats, Floats]:
    """At most `max_points` points that draw the same curve: the extremes of equal spans of steps.

    NaN is no extreme. Both ends stay: a curve begins and ends where its run does.
    """
    if len(steps) <= max_points:
        return steps, values
    spans = max(1, (max_points - 2) // 2)
    width = (steps[-1] - steps[0]) / spans or 1.0
    span = np.minimum(((steps - steps[0]) / width).astype(np.int64), spans - 1)
    starts = np.flatnonzero(np.diff(span, prepend=-1))
    lengths = np.diff(starts, append=len(steps))
    chosen = [
        _first_of_each(values == np.repeat(extreme.reduceat(values, starts), lengths), span)
        for extreme in (np.fmin, np.fmax)  # these two pass over NaN
    ]
    keep = np.unique(np.concatenate([[0], *chosen, [len(steps) - 1]]))
    return steps[keep], values[keep]


def _first_of_each(wanted: npt.NDArray[np.bool_], span: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Place of the first wanted point of each span that has one."""
    places = np.flatnonzero(wanted)
    return places[np.flatnonzero(np.diff(span[places], prepend=-1))]
