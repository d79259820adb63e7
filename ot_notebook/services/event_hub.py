"""The way from the thread that trains to those who look on: a queue and one dispatcher."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

PERIOD = 0.15
"""Seconds between two deliveries: fast enough for an eye, slow enough for a notebook's line."""


class EventHub(Generic[Item]):
    """Delivers what is posted: in order, nothing twice, nothing lost, a few times a second.

    `post` never waits, so a training step costs the same whoever looks on. `flush` delivers at
    once, from any thread; a page that polls uses it where the kernel may not speak unasked.

    Args:
        deliver: receives what was posted since the last time, oldest first and never empty; one
            call at a time. It must not raise: it is the last stop of every error.
        period: seconds between two deliveries.
    """

    def __init__(self, deliver: Callable[[list[Item]], None], period: float = PERIOD) -> None:
        self._deliver = deliver
        self._period = period
        self._pending: deque[Item] = deque()
        self._delivering = threading.RLock()
        self._inside = False
        self._news = threading.Event()
        self._closed = threading.Event()
        self._dispatcher: threading.Thread | None = None
        self._starting = threading.Lock()

    def post(self, item: Item) -> None:
        """Add an item. Returns at once."""
        self._pending.append(item)
        self._news.set()
        if self._dispatcher is None:
            self._start()

    def flush(self) -> None:
        """Deliver all that was posted before this call, as one batch.

        Called by a reader during a delivery it does nothing: a nested delivery would show a later
        reader the newer items first.
        """
        with self._delivering:
            if self._inside:
                return
            self._inside = True
            try:
                if batch := [self._pending.popleft() for _ in range(len(self._pending))]:
                    self._deliver(batch)
            finally:
                self._inside = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A block during which nothing is delivered."""
        with self._delivering:
            yield

    def close(self) -> None:
        """Deliver what is left and end the dispatcher. A later `post` starts a new one."""
        with self._starting:
            dispatcher, self._dispatcher = self._dispatcher, None
            self._closed.set()
        self._news.set()
        if dispatcher is not None and dispatcher is not threading.current_thread():
            dispatcher.join()
        self.flush()
        self.flush()  # what readers said of the last batch

    def _start(self) -> None:
        with self._starting:
            if self._dispatcher is None:
                self._closed.clear()
                self._dispatcher = threading.Thread(
                    target=self._dispatch, name="ot-dispatcher", daemon=True
                )
                self._dispatcher.start()

    def _dispatch(self) -> None:
        while not self._closed.wait(self._period):
            self._news.wait()  # sleeps while nothing happens
            self._news.clear()
            self.flush()
