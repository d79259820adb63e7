"""Functions of others that are told of news; one that raises is reported and harms nobody."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from modules.training import events as e

Reader = Callable[[Sequence[e.Event]], None]
Handler = Callable[[Any], None]


@dataclass
class _Registered:
    kind: type[Any]
    every: int
    function: Handler
    seen: int = 0


class Readers:
    """Those who are told, in the order in which they came.

    Args:
        warn: receives a text about a function that raised, once for each distinct text.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._of_batches: list[Reader] = []
        self._of_events: list[_Registered] = []
        self._warned: set[str] = set()

    def add(self, reader: Reader) -> Callable[[], None]:
        """Tell `reader` of each batch; the function that is returned ends it."""
        self._of_batches = [*self._of_batches, reader]

        def remove() -> None:
            self._of_batches = [other for other in self._of_batches if other is not reader]

        return remove

    def on(self, event: type[Any] | str, every: int) -> Callable[[Handler], Handler]:
        """Decorator: tell the function of each event of a kind.

        Raises:
            ValueError: for a name that no event has, or `every` below 1.
        """
        kind = e.EVENT_TYPES.get(event) if isinstance(event, str) else event
        if kind is None or kind not in e.EVENT_TYPES.values():
            raise ValueError(f"{event!r} is no event. Use one of {', '.join(e.EVENT_TYPES)}.")
        if every < 1:
            raise ValueError(f"every is {every}, but must be 1 or more.")

        def register(function: Handler) -> Handler:
            self._of_events = [*self._of_events, _Registered(kind, every, function)]
            return function

        return register

    def remove(self, function: Handler) -> None:
        """End what `on` began."""
        self._of_events = [each for each in self._of_events if each.function is not function]

    def tell(self, events: Sequence[e.Event]) -> None:
        """A batch, and then its events one by one."""
        for reader in self._of_batches:
            self.call(reader, events)
        for event in events:
            for each in self._of_events:
                if type(event) is not each.kind:
                    continue
                each.seen += 1
                count = event.step if isinstance(event, (e.LossUpdate, e.Progress)) else each.seen
                if count % each.every == 0:
                    self.call(each.function, event)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function of somebody else."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - a user's function must change nothing else
            where = traceback.extract_tb(error.__traceback__)[-1]
            name = getattr(function, "__qualname__", repr(function))
            self.warn(
                f"Observer {name} raised {type(error).__name__}: {error} ({where.filename}, line "
                f"{where.lineno}). Nothing else is affected; mend it to receive what it asked for."
            )

    def warn(self, message: str) -> None:
        """Report something once, until `forget`."""
        if message not in self._warned:
            self._warned.add(message)
            self._warn(message)

    def forget(self) -> None:
        """A new run: what was reported before may be reported again."""
        self._warned.clear()

    def guarded(self, function: Handler) -> Handler:
        """`function` such that its errors are reported; equal to it, so that it is found again."""
        return _Guarded(function, self)


class _Guarded:
    def __init__(self, function: Handler, readers: Readers) -> None:
        self._function, self._readers = function, readers

    def __call__(self, change: Any) -> None:
        self._readers.call(self._function, change)

    def __eq__(self, other: object) -> bool:
        return self._function == (other._function if isinstance(other, _Guarded) else other)

    def __hash__(self) -> int:
        return hash(self._function)
