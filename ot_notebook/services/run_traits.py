"""The latest state of a run as traits, and its events one by one: what views hear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, get_args

import traitlets as t

from modules.training import events as e
from ot_notebook.services.readers import Handler, Reader, Readers


class RunTraits(t.HasTraits):
    """What is shown of a run, and who is told of it.

    Read-only for others: whoever delivers a run's events calls the methods at the end.

    Args:
        warn: receives a text about a function that was told and raised.
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
    elsewhere = t.Any(
        None, read_only=True, help="`Beat` of the other process that the run is live in, or None."
    )
    trial = t.Any(None, read_only=True, help="Last `Preflight`, True while one runs, or None.")
    run = t.Any(None, read_only=True, help="The `Run` that is shown, or None.")

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__()
        self._readers = Readers(warn)

    # ---------------------------------------------------------------- readers

    def subscribe(self, reader: Reader) -> Callable[[], None]:
        """Call `reader` with each batch of events, a few times a second, after the traits are set.

        It is called on the dispatcher's thread, or on that of a `flush`.

        Returns:
            A function that ends it.
        """
        return self._readers.add(reader)

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
        return self._readers.on(event, every)

    def off(self, function: Handler) -> None:
        """End what `on` began for a function."""
        self._readers.remove(function)

    def observe(self, handler: Handler, names: Any = t.All, type: str = "change") -> None:  # noqa: A002
        """Call `handler` when traits change; see traitlets. If it raises, that is reported."""
        super().observe(self._readers.guarded(handler), names, type)

    # ---------------------------------------------------------------- for the dispatcher

    def _forget(self, run: Any) -> None:
        """Turn to another run: nothing of the one before stays but its state."""
        for name, trait in self.traits().items():
            if name not in ("state", "run"):
                self.set_trait(name, trait.default_value)
        self.set_trait("run", run)

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
