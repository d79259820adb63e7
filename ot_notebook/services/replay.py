"""The history of a run that is over, from its store: as if it had been watched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules.training import events as e
from ot_notebook.services.history import History

if TYPE_CHECKING:
    from ot_notebook.services.run import Run


def replay(run: Run, first_line: int = 0, before_step: int | None = None) -> History:
    """Curves, samples and log of `run` and of the runs that it went on from.

    Args:
        run: the last of them.
        first_line: number of the first line of the log.
        before_step: leave out what came at or after this step, which a later run took again.
    """
    stored = run.store.run(run.id)
    if stored.parent is not None and run.store.has(stored.parent):
        parent = type(run)(stored.parent, run.store)
        history = replay(parent, first_line, run.store.first_step(run.id) or before_step)
    else:
        history = History(first_line)
    for name, steps, values in run.store.curves(run.id):
        history.extend(name, steps, values)
    for at, event in run.store.events(run.id):
        if before_step is None or not isinstance(event, e.SampleImage) or event.step < before_step:
            history.add(event, at)
    if before_step is not None:
        history.cut(before_step)
    return history
