"""A run that lives in another process, watched through its store; nothing here may change it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from modules.atomic import atomic_file
from modules.training.events import ENDED, Event, StatusLine, TrainingState
from ot_notebook.services.heartbeat import STOP_FILE, Beat, living
from ot_notebook.services.replay import replay
from ot_notebook.services.store_file import StoreError

if TYPE_CHECKING:
    from ot_notebook.services.history import History
    from ot_notebook.services.run import Run
    from ot_notebook.services.run_store import Mark

SECONDS = 1.0
"""Time between two looks at the store."""

TRIES = 5
"""Times that a store is read anew because its run went on meanwhile."""


def life_of(run: Run) -> Beat | None:
    """The process that a run is live in; None for one that is over."""
    beat = living(run.workspace)
    return beat if beat is not None and beat.run == run.id else None


def history_of(run: Run, first_line: int) -> tuple[History, Mark]:
    """What a run has said so far, and the place from which a `Follower` goes on."""
    for _ in range(TRIES):
        mark = run.store.mark(run.id)
        history = replay(run, first_line)
        if run.store.mark(run.id).number == mark.number:
            break
    return history, mark


class Follower:
    """Tells what a run in another process says, about once a second, until it ends.

    Args:
        run: the run.
        mark: what was said up to here is known.
        tell: called with time and event, on a thread of its own.
        over: called once when the run has ended, or its process has.
    """

    def __init__(
        self, run: Run, mark: Mark, tell: Callable[[float, Event], None], over: Callable[[], None]
    ) -> None:
        self._run_, self._mark, self._tell, self._over = run, mark, tell, over
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="ot-follow", daemon=True)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Leave the request where the run's process looks for one.

        Raises:
            OSError: if it cannot be written.
        """
        with atomic_file(self._run_.workspace / STOP_FILE) as temporary:
            temporary.write_text(self._run_.id, encoding="utf-8")

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def _follow(self) -> None:
        troubled = False
        while not self._closed.wait(SECONDS):
            alive = life_of(self._run_) is not None  # before the look: its last words come before
            try:
                ended = self._look()
                troubled = False
            except (StoreError, KeyError) as error:
                ended = False
                if not troubled:
                    self._tell(0.0, StatusLine(f"It cannot be read just now: {error}"))
                troubled = True
            if (ended or not alive) and not self._closed.is_set():
                self._over()
                return

    def _look(self) -> bool:
        """Tell the news; whether the end was among them."""
        ended = False
        news, self._mark = self._run_.store.since(self._run_.id, self._mark)
        for at, event in news:
            if self._closed.is_set():
                break
            self._tell(at, event)
            ended |= isinstance(event, TrainingState) and event.state in ENDED
        return ended
