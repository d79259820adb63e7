"""What a `run.db` is: its tables, and how one of ours is told from another file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

FILE = "run.db"

APPLICATION = 0x4F544E42
"""SQLite's application_id of our files: "OTNB"."""

VERSION = 2

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, started REAL NOT NULL, ended REAL,
    state TEXT NOT NULL, config TEXT NOT NULL, parent TEXT
);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, run INTEGER NOT NULL, time REAL NOT NULL, name TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_run ON events (run, name);
CREATE TABLE IF NOT EXISTS metrics (
    run INTEGER NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL,
    epoch INTEGER, max_step INTEGER, max_epoch INTEGER, epoch_step INTEGER, max_epoch_step INTEGER,
    loss REAL, smooth_loss REAL, learning_rate REAL, grad_norm REAL,
    images_per_second REAL, peak_memory INTEGER, steps_per_second REAL, seconds_left REAL,
    learning_rates TEXT, corrected_loss REAL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS curves (
    run INTEGER NOT NULL, name TEXT NOT NULL, last_step INTEGER NOT NULL,
    steps BLOB NOT NULL, "values" BLOB NOT NULL, PRIMARY KEY (run, name)
);
"""


class StoreError(RuntimeError):
    """A `run.db` that cannot be used; the text names it and says what to do."""


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is not ours, before anything in it is touched.

    One of an older version is read as if it were of this one; `upgrade` makes it so.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise StoreError(
            f"{path} is a database of another program. Move it away, or choose another "
            f"workspace_dir; nothing in it was changed."
        )
    if version == 1:
        connection.execute(
            "CREATE TEMP VIEW metrics AS SELECT *, NULL AS corrected_loss FROM main.metrics"
        )
    elif version != VERSION:
        raise StoreError(
            f"{path} has format {version}; this version of ot_notebook reads {VERSION}. Use the "
            f"version that wrote it, or choose another workspace_dir."
        )


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring a file of an older version up to this one, before it is checked and written to.

    Of several processes that do so at once, one does and the others wait for it.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION or _version(connection) != 1:
        return
    with connection:  # commits, or takes all of it back
        connection.execute("BEGIN IMMEDIATE")
        if _version(connection) == 1:  # still, now that nobody else writes
            connection.execute("ALTER TABLE metrics ADD COLUMN corrected_loss REAL")
            connection.execute(f"PRAGMA user_version = {VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
