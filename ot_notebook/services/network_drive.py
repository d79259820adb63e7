"""Databases on network drives: worked on locally, and copied there whole.

SQLite needs locks and shared memory that network file systems and mounted cloud drives lack or only
pretend to have; a database that is written to in place there is damaged sooner or later.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

from modules.atomic import atomic_file

MOUNTS = Path("/proc/self/mounts")

NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "fuse",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "gpfs",
    "vboxsf",
)
"""File systems whose names begin so; cloud drives are mounted through FUSE."""

SECONDS = 30.0
"""Shortest time between two copies; a process that is killed loses at most what came since."""

SHARE = 0.05
"""Most of the time that copying may take: a large file is copied less often."""


def is_network(folder: Path, mounts: Path = MOUNTS) -> bool:
    """Whether a folder lies on a network drive; False where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    place, kind = Path("/"), ""
    for line in lines:
        fields = line.split(" ")
        point = Path(fields[1].replace("\\040", " ")) if len(fields) > 2 else Path("/")
        if folder.resolve().is_relative_to(point) and len(point.parts) >= len(place.parts):
            place, kind = point, fields[2] if len(fields) > 2 else ""
    return kind.startswith(NETWORK)


class LocalCopy:
    """A database that lives on this machine and is copied to `path`.

    Args:
        path: where it belongs.
    """

    def __init__(self, path: Path) -> None:
        name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        user = os.getuid() if hasattr(os, "getuid") else 0
        self.file = Path(tempfile.gettempdir()) / f"ot-notebook-{user}" / f"{name}-{path.name}"
        """The file to work on."""
        self._path = path
        self._due = 0.0

    def fetch(self) -> None:
        """Take the file from its drive, unless a later one of a process that died is here.

        Raises:
            OSError: if it cannot be copied.
        """
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._path.exists():
            for left in self.file.parent.glob(f"{self.file.name}*"):
                left.unlink()  # of a workspace that was removed
        elif not self.file.exists() or self.file.stat().st_mtime < self._path.stat().st_mtime:
            with atomic_file(self.file) as temporary:
                shutil.copyfile(self._path, temporary)

    def push(self, connection: sqlite3.Connection, now: bool = False) -> None:
        """Copy the database to its drive if that is due, or `now`.

        Raises:
            OSError: if the drive does not take it; the local file has everything.
        """
        began = time.monotonic()
        if not now and began < self._due:
            return
        self._due = began + SECONDS  # also after an error: a drive that is full is not hammered
        still = self.file.with_name(f"{self.file.name}.copy")
        still.unlink(missing_ok=True)
        with closing(sqlite3.connect(still)) as copy:
            connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
        with atomic_file(self._path) as temporary:
            shutil.copyfile(still, temporary)
        still.unlink()
        took = time.monotonic() - began
        self._due = time.monotonic() + max(SECONDS, took / SHARE)
