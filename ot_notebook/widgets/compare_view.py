"""What a comparison of runs says: a table, the settings that differ, curves, same-seed samples."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from modules.config import ConfigError, SampleConfig, TrainConfig, settings
from modules.training.events import ENDED, SampleImage
from ot_notebook.services.curve import finite
from ot_notebook.services.history import thin
from ot_notebook.services.run import find_stores, state_of
from ot_notebook.services.run_store import RunStore, StoredRun, StoreError
from ot_notebook.widgets.form_rows import in_words
from ot_notebook.widgets.overlay import COLOURS, MAX_RUNS, Overlay, overlay
from ot_notebook.widgets.texts import brief
from ot_notebook.widgets.thumbnails import Tile, tile
from ot_notebook.widgets.view_state import NO_VALUE, Alert, Tone
from ot_notebook.widgets.view_state import number as in_digits

METRICS = {
    "smooth_loss": "Loss, smooth",
    "corrected_loss": "Loss, timesteps evened out",
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "images_per_second": "Images a second",
}
"""Curves that can be laid over one another, and their names for people."""

MAX_TABLE, MAX_DIFFERENCES, MAX_PROMPTS, MAX_POINTS = 200, 80, 12, 400
"""What a page holds at most: runs, settings, rows of samples, points of a curve."""

TONES: dict[str, Tone] = {
    "finished": "good", "stopped": "idle", "failed": "bad", "cut off": "hold", "idle": "idle",
}  # fmt: skip
"""Of a state; others are of a run that is live."""


class RunRow(TypedDict):
    """One run of the table; `colour` is its number among those compared, None if it is not."""

    key: str
    id: str
    label: str
    tone: Tone
    started: str
    steps: str
    loss: str
    model: str
    workspace: str
    colour: int | None


class SampleRow(TypedDict):
    """Samples of one prompt and seed: a picture for each run, or None."""

    prompt: str
    seed: int
    cells: list[Tile | None]


class CompareView(TypedDict):
    """All that the comparison draws."""

    summary: str
    alert: Alert | None
    runs: list[RunRow]
    colours: list[str]
    names: list[str]
    differences: list[list[str]]
    more_differences: int
    metric: str
    metrics: list[list[str]]
    log: bool
    curves: Overlay
    caption: str
    samples: list[SampleRow]


@dataclass
class Found:
    """A run, where it is stored, and its last figures."""

    store: RunStore
    run: StoredRun
    state: str
    steps: str
    loss: float

    @property
    def key(self) -> str:
        """Its name among all runs of all workspaces."""
        return f"{self.run.workspace}|{self.run.id}"


@dataclass
class Choice:
    """What a person has chosen to see."""

    keys: list[str | None] = field(default_factory=lambda: [None] * MAX_RUNS)
    """Keys of the runs compared, each at the place of its colour."""
    metric: str = "smooth_loss"
    log: bool = False

    def chosen(self) -> list[tuple[int, str]]:
        """Colour and key of each."""
        return [(colour, key) for colour, key in enumerate(self.keys) if key is not None]

    def toggle(self, key: str, on: bool) -> None:
        """Compare a run, or no longer.

        Raises:
            ValueError: if there is no colour left for it.
        """
        if key in self.keys:
            if not on:
                self.keys[self.keys.index(key)] = None
        elif on:
            if None not in self.keys:
                raise ValueError(f"{MAX_RUNS} runs are compared at most. Take one out first.")
            self.keys[self.keys.index(None)] = key


def find_runs(workspace: str | Path | None) -> tuple[list[Found], list[str]]:
    """Runs of a workspace, or of all below the current folder, newest first; and what is amiss."""
    found, amiss = [], []
    try:
        stores = find_stores(workspace)
    except FileNotFoundError as error:
        return [], [str(error)]
    for store in stores:
        try:
            for run in store.runs():
                last = store.last_progress(run.id)
                steps = f"{last[1].step} of {last[1].max_step}" if last else NO_VALUE
                loss = last[1].smooth_loss if last else math.nan
                found.append(Found(store, run, state_of(run), steps, loss))
        except StoreError as error:
            amiss.append(str(error))
    found.sort(key=lambda one: one.run.started, reverse=True)
    return found, amiss


def compare_view(
    found: Sequence[Found],
    choice: Choice,
    tiles: dict[tuple[str, SampleImage], Tile],
    alert: Alert | None = None,
) -> CompareView:
    """Everything that is drawn of the runs `found`.

    Args:
        found: the runs, newest first.
        choice: which are compared, and by which curve.
        tiles: pictures made before, by run and sample; those made now are added.
        alert: something to say.
    """
    by_key = {one.key: one for one in found}
    chosen = [(colour, by_key[key]) for colour, key in choice.chosen() if key in by_key]
    colours = {one.key: colour for colour, one in chosen}
    curves = [(one.run.id, colour, points_of(one, choice.metric)) for colour, one in chosen]
    lines = _differences([one for _, one in chosen])
    label = METRICS[choice.metric]
    return CompareView(
        summary=f"{len(found)} run{'s' * (len(found) != 1)}, {len(chosen)} compared",
        alert=alert,
        runs=[_row(one, colours.get(one.key)) for one in found[:MAX_TABLE]],
        colours=list(COLOURS),
        names=[one.run.id for _, one in chosen],
        differences=lines[:MAX_DIFFERENCES],
        more_differences=max(0, len(lines) - MAX_DIFFERENCES),
        metric=choice.metric,
        metrics=[[name, words] for name, words in METRICS.items()],
        log=choice.log,
        curves=overlay(curves, choice.log, f"{label} of {len(chosen)} runs"),
        caption=_caption(curves, label),
        samples=_samples([one for _, one in chosen], tiles),
    )


def _row(one: Found, colour: int | None) -> RunRow:
    run = one.run
    return RunRow(
        key=one.key,
        id=run.id,
        label=one.state.capitalize(),
        tone=TONES.get(one.state, "run"),
        started=time.strftime("%d %b %H:%M", time.localtime(run.started)),
        steps=one.steps,
        loss=in_digits(one.loss),
        model=brief(run.config.get("base_model_name", ""), 120),
        workspace=brief(run.workspace, 160),
        colour=colour,
    )


def points_of(one: Found, metric: str) -> list[tuple[float, float]]:
    """A curve of a run, thinned out."""
    pieces = [(x, y) for name, x, y in one.store.curves(one.run.id) if name == metric]
    if not pieces:
        return []
    steps, values = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return finite(*thin(steps, values, MAX_POINTS))


def _caption(curves: Sequence[tuple[str, int, Sequence[tuple[float, float]]]], label: str) -> str:
    """The last value of each curve in words."""
    ends = [f"{name} {in_digits(points[-1][1])}" for name, _, points in curves if points]
    return f"{label} at the end: {', '.join(ends)}." if ends else ""


def _differences(runs: Sequence[Found]) -> list[list[str]]:
    """Settings whose values are not the same in all: name, and the value of each run in words."""
    if len(runs) < 2:
        return []
    configs = [_config(one.run.config) for one in runs]
    rows = []
    for setting in settings(TrainConfig, collections=True):
        values = [config and config.get(setting.path) for config in configs]
        known = [value for value, config in zip(values, configs, strict=True) if config]
        if any(value != known[0] for value in known):
            words = [
                brief(_words(value), 160) if config else "cannot be read"
                for value, config in zip(values, configs, strict=True)
            ]
            rows.append([setting.path, *words])
    return rows


def _words(value: Any) -> str:
    if isinstance(value, tuple) and value and all(isinstance(one, SampleConfig) for one in value):
        return f"{len(value)}: {', '.join(one.prompt for one in value)}"
    return in_words(value)


def _config(stored: Mapping[str, Any]) -> TrainConfig | None:
    """A run's settings; None for those of another version that cannot be read."""
    try:
        return TrainConfig.load(dict(stored))[0]
    except ConfigError:
        return None


