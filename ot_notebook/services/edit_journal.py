"""Changes to a user's files that can be taken back, also after a restart.

A journal is one SQLite file. What files held before and what they are to hold is in it, on the
disk, before the first of them is touched. So a change is whole or has not happened, whenever the
process dies, and `undo` needs nothing but the journal.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from modules.atomic import atomic_file

APPLICATION = 0x4F54454A
"""SQLite's application_id of our files: "OTEJ"."""

KEPT_BYTES = 512 * 2**20
"""Size beyond which the oldest changes are forgotten."""

FLUSHED_SINGLY = 16
"""Files that are flushed to the disk one by one; more of them at once, which is far faster."""

SCHEMA = """
CREATE TABLE changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, label TEXT NOT NULL,
    state TEXT NOT NULL
);
CREATE TABLE files (
    change INTEGER NOT NULL REFERENCES changes (id) ON DELETE CASCADE, path BLOB NOT NULL,
    old BLOB, new BLOB
);
CREATE INDEX files_of_change ON files (change);
"""
# states: "begun" while files are written, then "done" or "undone"


@dataclass(frozen=True)
class Change:
    """One entry of a journal.

    Attributes:
        id: its number.
        time: when it was made, in seconds since 1970.
        label: what it is, in words.
        paths: the files that it changed.
    """

    id: int
    time: float
    label: str
    paths: tuple[Path, ...]


