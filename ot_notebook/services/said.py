"""What a run has said, with its run and its time: what the dispatcher is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from modules.training.events import Event
from ot_notebook.services.live_run import LiveRun


@dataclass(frozen=True, slots=True)
class Said:
    """An event on its way to the dispatcher; `run` is None for what no live run has said."""

    run: LiveRun | None
    time: float
    event: Event


def by_run(batch: Sequence[Said]) -> list[list[Said]]:
    """Consecutive events of one run."""
    return [list(group) for _, group in groupby(batch, key=lambda said: id(said.run))]
