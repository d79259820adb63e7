"""Writes that a crash cannot tear: all of the new content, or the old file as it was."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SWAP = 2
"""RENAME_EXCHANGE of renameat2(2)."""


@contextmanager
def atomic_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place when the block ends.

    The file is flushed to disk before the rename. If the block raises, the temporary file goes and
    `path` is untouched.

    Args:
        path: the file to write.
        flush: False leaves the disk to the caller, who writes thousands and flushes once; a power
            cut before that may tear the file, a crash of the process cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=f".{path.suffix[1:]}.part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if flush:
            _flush(temporary)
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private, a model file is not
        temporary.replace(path)
        if flush:
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; it becomes `path` when the block ends.

    Args:
        path: what it becomes.
        replace: whether a folder of that name goes, once the new one is whole.

    Raises:
        FileExistsError: if `path` exists and is not to be replaced.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists already; choose another name or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".", suffix=".part"))
    try:
        yield temporary
        for found in [temporary, *temporary.rglob("*")]:
            _flush(found)
        temporary.chmod(0o777 & ~_umask())
        if not path.exists():
            temporary.replace(path)
        elif not _exchange(temporary, path):
            # no folder stands there between two renames; a kill leaves the old one beside it
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=".", suffix=".old"))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; False where the system or its disk cannot (renameat2(2))."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    here = -100  # AT_FDCWD: paths count from the working folder
    return bool(rename(here, os.fsencode(first), here, os.fsencode(second), _SWAP) == 0)


def _flush(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder; its rename is already journalled
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
