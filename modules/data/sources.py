"""Where a concept's files come from. Whatever holds them, they look like files in a folder."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from modules.data.findings import Findings


class Entry(NamedTuple):
    """A file of a source: its name there, with `/` between folders, and what tells its versions."""

    name: str
    size: int
    stamp: int
    """Changes whenever the content does; nanoseconds or a checksum."""


class Source(Protocol):
    """A place with image, caption and mask files."""

    root: str
    """Path or id, for messages."""

    def entries(self, findings: Findings) -> Iterator[Entry]:
        """Every file, in no particular order; what cannot be listed goes to `findings`."""

    def open(self, name: str) -> BinaryIO:
        """A file to read from.

        Raises:
            OSError: if it is gone or cannot be read.
        """

    def path(self, name: str) -> str:
        """What a person calls the file."""


class Folder:
    """Files in a folder of this machine.

    Args:
        root: the folder.
        recursive: read folders below it too, but none whose name begins with a dot.
    """

    def __init__(self, root: str, recursive: bool) -> None:
        self.root, self._recursive = root, recursive

    def entries(self, findings: Findings) -> Iterator[Entry]:
        """Every file that does not begin with a dot; a folder linked twice is listed once."""
        visited: set[tuple[int, int]] = set()
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            folder = os.path.join(self.root, prefix)  # noqa: PTH118 - pathlib is 5x slower here
            try:
                status = os.stat(folder)  # noqa: PTH116
                if (status.st_dev, status.st_ino) in visited:
                    continue
                visited.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as found:
                    for entry in found:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir():
                            if self._recursive:
                                waiting.append(f"{prefix}{entry.name}/")
                            continue
                        try:
                            status = entry.stat()
                        except OSError as error:
                            _unreadable(findings, entry.path, error)
                            continue
                        stamp = max(status.st_mtime_ns, status.st_ctime_ns)
                        yield Entry(prefix + entry.name, status.st_size, stamp)
            except OSError as error:
                _unreadable(findings, folder, error)

    def open(self, name: str) -> BinaryIO:
        """A file to read from."""
        return open(os.path.join(self.root, name), "rb")  # noqa: PTH118, PTH123

    def path(self, name: str) -> str:
        """The file's path."""
        return os.path.join(self.root, name)  # noqa: PTH118


def open_source(root: str, recursive: bool) -> Source | None:
    """The source that `root` names; None if there is none."""
    if Path(root).is_dir():
        return Folder(root, recursive)
    return None


def read(source: Source, name: str) -> bytes:
    """All of a file's content."""
    with source.open(name) as file:
        return file.read()


def in_memory(content: bytes) -> BinaryIO:
    """Content as a file."""
    return io.BytesIO(content)


def _unreadable(findings: Findings, path: str, error: OSError) -> None:
    reason = error.strerror or type(error).__name__
    fix = "Mend or remove it; it is left out."
    findings.add("unreadable file", path, f"cannot be read ({reason}).", fix, skipped=True)
