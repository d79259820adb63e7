"""This kernel's trainer: start a run, steer it from any thread, and see what it does."""

from __future__ import annotations

import atexit
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import traitlets as t

from modules.config import ConfigError, Problem, SampleConfig, TrainConfig, validate
from modules.config.paths import resolve
from modules.training import events as e
from modules.training.commands import TrainCommands
from ot_notebook.services.event_hub import EventHub
from ot_notebook.services.executors import Execute, Executor
from ot_notebook.services.executors.thread import ThreadExecutor
from ot_notebook.services.history import History
from ot_notebook.services.run import Run
from ot_notebook.services.run_store import FILE, RunStore, StoreError

if TYPE_CHECKING:
    from modules.training.trainer import GenericTrainer

Reader = Callable[[Sequence[e.Event]], None]
Handler = Callable[[Any], None]

LIVE: tuple[e.State, ...] = ("loading", "caching", "training", "paused", "sampling", "saving")
STEPPING: tuple[e.State, ...] = ("training", "paused", "sampling", "saving")

_UNTIL_STOP = ("loading", "caching", "training", "paused", "sampling")
"""States that mean nothing once a stop is asked for: the trainer was on its way into them."""

MAX_UNSAVED = 200_000
"""Events kept in memory while `run.db` cannot be written."""


class CommandRefused(RuntimeError):  # noqa: N818 - an answer, not a defect
    """A command that makes no sense in the state the run is in; the text says why."""


@dataclass(frozen=True, slots=True)
class _Said:
    """An event with its run and time, on its way to the dispatcher."""

    run: _LiveRun | None
    time: float
    event: e.Event


class _LiveRun:
    """What the service holds of a run while it is live."""

    def __init__(self, config: TrainConfig, store: RunStore) -> None:
        self.config, self.store = config, store
        self.id = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(2)}"
        self.commands = TrainCommands()
        self.state: e.State = "loading"
        """The state that the training thread is in; the trait follows with the next delivery."""
        self.changed = threading.Condition()
        self.ended = threading.Event()
        self.executor: Executor | None = None
        self.handle: Run
        self.unsaved: list[tuple[float, e.Event]] = []


