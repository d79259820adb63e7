"""Images inside zip and tar files, read where they are: nothing is unpacked to the disk."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from modules.data.findings import Findings
from modules.data.sources import Entry, NoSourceError, changed_at, in_memory

MAX_FILE = 1 << 29
"""Bytes of a file in an archive; a small archive can promise files that fill the memory."""


class Zip:
    """The files of a zip file.

    Args:
        path: the zip file.

    Raises:
        NoSourceError: if it is none.
    """

    def __init__(self, path: Path) -> None:
        self.root = str(path)
        try:
            self._stamp = changed_at(path.stat())
            self._file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise NoSourceError(f"cannot be read ({error}).", "Choose a whole zip file.") from None

    def entries(self, findings: Findings) -> Iterator[Entry]:
        """Every file in it, in all folders."""
        for info in self._file.infolist():
            if info.is_dir() or _hidden(info.filename):
                continue
            if info.flag_bits & 1:
                message = "is encrypted, and is left out."
                findings.add("unreadable file", self.path(info.filename), message, "", True)
            elif not _refused(self.path(info.filename), info.file_size, findings):
                yield Entry(info.filename, info.file_size, self._stamp)

    def open(self, name: str) -> BinaryIO:
        """A file to read from."""
        try:
            return in_memory(self._file.read(name))
        except (KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise OSError(f"{self.path(name)}: {error}") from error

    def path(self, name: str) -> str:
        """The archive's path and the name in it."""
        return f"{self.root}/{name}"


class Tar:
    """The files of an uncompressed tar file, such as a shard of a webdataset.

    Args:
        path: the tar file.

    Raises:
        NoSourceError: if it is none.
    """

    def __init__(self, path: Path) -> None:
        self.root = str(path)
        self._places: dict[str, tuple[int, int]] = {}
        try:
            self._stamp = changed_at(path.stat())
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile() and not _hidden(member.name):
                        self._places[member.name] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError) as error:
            fix = "Choose a whole tar file that is not compressed."
            raise NoSourceError(f"cannot be read ({error}).", fix) from None

    def entries(self, findings: Findings) -> Iterator[Entry]:
        """Every file in it, in all folders."""
        for name, (_, size) in self._places.items():
            if not _refused(self.path(name), size, findings):
                yield Entry(name, size, self._stamp)

    def open(self, name: str) -> BinaryIO:
        """A file to read from."""
        if name not in self._places:
            raise FileNotFoundError(f"{self.path(name)} is not there.")
        offset, size = self._places[name]
        with Path(self.root).open("rb") as file:
            file.seek(offset)
            return in_memory(file.read(size))

    def path(self, name: str) -> str:
        """The archive's path and the name in it."""
        return f"{self.root}{os.sep}{name}"


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts if part != ".")


def _refused(path: str, size: int, findings: Findings) -> bool:
    if size <= MAX_FILE:
        return False
    message = f"would take more than {MAX_FILE >> 20} MiB, and is left out."
    findings.add("too large", path, message, "Make it smaller.", skipped=True)
    return True