def usual_place() -> Path:
    """The journal of this user; `OT_NOTEBOOK_DATA` names another folder for it."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(os.environ.get("OT_NOTEBOOK_DATA") or Path(data) / "ot_notebook") / "edits.db"


class EditJournal:
    """Writes files, and takes it back.

    Args:
        path: the journal's file; made on the first change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(f"{path}.lock")

    def write(
        self,
        files: Mapping[Path, bytes | None],
        label: str,
        report: Callable[[int, int], None] | None = None,
    ) -> Change:
        """Give `files` new content, or remove those whose content is None: all or none.

        Args:
            files: content by path.
            label: what the change is, in words.
            report: hears how many files of how many are written.

        Raises:
            OSError: if one of them cannot be written; the others are as they were then.
        """
        with self._open() as database:
            rows = [(path, read(path), new) for path, new in files.items()]
            with database:
                cursor = database.execute(
                    "INSERT INTO changes (time, label, state) VALUES (?, ?, 'begun')",
                    (time.time(), label),
                )
                number = int(cursor.lastrowid or 0)
                database.executemany(
                    "INSERT INTO files VALUES (?, ?, ?, ?)",
                    ((number, os.fsencode(path), old, new) for path, old, new in rows),
                )
            self._put(database, number, rows, "done", report)
            with database:
                self._forget_undone(database, number)
                self._prune(database)
            return self._change(database, number)

    def undo(self, mine: Callable[[Path], bool], force: bool = False) -> Change:
        """Take back the latest change that touches files of `mine`.

        Args:
            mine: whether a file belongs to who asks.
            force: also undo where a file was changed outside since; that content is kept as a
                change of its own.

        Raises:
            ValueError: if there is nothing to undo, or a file was changed outside since.
            OSError: if a file cannot be written; nothing is changed then.
        """
        return self._turn("done", "undone", mine, force)

    def redo(self, mine: Callable[[Path], bool], force: bool = False) -> Change:
        """Make again what was undone last; see `undo`."""
        return self._turn("undone", "done", mine, force)

    def can(self, mine: Callable[[Path], bool]) -> tuple[str, str]:
        """Labels of what `undo` and `redo` would do; empty where there is nothing."""
        if not self.path.exists():
            return "", ""
        with self._open() as database:
            found = [self._latest(database, state, mine) for state in ("done", "undone")]
            return tuple(change.label if change else "" for change in found)  # type: ignore[return-value]

    def changes(self) -> list[Change]:
        """What was done and not undone, oldest first."""
        if not self.path.exists():
            return []
        with self._open() as database:
            query = "SELECT id FROM changes WHERE state = 'done' ORDER BY id"
            return [self._change(database, number) for (number,) in database.execute(query)]

    def _turn(self, state: str, then: str, mine: Callable[[Path], bool], force: bool) -> Change:
        word = "undo" if then == "undone" else "redo"
        if not self.path.exists():
            raise ValueError(f"There is nothing to {word}.")
        with self._open() as database:
            change = self._latest(database, state, mine)
            if change is None:
                raise ValueError(f"There is nothing to {word}.")
            rows = _rows(database, change.id)
            if then == "undone":
                rows = [(path, new, old) for path, old, new in rows]
            outside = {path: there for path, there, _ in rows if read(path) != there}
            if outside and not force:
                path = next(iter(outside))
                more = f" and {len(outside) - 1} more were" if len(outside) > 1 else " was"
                raise ValueError(
                    f"{path.name}{more} changed outside the editor after “{change.label}”. "
                    f"To {word} anyway, use {word}(force=True); what is there now is kept, too."
                )
            if outside:
                self._keep(database, {path: read(path) for path in outside}, rows)
            self._put(database, change.id, rows, then, None)
            return change

    def _keep(
        self,
        database: sqlite3.Connection,
        found: Mapping[Path, bytes | None],
        rows: Sequence[tuple[Path, bytes | None, bytes | None]],
    ) -> None:
        """Note content that others wrote, in an undone change that `redo` brings back."""
        new = {path: after for path, _, after in rows}
        with database:
            cursor = database.execute(
                "INSERT INTO changes (time, label, state) VALUES (?, ?, 'undone')",
                (time.time(), "changes from outside"),
            )
            database.executemany(
                "INSERT INTO files VALUES (?, ?, ?, ?)",
                (
                    (cursor.lastrowid, os.fsencode(path), new[path], there)
                    for path, there in found.items()
                ),
            )

    @staticmethod
    def _put(
        database: sqlite3.Connection,
        number: int,
        rows: Sequence[tuple[Path, bytes | None, bytes | None]],
        state: str,
        report: Callable[[int, int], None] | None,
    ) -> None:
        """Write the files of a change; where one fails, bring back those before it."""
        flush = len(rows) <= FLUSHED_SINGLY or not hasattr(os, "sync")
        before = database.execute("SELECT state FROM changes WHERE id = ?", (number,)).fetchone()
        _set_state(database, number, "begun")
        for count, (path, _, new) in enumerate(rows):
            try:
                _write(path, new, flush)
            except OSError:
                for earlier, old, _ in rows[:count]:
                    _write(earlier, old)
                if before == ("begun",):
                    with database:
                        database.execute("DELETE FROM changes WHERE id = ?", (number,))
                else:
                    _set_state(database, number, before[0])
                raise
            if report:
                report(count + 1, len(rows))
        if not flush:
            os.sync()
        _set_state(database, number, state)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The database, to one process at a time; what a killed one left is cleaned up."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, closing(sqlite3.connect(self.path)) as database:
            database.execute("PRAGMA foreign_keys = ON")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if not version:
                with database:
                    database.executescript(
                        f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = 1; {SCHEMA}"
                    )
            self._recover(database)
            yield database

    @staticmethod
    def _recover(database: sqlite3.Connection) -> None:
        """Take back changes in whose middle a process died, wherever their files are ours still."""
        begun = database.execute("SELECT id FROM changes WHERE state = 'begun'").fetchall()
        for (number,) in begun:
            for path, old, new in _rows(database, number):
                there = read(path)
                whole_or_torn = there == new or (
                    there is not None
                    and any(text and text.startswith(there) for text in (old, new))
                )
                if whole_or_torn:
                    _write(path, old)
            _set_state(database, number, "undone")

    @staticmethod
    def _latest(
        database: sqlite3.Connection, state: str, mine: Callable[[Path], bool]
    ) -> Change | None:
        order = "DESC" if state == "done" else "ASC"  # what was undone last comes first
        query = f"SELECT id FROM changes WHERE state = ? ORDER BY id {order}"  # noqa: S608 - ours
        for (number,) in database.execute(query, (state,)).fetchall():
            first = database.execute(
                "SELECT path FROM files WHERE change = ? LIMIT 1", (number,)
            ).fetchone()
            if first and mine(Path(os.fsdecode(first[0]))):
                return EditJournal._change(database, number)
        return None

    @staticmethod
    def _change(database: sqlite3.Connection, number: int) -> Change:
        made, label = database.execute(
            "SELECT time, label FROM changes WHERE id = ?", (number,)
        ).fetchone()
        paths = database.execute("SELECT path FROM files WHERE change = ?", (number,))
        return Change(number, made, label, tuple(Path(os.fsdecode(path)) for (path,) in paths))

    @staticmethod
    def _forget_undone(database: sqlite3.Connection, number: int) -> None:
        """After a new change, what was undone of the same folders cannot be made again."""
        folders = {path.parent for path, _, _ in _rows(database, number)}
        undone = database.execute("SELECT id FROM changes WHERE state = 'undone'").fetchall()
        for (other,) in undone:
            if folders & {path.parent for path, _, _ in _rows(database, other)}:
                database.execute("DELETE FROM changes WHERE id = ?", (other,))

    @staticmethod
    def _prune(database: sqlite3.Connection) -> None:
        """Forget the oldest changes while the journal is too large; never the latest."""
        sizes = database.execute(
            "SELECT change, SUM(COALESCE(LENGTH(old), 0) + COALESCE(LENGTH(new), 0)) "
            "FROM files GROUP BY change ORDER BY change DESC"
        ).fetchall()
        total = 0
        for place, (number, size) in enumerate(sizes):
            total += size
            if total > KEPT_BYTES and place:
                database.execute("DELETE FROM changes WHERE id = ?", (number,))


def read(path: Path) -> bytes | None:
    """What a file holds, None if it does not exist, or could not by the length of its name."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def _rows(
    database: sqlite3.Connection, number: int
) -> list[tuple[Path, bytes | None, bytes | None]]:
    found = database.execute("SELECT path, old, new FROM files WHERE change = ?", (number,))
    return [(Path(os.fsdecode(path)), old, new) for path, old, new in found]


def _set_state(database: sqlite3.Connection, number: int, state: str) -> None:
    with database:
        database.execute("UPDATE changes SET state = ? WHERE id = ?", (state, number))


def _write(path: Path, content: bytes | None, flush: bool = True) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    try:
        with atomic_file(path, flush=flush) as temporary:
            temporary.write_bytes(content)
    except OSError as error:  # which may name the temporary file beside it
        raise OSError(error.errno, error.strerror, str(path)) from error
