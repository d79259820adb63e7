"""What the service holds of a run while it is live: its requests, its store, its sign of life."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from modules.config import ConfigError, Problem, TrainConfig
from modules.config.paths import resolve
from modules.training import events as e
from modules.training.commands import TrainCommands
from ot_notebook.services.executors import Executor
from ot_notebook.services.heartbeat import Heartbeat, WorkspaceBusyError
from ot_notebook.services.history import History
from ot_notebook.services.run import Run
from ot_notebook.services.run_store import FILE, RunStore, StoreError

MAX_UNSAVED = 200_000
"""Events kept in memory while `run.db` cannot be written."""

CURVE_STEPS = 20_000
"""Steps after which the curves are kept as they are drawn, to spare a reader all of the steps."""

UNTIL_STOP: tuple[e.State, ...] = ("loading", "caching", "training", "paused", "sampling")
"""States that mean nothing once a stop is asked for: the trainer was on its way into them."""


class LiveRun:
    """One run, from its start to the end of its thread.

    Args:
        config: what it trains.
        flush: brings its store up to date.
        after: the run that it goes on from, if any.
        asked_to_stop: called when another process asks for its end.

    Raises:
        ConfigError: if its workspace cannot be used, or another run is live there.
    """

    executor: Executor | None = None

    def __init__(
        self,
        config: TrainConfig,
        flush: Callable[[], None],
        after: Run | None,
        asked_to_stop: Callable[[LiveRun], None],
    ) -> None:
        self.config, self.after = config, after
        self.now = self.asked = config
        """The settings with what was changed on the way, and with what was asked for as well."""
        self.id = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(2)}"
        self.commands = TrainCommands()
        self.state: e.State = "loading"
        """The state that the trainer is in; the service's trait follows with the next delivery."""
        self.changed = threading.Condition()
        self.ended = threading.Event()
        self._first_step: int | None = None
        self._curves_until = 0
        """The step up to which the store has the curves as they are drawn."""
        self._unsaved: list[tuple[float, e.Event]] = []
        workspace = Path(resolve(config.workspace_dir)).absolute()
        self.store = RunStore(workspace / FILE)
        self.handle = Run(self.id, self.store, flush, self.ended)
        try:
            workspace.mkdir(parents=True, exist_ok=True)
            self._heartbeat = Heartbeat(
                workspace, self.id, asked_to_stop=lambda: asked_to_stop(self)
            )
        except OSError as error:
            raise _refusal(f"{workspace} cannot be used: {error}.") from error
        except WorkspaceBusyError as error:
            raise _refusal(str(error), "Stop that run, or choose another folder.") from error
        try:
            self._begin()
        except StoreError as error:
            self._heartbeat.close()
            raise _refusal(str(error), "") from error

    @property
    def workspace(self) -> Path:
        """Its folder."""
        return self.store.path.parent

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end and has not ended."""
        return self.state not in e.ENDED and self.commands.stop_requested

    def enter(self, state: e.State, announce: Callable[[], None]) -> None:
        """Note a state and announce it; not if a stop or the end came first."""
        with self.changed:
            overtaken = self.commands.stop_requested and state in UNTIL_STOP
            if self.state in e.ENDED or overtaken:
                return
            self.state = state
            self.changed.notify_all()
            announce()

    def note(self, changed: e.SettingChanged) -> None:
        """Follow a change of a setting."""
        with suppress(ConfigError):  # of an engine of another version
            self.now = self.now.update(**{changed.setting: changed.new})
            self.asked = self.asked.update(**{changed.setting: changed.new})

    def keep(self, events: Sequence[tuple[float, e.Event]], history: History) -> None:
        """Write events to the store. What it does not take is tried again with the next ones.

        Args:
            events: with their times.
            history: has taken them in already; its curves are kept now and then.

        Raises:
            StoreError: if they could not be written now.
        """
        self._unsaved = [*self._unsaved, *events][-MAX_UNSAVED:]
        try:
            self.store.append(self.id, self._unsaved)
        except KeyError:  # somebody removed the file, or this run from it
            self._begin()
            self.store.append(self.id, self._unsaved)
        self._unsaved = []
        steps = [event.step for _, event in events if isinstance(event, e.LossUpdate)]
        if steps and self._first_step is None:
            self._first_step = self._curves_until = steps[0]
        if steps and steps[-1] >= self._curves_until + CURVE_STEPS:
            self._curves_until = steps[-1]
            self.store.save_curves(self.id, history.curves(self._first_step or 0))
        if self.state in e.ENDED:
            self.store.close()  # a later event opens it again

    def _begin(self) -> None:
        parent = self.after.id if self.after else None
        self.store.begin(self.id, self.config.to_dict(), time.time(), parent)

    def done(self) -> None:
        """Its thread is over: free the workspace for the next run."""
        self._heartbeat.close()
        self.ended.set()


def _refusal(message: str, fix: str = "Choose another folder.") -> ConfigError:
    return ConfigError([Problem("workspace_dir", "error", message, fix)])
