"""The run that is shown: the way of what it says into history and store, traits and readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from modules.training import events as e
from ot_notebook.services.event_hub import EventHub
from ot_notebook.services.following import Follower, history_of, life_of
from ot_notebook.services.history import History
from ot_notebook.services.live_run import LiveRun
from ot_notebook.services.replay import replay
from ot_notebook.services.run import Run
from ot_notebook.services.run_store import StoreError
from ot_notebook.services.run_traits import RunTraits
from ot_notebook.services.said import Said, by_run


class ShownRun(RunTraits):
    """Shows one run at a time: one that is live here, one that is over, or lives elsewhere.

    Whoever runs it calls `_say` with each of its events, and `_show_stored` to turn to another.
    """

    def __init__(self) -> None:
        super().__init__(lambda message: self._say(self._shown, e.Warned(message)))
        self.history = History()
        """Curves, samples and log of the run that is shown."""
        self._lock = threading.RLock()  # one command at a time
        self._follower: Follower | None = None
        self._shown: LiveRun | None = None
        self._hub: EventHub[Said] = EventHub(self._deliver)

    def flush(self) -> None:
        """Bring traits, store and readers up to date now, from any thread."""
        self._hub.flush()

    def close(self) -> None:
        """Deliver everything, and look at no run any more."""
        if self._follower is not None:
            self._follower.close()
        self._hub.close()

    # ---------------------------------------------------------------- a run that is live here

    def _say(self, live: LiveRun | None, event: e.Event) -> None:
        """Queue an event, and note the state it brings. Mostly on the training thread."""
        if isinstance(event, (e.SampleImage, e.BackupCreated, e.ModelSaved)):
            event = replace(event, path=event.path.absolute())  # before a cell changes the folder
        said = Said(live, time.time(), event)
        if live is not None and isinstance(event, e.SettingChanged):
            live.note(event)
        if live is not None and isinstance(event, e.TrainingState):
            live.enter(event.state, lambda: self._hub.post(said))
        else:
            self._hub.post(said)

    def _deliver(self, batch: list[Said]) -> None:
        """History and store, then traits, then readers. The one writer of all."""
        for said in by_run(batch):
            self._readers.call(self._take_in, said)
        self._readers.tell([one.event for one in batch])

    def _take_in(self, said: Sequence[Said]) -> None:
        """Events of one run: into its history, its store and the traits."""
        live = said[0].run
        if live is not None and live is not self._shown:
            self._show(live)
        for one in said:
            self.history.add(one.event, one.time)
        if live is not None:
            self._keep(live, said)
        self._set_traits([one.event for one in said])

    def _show(self, live: LiveRun) -> None:
        """Turn to a new run."""
        self._shown = live
        self.history = History(self.history.next_line)
        self._reset(live.handle)
        if live.after is None:
            return
        try:
            self.history = replay(live.after, self.history.next_line)
        except (StoreError, KeyError) as error:
            self._readers.warn(f"The curves of the run before cannot be shown: {error}")

    def _reset(self, run: Run) -> None:
        """Forget what the traits and readers say of another run."""
        self._readers.forget()
        self._forget(run)

    def _keep(self, live: LiveRun, said: Sequence[Said]) -> None:
        """On disk; a failure is told once and changes nothing else."""
        try:
            live.keep([(one.time, one.event) for one in said], self.history)
        except StoreError as error:
            self._readers.warn(f"The run's history is not being saved: {error} Training goes on.")
        if live.store.behind:
            self._readers.warn(live.store.behind)

    # ---------------------------------------------------------------- a run that is not of here

    def _show_stored(self, run: Run) -> None:
        """Turn to a run as its store has it, and follow it if it is live in another process."""
        self._unfollow()
        self._shown = None
        beat = life_of(run)
        self.history, mark = history_of(run, self.history.next_line)
        self._reset(run)
        last = run.store.last_progress(run.id)
        self._set_numbers(last[1] if last else None)
        self.set_trait("error", run.error)
        if beat is not None:
            self.set_trait("elsewhere", beat)
            self._follower = Follower(run, mark, self._tell_of, lambda: self._seen_off(run))
        self._show_state(run)

    def _show_state(self, run: Run) -> None:
        """Where a run stands that is not of this process."""
        state = run.state if run.state in get_args(e.State) else "stopped"
        self.set_trait("status", run.ending)
        self.set_trait("state", state)
        self._readers.tell([e.TrainingState(self.state)])

    def _tell_of(self, at: float, event: e.Event) -> None:
        self._hub.post(Said(None, at or time.time(), event))

    def _seen_off(self, run: Run) -> None:
        """The run that was followed is over, or its process."""
        self.flush()
        with self._hub.exclusive(), self._lock:
            if self.run is run:
                self._unfollow()
                self._show_state(run)

    def _unfollow(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        self.set_trait("elsewhere", None)
