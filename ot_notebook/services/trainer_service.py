"""This kernel's trainer: start a run, steer it from any thread, and see what it does."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modules.config import ConfigError, Problem, SampleConfig, TrainConfig, validate
from modules.training import events as e
from modules.training.commands import TrainCommands, nothing
from ot_notebook.platform import give_back
from ot_notebook.services.budget import training_seconds
from ot_notebook.services.executors import Execute
from ot_notebook.services.executors.thread import ThreadExecutor
from ot_notebook.services.live_run import LiveRun
from ot_notebook.services.preflight import Preflight, preflight
from ot_notebook.services.refusals import LIVE, STEPPING, CommandRefused, refusal
from ot_notebook.services.run import Run
from ot_notebook.services.shown_run import ShownRun

if TYPE_CHECKING:
    from modules.training.commands import Use
    from modules.training.trainer import GenericTrainer


class TrainerService(ShownRun):
    """Trains one run at a time, on a thread of this kernel.

    Commands return at once and may come from any thread. The traits hold the latest state and are
    set by the dispatcher alone, a few times a second: observe them for a display. Events are
    delivered one by one and none is lost: use `on` where each matters. A function of yours that
    raises is reported in the log and changes nothing else.

    Args:
        execute: where runs execute; by default on a thread of this process.

    Example:
        >>> svc = ot.trainer()
        >>> run = svc.start(job.config)
        >>> svc.observe(lambda change: print(change.new), "state")
    """

    def __init__(self, execute: Execute = ThreadExecutor) -> None:
        super().__init__()
        self._execute = execute
        self._current: LiveRun | None = None
        self._trial_commands: TrainCommands | None = None

    # ---------------------------------------------------------------- commands

    def start(
        self,
        config: TrainConfig,
        *,
        after: Run | None = None,
        budget: str | float | None = None,
        preflight: bool = False,
        auto_stop: bool | Callable[[Run], Any] = False,
    ) -> Run:
        """Start training and give the run, at once; the model loads on the training thread.

        Args:
            config: what to train.
            after: the run that it goes on from; its curves are shown before those of this one.
            budget: time after which the session is cut off, in seconds or as "3h40m". The run
                stops in time to write its backup and its model.
            preflight: make sure that it fits first, see `preflight`; that takes its time.
            auto_stop: called with the run when it is over, however it ended, and all of it is on
                disk; True gives the machine back, see `platform.give_back`.

        Raises:
            CommandRefused: while another run is live.
            ConfigError: if the config cannot run or does not fit, or its workspace cannot be used.
            ValueError: for a budget that is no time span, or too short to save in.
        """
        _check_type("start", config, TrainConfig, "as job.config is")
        seconds = None if budget is None else training_seconds(budget)
        if preflight and not (found := self.preflight(config)).fits:
            raise ConfigError([Problem("batch_size", "error", str(found), "")])
        with self._lock:
            self._refuse_while_live("start")
            if blocking := [p for p in validate(config) if p.severity == "error"]:
                raise ConfigError(blocking)
            live = self._current = LiveRun(config, self.flush, after, self._asked_to_stop)
            self._unfollow()
            self._say(live, e.TrainingState("loading"))
            self._say(live, e.StatusLine("Starting"))
            try:
                live.executor = self._execute(
                    config, lambda event: self._say(live, event), live.commands, live.done
                )
            except BaseException:  # no thread to be had: the workspace must not stay taken
                self._say(live, e.TrainingState("failed"))
                live.done()
                raise
            if seconds is not None:
                _aside("ot-budget", self._end_in, live, seconds)
            if auto_stop:
                _aside(
                    "ot-auto-stop", self._then, live, give_back if auto_stop is True else auto_stop
                )
        self.flush()
        return live.handle

    def preflight(self, config: TrainConfig) -> Preflight:
        """Whether a config can run here, how fast and how long; takes a few steps to find out.

        Nothing of it is kept. It waits for the answer; `stop` from another thread ends it.

        Raises:
            CommandRefused: while a run or another pre-flight is live.
        """
        _check_type("preflight", config, TrainConfig, "as job.config is")
        with self._lock:
            self._refuse_while_live("preflight")
            commands = self._trial_commands = TrainCommands()
        found = None
        try:
            self._tell_trial(True, "Pre-flight")
            found = preflight(config, commands, lambda text: self._say(None, e.StatusLine(text)))
        finally:
            self._trial_commands = None
            self._tell_trial(found, f"Pre-flight: {found or 'interrupted'}")
        return found

    def stop(self) -> None:
        """End the run after this step; a run that loads or caches ends at once, so a pre-flight.

        A run that is live in another process, see `ot.attach`, is asked to end and does so soon.
        One that stops and waits for room on the disk for what it leaves waits no more.

        Raises:
            CommandRefused: if no run is live, or it is stopping already.
        """
        with self._lock:
            if self._trial_commands is not None:
                self._trial_commands.stop()
                return
            if self._follower is not None:
                self._follower.ask_to_stop()
                return
            live = self._current
            if live is not None and live.stopping and live.commands.waiting:
                live.commands.stop()
                return
            live = self._live("stop", LIVE)
            live.commands.stop()
            self._say(live, e.TrainingState("stopping"))

    def pause(self) -> None:
        """Hold the run after this step.

        Raises:
            CommandRefused: if no run is taking steps, or it is paused.
        """
        with self._lock:
            self._live("pause", ("training", "sampling", "saving")).commands.pause()

    def resume(self) -> None:
        """Let a paused run go on.

        Raises:
            CommandRefused: if no run is paused.
        """
        with self._lock:
            live = self._current
            asked = live is not None and live.commands.pause_requested
            self._live("resume", STEPPING if asked else ("paused",)).commands.resume()

    def sample_default(self) -> None:
        """Make the run's samples at the next step boundary.

        Raises:
            CommandRefused: if no run is taking steps.
        """
        with self._lock:
            self._live("sample_default", STEPPING).commands.sample_default()

    def sample(self, definition: SampleConfig) -> None:
        """Make one sample of your own at the next step boundary.

        Raises:
            CommandRefused: if no run is taking steps.
        """
        _check_type("sample", definition, SampleConfig, "such as SampleConfig(prompt='a fox')")
        with self._lock:
            self._live("sample", STEPPING).commands.sample_custom(definition)

    def backup(self) -> None:
        """Write a resumable checkpoint at the next step boundary.

        Raises:
            CommandRefused: if no run is taking steps.
        """
        with self._lock:
            self._live("backup", STEPPING).commands.backup()

    def save(self) -> None:
        """Write the model as it is at the next step boundary.

        Raises:
            CommandRefused: if no run is taking steps.
        """
        with self._lock:
            self._live("save", STEPPING).commands.save()

    def set(self, setting: str, value: Any) -> None:
        """Change a setting of the live run, from its next step on.

        The run answers with a `SettingChanged`.

        Args:
            setting: dotted name, such as "unet.learning_rate".
            value: as the config takes it.

        Raises:
            CommandRefused: if no run is taking steps.
            ConfigError: if the config has no such setting, or not with that value; if it is fixed
                when a run starts, or would change nothing in this one.
        """
        from modules.training.change import change

        with self._lock:
            live = self._live("set", STEPPING)
            before = live.asked if live.commands.pending else live.now
        asked = change(before, setting, value)  # looks at disks: others need not wait for that
        with self._lock:
            live = self._live("set", STEPPING)
            live.asked = asked
            live.commands.set(setting, value)

    def use_model(
        self, use: Use, failed: Callable[[], None] = nothing, *, asked: str = "use_model"
    ) -> threading.Event:
        """Call `use` with the live networks at the next step boundary, on the training thread.

        It must leave them as they are. If the run ends first it is not called; if they cannot be
        brought to the device, `failed` is.

        Args:
            use: called with the family and its networks.
            failed: called where they cannot be lent.
            asked: what needs them, for a refusal to name.

        Returns:
            What is set when the run is over.

        Raises:
            CommandRefused: if no run is taking steps.
        """
        with self._lock:
            live = self._live(asked, STEPPING, of_model=True)
            live.commands.use_model(use, failed)
            return live.ended

    @contextmanager
    def paused(self, timeout: float = 600) -> Iterator[GenericTrainer]:
        """The live trainer, held between two steps; nothing changes unless you change it.

        Args:
            timeout: seconds to wait for the step boundary.

        Raises:
            CommandRefused: if no run is taking steps, or it ends before it can be held.
            TimeoutError: if the step takes longer than `timeout`.

        Example:
            >>> with svc.paused() as trainer:
            ...     print(sum(p.numel() for p in trainer.model.unet.parameters()))
        """
        with self._lock:
            live = self._live("paused()", STEPPING)
            held_already = live.commands.pause_requested
            live.commands.pause()
        try:
            with live.changed:
                wanted = ("paused", *e.ENDED)
                if not live.changed.wait_for(lambda: live.state in wanted, timeout):
                    raise TimeoutError(f"The run is still {live.state} after {timeout} s.")
            trainer = live.executor.trainer if live.executor else None
            if live.state != "paused" or trainer is None:
                raise CommandRefused(f"paused() is refused: the run has {live.state}.")
            yield trainer
        finally:
            if not held_already:
                live.commands.resume()

    @property
    def trainer(self) -> GenericTrainer | None:
        """The live trainer, or None. Use `paused` to read or change it between steps."""
        live = self._current
        return live.executor.trainer if live and live.executor else None

    @property
    def config(self) -> TrainConfig | None:
        """The settings of the live run with what `set` has changed, or None."""
        live = self._current
        return None if live is None or live.state in e.ENDED else live.now

    # ---------------------------------------------------------------- views

    def show(self, run: Run) -> None:
        """Show a run as if it had been watched here: one that is over, or lives elsewhere.

        What a live one says from now on follows about once a second. Of the commands only `stop`
        reaches it.

        Raises:
            CommandRefused: while a run is live here.
        """
        self.flush()
        with self._hub.exclusive(), self._lock:  # in this order, as an observer takes them
            self._refuse_while_live("show")
            self._show_stored(run)

    def close(self) -> None:
        """Deliver everything and let go of the store; for tests and the end of the process."""
        super().close()
        if self._current is not None:
            self._current.store.close()

    # ---------------------------------------------------------------- inside

    def _end_in(self, live: LiveRun, seconds: float) -> None:
        """Stop a run when its time is up; its end writes a backup and the model."""
        if not live.ended.wait(seconds):
            self._end(live, "The session's time is nearly up. The run stops and saves.")

    def _then(self, live: LiveRun, hook: Callable[[Run], Any]) -> None:
        live.ended.wait()
        self.flush()
        self._readers.call(hook, live.handle)

    def _asked_to_stop(self, live: LiveRun) -> None:
        self._end(live, "Another process asked the run to stop.")

    def _end(self, live: LiveRun, reason: str) -> None:
        """Stop a run for a reason that its log should have."""
        if live.stopping or live.state in e.ENDED:
            return
        self._say(live, e.Warned(reason))
        live.commands.stop()
        self._say(live, e.TrainingState("stopping"))

    def _tell_trial(self, trial: Preflight | bool | None, text: str) -> None:
        with self._hub.exclusive():
            self.set_trait("trial", trial)
        self._say(None, e.StatusLine(text))
        self.flush()

    def _refuse_while_live(self, command: str) -> None:
        live = self._current
        if self._trial_commands is not None:
            raise CommandRefused(f"{command} is refused: a pre-flight is live. Stop it, or wait.")
        if live is None or live.executor is None:
            return
        if live.state in e.ENDED and live.executor.join(timeout=60):
            return  # it had only to let go of its memory
        raise CommandRefused(
            f"{command} is refused: a run is {self._state_of(live)} in {live.workspace}. "
            f"Stop it first, or wait for its end."
        )

    def _live(self, command: str, allowed: Sequence[e.State], of_model: bool = False) -> LiveRun:
        """The run, if `command` makes sense in its state."""
        live = self._current
        state = self._state_of(live)
        if self.elsewhere is not None:
            raise CommandRefused(
                f"{command} is refused: this is a view of {self.elsewhere}. Only stop reaches it."
            )
        if live is None or state not in allowed:
            raise refusal(command, state, of_model)
        return live

    @staticmethod
    def _state_of(live: LiveRun | None) -> e.State:
        if live is None:
            return "idle"
        return "stopping" if live.stopping else live.state


def _aside(name: str, task: Callable[..., None], *given: object) -> None:
    threading.Thread(target=task, args=given, name=name, daemon=True).start()


def _check_type(command: str, given: object, wanted: type, example: str) -> None:
    if not isinstance(given, wanted):
        kind = type(given).__name__
        raise TypeError(f"{command}() was given a {kind}. It takes a {wanted.__name__}, {example}.")


if "_service" not in globals():  # `%autoreload` runs this file again; the run must survive it
    _service: TrainerService | None = None
_making = threading.Lock()


def trainer() -> TrainerService:
    """This kernel's trainer: always the same one."""
    global _service  # noqa: PLW0603 - a kernel trains one run, whoever asks
    with _making:
        if _service is None:
            _service = TrainerService()
            atexit.register(_service.close)
        return _service
