"""The one way out of the engine: callbacks that receive typed events."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from modules.training.events import EVENT_TYPES, Event, Warned

Callback = Callable[[Any], None]


class TrainCallbacks:
    """Functions that a run calls with its events, on the training thread.

    `on_event` receives every event; `on_<name>` those of one kind: `on_step` each `LossUpdate`,
    `on_sample` each `SampleImage`, and so on for every `name` in `modules.training.events`.

    A callback that raises does not stop the run: the error becomes a `Warned` event, once for each
    distinct message, and the callback is called again next time.

    Raises:
        TypeError: for a keyword that names no event.

    Example:
        >>> TrainCallbacks(on_step=lambda update: print(update.step, update.loss))
    """

    def __init__(self, on_event: Callback | None = None, **by_name: Callback) -> None:
        names = [f"on_{name}" for name in EVENT_TYPES]
        if unknown := sorted(by_name.keys() - names):
            raise TypeError(
                f"{unknown[0]} is no callback of a run. Use on_event for all events, or one of "
                f"{', '.join(names)}."
            )
        self._on_event = on_event
        self._by_type = {EVENT_TYPES[key[3:]]: function for key, function in by_name.items()}
        self._reported: set[str] = set()

    def emit(self, event: Event) -> None:
        """Hand one event to the callbacks that want it."""
        for function in (self._on_event, self._by_type.get(type(event))):
            if function is None:
                continue
            try:
                function(event)
            except Exception as error:  # noqa: BLE001 - a user's function must not stop a run
                self._report(function, error)

    def _report(self, function: Callback, error: Exception) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = (
            f"Callback {getattr(function, '__qualname__', function)} raised "
            f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno}). "
            f"Training goes on; mend the callback to receive its events."
        )
        if message not in self._reported:
            self._reported.add(message)
            self.emit(Warned(message))