def _samples(runs: Sequence[Found], tiles: dict[tuple[str, SampleImage], Tile]) -> list[SampleRow]:
    """The newest sample of each prompt and seed, run beside run; the commonest first."""
    newest: dict[tuple[str, int], dict[str, SampleImage]] = {}
    for one in runs:
        for _, event in one.store.events(one.run.id, "sample"):
            if isinstance(event, SampleImage):
                newest.setdefault((event.prompt, event.seed), {})[one.key] = event
    ranked = sorted(newest.items(), key=lambda item: -len(item[1]))[:MAX_PROMPTS]
    shown: dict[tuple[str, SampleImage], Tile] = {}
    number = max((one["id"] for one in tiles.values()), default=0)
    for _, of in ranked:
        for key, sample in of.items():
            number += 1  # never used again: the page tells pictures apart by it
            shown[key, sample] = tiles.get((key, sample)) or tile(sample, number)
    tiles.clear()
    tiles.update(shown)
    return [
        SampleRow(
            prompt=brief(prompt, 200),
            seed=seed,
            cells=[shown[one.key, of[one.key]] if one.key in of else None for one in runs],
        )
        for (prompt, seed), of in ranked
    ]


def live(found: Sequence[Found]) -> bool:
    """Whether one of them still moves."""
    return any(one.state not in (*ENDED, "cut off") for one in found)
