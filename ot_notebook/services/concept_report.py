"""The report on a training set: read anew from its folders, without anybody waiting for it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from modules.data import scan
from modules.data.report import DataReport, report, undecodable
from ot_notebook.services.caption_tokens import counter
from ot_notebook.services.concept_insight import BROKEN
from ot_notebook.services.concept_store import ConceptStore


def report_on(store: ConceptStore) -> DataReport:
    """What there is, how it would be cut, how long captions are, and everything that is wrong.

    Images that look the same, and those that break behind their beginning, are in it once somebody
    has looked at each: `annotate.duplicates`.

    Raises:
        ValueError, ConfigError: if a resolution is none.
    """
    run = store.run
    place, films = run.listed
    found = scan(store.concepts, place, films)
    counts = counter(run.model, run.tokens) if run.model else None
    made = report(
        found,
        run.framing,
        (lambda texts: [counts.count(text) for text in texts]) if counts else None,
        counts.limit if counts else None,
        duplicates=False,
    )
    rows = store.rows if store.scanned else []
    broken = [str(row.path) for row in rows if row.item and BROKEN in row.problems]
    return replace(made, duplicates=_twins(store), problems=made.problems + undecodable(broken))


class LatestReport:
    """A report that is made in a thread when it is asked for, and told when it is ready.

    Args:
        store: the set.
        done: called when one is ready.
    """

    def __init__(self, store: ConceptStore, done: Callable[[], None]) -> None:
        self._store, self._done = store, done
        self._lock = threading.Lock()
        self._made: tuple[object, DataReport | None, str] | None = None
        self._making = False

    def get(self, version: object) -> tuple[DataReport | None, str] | None:
        """The report on the set of that version and what went wrong; None while it is made."""
        with self._lock:
            if self._made is not None and self._made[0] == version:
                return self._made[1:]
            if not self._making:  # one at a time: a set that changes all along is asked for again
                self._making = True
                threading.Thread(
                    target=self._make, args=(version,), name="ot-concept-report", daemon=True
                ).start()
            return None

    def _make(self, version: object) -> None:
        made, why = None, ""
        try:
            made = report_on(self._store)
        except Exception as error:  # noqa: BLE001 - shown on the page: nobody else hears it
            why = str(error)
        with self._lock:
            self._made, self._making = (version, made, why), False
        self._done()


def _twins(store: ConceptStore) -> tuple[tuple[str, ...], ...]:
    groups: dict[int, list[str]] = defaultdict(list)
    for row in store.rows if store.scanned else ():
        if row.twins:
            groups[row.twins].append(str(row.path))
    return tuple(map(tuple, groups.values()))
