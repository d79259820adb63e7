"""A sign of life in a workspace, by which other kernels tell a live run from a dead one.

A live run holds a lock on the file, which the system takes away however the process ends. Where the
file system has no locks, or the run is on another machine, the file's age decides.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

FILE = "run.live"

STOP_FILE = "run.stop"
"""Where another process asks a run to stop: the file holds the run's name."""

LOOK_SECONDS = 1.0
"""Time between two looks for that file."""

SECONDS = 5.0
"""Time between two beats."""

DEAD_AFTER = 6 * SECONDS
"""Age in seconds at which a run that cannot be asked counts as dead."""

_REGION = 1 << 30
"""Where the lock lies: beyond the text, since a lock on Windows also keeps readers out."""


@dataclass(frozen=True, slots=True)
class Beat:
    """Who lives here."""

    run: str
    pid: int
    host: str

    def __str__(self) -> str:
        return f"run {self.run} in process {self.pid} on {self.host}"


class WorkspaceBusyError(RuntimeError):
    """Another run is live in the workspace; the text says which."""


class Heartbeat:
    """Marks a workspace as in use until `close`, or until this process ends.

    Args:
        workspace: the folder, which exists.
        run: name of the run.
        file: name of the file.
        asked_to_stop: called, on a thread of the heart, when another process asks the run to stop.

    Raises:
        WorkspaceBusyError: if another run is live there.
        OSError: if the file cannot be written.
    """

    def __init__(
        self,
        workspace: Path,
        run: str,
        file: str = FILE,
        asked_to_stop: Callable[[], None] = lambda: None,
    ) -> None:
        path = workspace / file
        if (other := living(workspace, file)) is not None:
            raise WorkspaceBusyError(f"{workspace} is in use by {other}.")
        self._path = path
        self._file = path.open("a+b")
        try:
            if _held(self._file):
                raise WorkspaceBusyError(f"{workspace} was taken by another run just now.")
            self._file.truncate(0)
            beat = Beat(run, os.getpid(), socket.gethostname())
            self._file.write(json.dumps(asdict(beat)).encode())
            self._file.flush()
        except BaseException:
            self._file.close()
            raise
        self._stop_file, self._name, self._asked = workspace / STOP_FILE, run, asked_to_stop
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ot-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Free the workspace."""
        self._closed.set()
        self._thread.join()
        if os.name == "nt":
            self._file.close()  # Windows removes no file that is open
        self._path.unlink(missing_ok=True)
        self._file.close()

    def _run(self) -> None:
        looks = 0
        while not self._closed.wait(LOOK_SECONDS):
            looks += 1
            try:
                self._look_for_stop()
                if looks % round(SECONDS / LOOK_SECONDS) == 0:
                    os.utime(self._path)
            except OSError:
                continue  # an unplugged drive: the lock still stands, and the next beat tries again

    def _look_for_stop(self) -> None:
        try:
            wanted = self._stop_file.read_bytes()[:200]
        except FileNotFoundError:
            return
        self._stop_file.unlink(missing_ok=True)
        if wanted == self._name.encode():  # else it was meant for one that is over
            self._asked()


def living(workspace: Path, file_name: str = FILE) -> Beat | None:
    """The run that is live in a workspace, in whatever process, or None."""
    path = workspace / file_name
    try:
        file = path.open("r+b")
    except OSError:
        return None
    with file:
        try:
            beat = Beat(**json.loads(file.read()))
        except (ValueError, TypeError):
            return None  # torn by a crash while it was written: nobody who lives leaves it so
        held = _held(file)
        if held is not None and (held or beat.host == socket.gethostname()):
            return beat if held else None
        return beat if _age(path) < DEAD_AFTER else None  # a lock of another machine may not show


def _held(file: BinaryIO) -> bool | None:
    """Take the lock of an open file; True if somebody else has it, None if there are no locks."""
    try:
        return not _lock(file)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            return None
        raise


def _lock(file: BinaryIO) -> bool:
    """Take the lock of an open file; False if somebody holds it."""
    if os.name == "nt":
        import msvcrt

        file.seek(_REGION)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        finally:
            file.seek(0)
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _age(path: Path) -> float:
    """Seconds since the last beat, by the clock of the file's own drive."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as now:
        return Path(now.name).stat().st_mtime - path.stat().st_mtime
