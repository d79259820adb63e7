"""Reads the folders of a training set, and the cache of its run, in threads of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ot_notebook.services.concept_store import ConceptStore
from ot_notebook.widgets import concept_page as page

CACHE_SECONDS = 5.0
"""How often a page that is open asks whether a run has encoded something since."""


class Reading:
    """Keeps a store up to date with its folders and its run's cache.

    Args:
        store: the set.
        lock: held by whoever draws.
        read: called, with the lock held, when the folders were read.
        looked: the same when the cache was looked into.
        failed: told what went wrong, in words.
    """

    def __init__(
        self,
        store: ConceptStore,
        lock: threading.RLock,
        read: Callable[[], None],
        looked: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        self._store, self._lock = store, lock
        self._read, self._looked, self._failed = read, looked, failed
        self._scanner: threading.Thread | None = None
        self._looking: threading.Thread | None = None
        self._looks = False  # one at a time: a run that caches changes its cache all along
        self._times = 0  # that the folders were read
        self._known: tuple[object, ...] = ()  # what the cache was looked into for
        self._asked = 0.0
        self._deaf = False  # whether the cache's drive did not answer: it is told once

    @property
    def scanning(self) -> bool:
        """Whether folders are being read."""
        return self._scanner is not None

    def start(self) -> None:
        """Read what has not been read, and look into a cache that has changed."""
        if not self._store.scanned and self._scanner is None:
            self._scan()
        self._look()

    def ask_again(self) -> None:
        """The same of the cache alone, at most every few seconds: disks may be far away."""
        if time.monotonic() - self._asked > CACHE_SECONDS:
            was = self._deaf
            self._look()
            if self._deaf and not was:
                with self._lock:
                    self._looked()  # which draws what is said of it

    def look_now(self) -> None:
        """Return when it is known how the cache has each image."""
        with self._lock:
            missing, under_way = bool(self._store.rows) and self._to_look(), self._looking
        if missing:
            self._store.look_into_cache()
        elif under_way:
            under_way.join()

    def renewed(self) -> None:
        """The folders were read anew."""
        self._times += 1

    def _scan(self) -> None:
        def read() -> None:
            failed = False
            try:
                self._store.rescan()
            except Exception as error:  # noqa: BLE001 - shown on the page: nobody else hears it
                failed = True
                self._failed(f"The folders could not be read: {error}")
            with self._lock:
                if not failed and not self._store.scanned:
                    self._scan()  # the list changed meanwhile
                    return
                self.renewed()
                self._read()
                self._scanner = None

        self._scanner = threading.Thread(target=read, name="ot-concept-scan", daemon=True)
        self._scanner.start()

    def _look(self) -> None:
        if self._looks or not self._store.scanned or not self._to_look():
            return

        def look() -> None:
            try:
                self._store.look_into_cache()
            except Exception as error:  # noqa: BLE001 - shown on the page: nobody else hears it
                self._failed(f"The cache could not be looked into: {error}")
            with self._lock:
                self._looks = False
                self._looked()  # which draws, and so looks again if more has changed

        self._looks = True
        self._looking = threading.Thread(target=look, name="ot-cache-look", daemon=True)
        self._looking.start()

    def _to_look(self) -> bool:
        """Whether what decides on the cache's keys has changed since it was last asked."""
        self._asked = time.monotonic()
        store = self._store
        try:
            changed = page.cache_stamp(store.run.cache_dir)
        except OSError as error:
            if not self._deaf:
                self._failed(f"The cache could not be looked into: {error}")
            self._deaf = True
            return False
        self._deaf = False
        now = self._times, store.concepts, store.run, changed
        before, self._known = self._known, now
        return bool(changed) and now != before