class TrainerService(t.HasTraits):
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

    state = t.Enum(get_args(e.State), "idle", read_only=True, help="What the run is doing.")
    status = t.Unicode("", read_only=True, help="The same in words.")
    task = t.Any(None, read_only=True, help="`TaskProgress` of what is not a step, or None.")
    progress = t.Any(None, read_only=True, help="Latest `Progress`: all of the numbers below.")
    step = t.Int(0, read_only=True, help="Optimizer steps done.")
    max_step = t.Int(0, read_only=True, help="Optimizer steps of the whole run.")
    epoch = t.Int(0, read_only=True, help="Current epoch, from 1.")
    max_epoch = t.Int(0, read_only=True, help="Epochs of the whole run.")
    epoch_step = t.Int(0, read_only=True, help="Batches of the epoch done.")
    max_epoch_step = t.Int(0, read_only=True, help="Batches of the epoch.")
    loss = t.Float(None, allow_none=True, read_only=True, help="Loss of the last step.")
    smooth_loss = t.Float(None, allow_none=True, read_only=True, help="Its moving average.")
    learning_rate = t.Float(None, allow_none=True, read_only=True, help="Largest of all parts.")
    steps_per_second = t.Float(None, allow_none=True, read_only=True, help="Over 20 steps.")
    seconds_left = t.Float(None, allow_none=True, read_only=True, help="Until the last step.")
    error = t.Any(None, read_only=True, help="`RunFailed` of a run that failed, or None.")
    run = t.Any(None, read_only=True, help="The `Run` that is shown, or None.")

    def __init__(self, execute: Execute = ThreadExecutor) -> None:
        super().__init__()
        self._execute = execute
        self.history = History()
        """Curves, samples and log of the run that is shown."""
        self._lock = threading.RLock()  # one command at a time
        self._current: _LiveRun | None = None
        self._shown: _LiveRun | None = None
        self._readers: list[Reader] = []
        self._handlers: list[tuple[type[e.Event] | None, int, Handler, list[int]]] = []
        self._reported: set[str] = set()
        self._hub: EventHub[_Said] = EventHub(self._deliver)

    # ---------------------------------------------------------------- commands

    def start(self, config: TrainConfig) -> Run:
        """Start training and give the run, at once; the model loads on the training thread.

        Raises:
            CommandRefused: while another run is live.
            ConfigError: if the config cannot run, or its workspace cannot be used.
        """
        _check_type("start", config, TrainConfig, "as job.config is")
        with self._lock:
            self._refuse_while_live()
            if blocking := [p for p in validate(config) if p.severity == "error"]:
                raise ConfigError(blocking)
            live = _LiveRun(config, _open_store(config))
            live.handle = Run(live.id, live.store, self.flush, live.ended)
            try:
                live.store.begin(live.id, config.to_dict(), time.time())
            except StoreError as error:
                raise ConfigError([_workspace_problem(str(error), "")]) from error
            self._current = live
            self._say(live, e.TrainingState("loading"))
            self._say(live, e.StatusLine("Starting"))
            live.executor = self._execute(
                config, lambda event: self._say(live, event), live.commands, live.ended.set
            )
        self.flush()
        return live.handle

    def stop(self) -> None:
        """End the run after this step; a run that loads or caches ends at once.

        Raises:
            CommandRefused: if no run is live, or it is stopping already.
        """
        with self._lock:
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

        The run answers with a `SettingChanged`, or with a warning that says why it cannot be.

        Args:
            setting: dotted name, such as "unet.learning_rate".
            value: as the config takes it.

        Raises:
            CommandRefused: if no run is taking steps.
            ConfigError: if the config has no such setting, or not with that value.
        """
        with self._lock:
            live = self._live("set", STEPPING)
            live.config.update(**{setting: value})  # only to find out now what would be refused
            live.commands.set(setting, value)

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

    # ---------------------------------------------------------------- readers

    def subscribe(self, reader: Reader) -> Callable[[], None]:
        """Call `reader` with each batch of events, a few times a second, after the traits are set.

        It is called on the dispatcher's thread, or on that of a `flush`.

        Returns:
            A function that ends it.
        """
        self._readers = [*self._readers, reader]

        def unsubscribe() -> None:
            self._readers = [other for other in self._readers if other is not reader]

        return unsubscribe

    def on(self, event: type[Any] | str, every: int = 1) -> Callable[[Handler], Handler]:
        """Decorator: call the function with each event of a kind, none left out.

        Args:
            event: a class of `ot.events`, or its name: "step", "progress", "sample", "state", ...
            every: for steps, only those that this divides; for others, each so many.

        Raises:
            ValueError: for a name that no event has, or `every` below 1.

        Example:
            >>> @svc.on("step", every=50)
            ... def show(update):
            ...     print(update.step, update.smooth_loss)
        """
        kind = e.EVENT_TYPES.get(event) if isinstance(event, str) else event
        if kind not in e.EVENT_TYPES.values():
            raise ValueError(f"{event!r} is no event. Use one of {', '.join(e.EVENT_TYPES)}.")
        if every < 1:
            raise ValueError(f"every is {every}, but must be 1 or more.")

        def register(function: Handler) -> Handler:
            self._handlers = [*self._handlers, (kind, every, function, [0])]
            return function

        return register

    def off(self, function: Handler) -> None:
        """End what `on` began for a function."""
        self._handlers = [each for each in self._handlers if each[2] is not function]

    def observe(self, handler: Handler, names: Any = t.All, type: str = "change") -> None:  # noqa: A002
        """Call `handler` when traits change; see traitlets. If it raises, that is reported."""
        super().observe(_Guarded(handler, self._report), names, type)

    def flush(self) -> None:
        """Bring traits, store and readers up to date now, from any thread."""
        self._hub.flush()

    def close(self) -> None:
        """Deliver everything and let go of the store; for tests and the end of the process."""
        self._hub.close()
        if self._current is not None:
            self._current.store.close()

    # ---------------------------------------------------------------- inside

    def _refuse_while_live(self) -> None:
        live = self._current
        if live is None or live.executor is None:
            return
        if live.state in e.ENDED and live.executor.join(timeout=60):
            return  # it had only to let go of its memory
        raise CommandRefused(
            f"start is refused: a run is {self._state_of(live)} in {live.store.path.parent}. "
            f"Stop it first, or wait for its end."
        )

    def _live(self, command: str, allowed: Sequence[e.State]) -> _LiveRun:
        """The run, if `command` makes sense in its state."""
        live = self._current
        state = self._state_of(live)
        if live is None or state not in allowed:
            reason = {
                "idle": "no run has been started. Start one with start(config)",
                "stopping": "the run is stopping. Wait for its end",
                "paused": "the run is paused already",
                "loading": "the model is loading; no step has been taken. Wait, or stop the run",
                "caching": "the training set is being cached; no step has been taken. Wait, or "
                "stop the run",
            }.get(state, f"the run has {state}. Start another with start(config)")
            if command == "resume" and state in STEPPING:
                reason = "the run is not paused"
            raise CommandRefused(f"{command} is refused: {reason}.")
        return live

    @staticmethod
    def _state_of(live: _LiveRun | None) -> e.State:
        if live is None:
            return "idle"
        if live.state not in e.ENDED and live.commands.stop_requested:
            return "stopping"
        return live.state

    def _say(self, live: _LiveRun | None, event: e.Event) -> None:
        """Queue an event, and note the state it brings. Mostly on the training thread."""
        if isinstance(event, (e.SampleImage, e.BackupCreated, e.ModelSaved)):
            event = replace(event, path=event.path.absolute())  # before a cell changes the folder
        if live is None or not isinstance(event, e.TrainingState):
            self._hub.post(_Said(live, time.time(), event))
            return
        with live.changed:  # so that states are queued in the order in which they were entered
            ended = live.state in e.ENDED
            overtaken = live.commands.stop_requested and event.state in _UNTIL_STOP
            if ended or overtaken:
                return
            live.state = event.state
            live.changed.notify_all()
            self._hub.post(_Said(live, time.time(), event))

    def _deliver(self, batch: list[_Said]) -> None:
        """Store, then traits, then readers. The one writer of all three."""
        for said in _by_run(batch):
            self._call(self._take_in, said)
        events = [one.event for one in batch]
        for reader in self._readers:
            self._call(reader, events)
        for event in events:
            for kind, every, function, seen in self._handlers:
                if type(event) is not kind:
                    continue
                seen[0] += 1
                count = event.step if isinstance(event, (e.LossUpdate, e.Progress)) else seen[0]
                if count % every == 0:
                    self._call(function, event)

    def _take_in(self, said: Sequence[_Said]) -> None:
        """Events of one run: into its store, its history and the traits."""
        live = said[0].run
        if live is not None:
            if live is not self._shown:
                self._show(live)
            self._keep(live, said)
        for one in said:
            self.history.add(one.event, one.time)
        self._set_traits([one.event for one in said])

    def _show(self, live: _LiveRun) -> None:
        """Turn to a new run."""
        self._shown = live
        self.history = History(self.history.next_line)
        self._reported.clear()
        for name, trait in self.traits().items():
            if name not in ("state", "run"):
                self.set_trait(name, trait.default_value)
        self.set_trait("run", live.handle)

    def _keep(self, live: _LiveRun, said: Sequence[_Said]) -> None:
        """Write to the store; what it does not take is tried again with the next batch."""
        live.unsaved += [(one.time, one.event) for one in said]
        try:
            live.store.append(live.id, live.unsaved)
            live.unsaved = []
            if live.state in e.ENDED:
                live.store.close()  # a later event opens it again
        except (StoreError, KeyError) as error:
            del live.unsaved[:-MAX_UNSAVED]
            self._warn_once(f"The run's history is not being saved: {error} Training goes on.")

    def _set_traits(self, events: Sequence[e.Event]) -> None:
        """The latest state of a batch. Numbers come before the state that they led to."""
        latest: e.Progress | None = None
        for event in events:
            match event:
                case e.Progress():
                    latest = event
                case e.TaskProgress():
                    self.set_trait("task", event)
                case e.StatusLine(text):
                    self.set_trait("status", text)
                case e.RunFailed():
                    self.set_trait("error", event)
                case e.TrainingState(state):
                    self._set_numbers(latest)
                    latest = None
                    if self.task is not None and self.task.task != state:
                        self.set_trait("task", None)
                    self.set_trait("state", state)
        self._set_numbers(latest)

    def _set_numbers(self, progress: e.Progress | None) -> None:
        if progress is None:
            return
        for name in (field.name for field in fields(e.Progress)):
            self.set_trait(name, getattr(progress, name))
        self.set_trait("progress", progress)

    def _call(self, function: Callable[[Any], None], argument: Any) -> None:
        try:
            function(argument)
        except Exception as error:  # noqa: BLE001 - a user's function must change nothing else
            self._report(function, error)

    def _report(self, function: Handler, error: Exception) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        name = getattr(function, "__qualname__", repr(function))
        self._warn_once(
            f"Observer {name} raised {type(error).__name__}: {error} ({where.filename}, line "
            f"{where.lineno}). Nothing else is affected; mend it to receive what it asked for."
        )

    def _warn_once(self, message: str) -> None:
        if message not in self._reported:
            self._reported.add(message)
            self._say(self._shown, e.Warned(message))


class _Guarded:
    """A trait observer whose errors are reported; equal to it, so that `unobserve` finds it."""

    def __init__(self, function: Handler, report: Callable[[Handler, Exception], None]) -> None:
        self._function, self._report = function, report

    def __call__(self, change: Any) -> None:
        try:
            self._function(change)
        except Exception as error:  # noqa: BLE001 - a user's function must change nothing else
            self._report(self._function, error)

    def __eq__(self, other: object) -> bool:
        return self._function == (other._function if isinstance(other, _Guarded) else other)

    def __hash__(self) -> int:
        return hash(self._function)


def _by_run(batch: Sequence[_Said]) -> list[list[_Said]]:
    """Consecutive events of one run."""
    return [list(group) for _, group in groupby(batch, key=lambda said: id(said.run))]


def _check_type(command: str, given: object, wanted: type, example: str) -> None:
    if not isinstance(given, wanted):
        kind = type(given).__name__
        raise TypeError(f"{command}() was given a {kind}. It takes a {wanted.__name__}, {example}.")


def _open_store(config: TrainConfig) -> RunStore:
    workspace = Path(resolve(config.workspace_dir))
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            [_workspace_problem(f"{workspace} cannot be made: {error}.", "Choose another folder.")]
        ) from error
    return RunStore(workspace / FILE)


def _workspace_problem(message: str, fix: str) -> Problem:
    return Problem(field="workspace_dir", severity="error", message=message, fix=fix)


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
