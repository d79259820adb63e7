"""Where a concept's files come from. Whatever holds them, they look like files in a folder."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from errno import EINVAL
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, NamedTuple, Protocol

from modules.config.concept_config import ARCHIVES, FILM_SUFFIXES, IMAGE_SUFFIXES
from modules.data.findings import Findings

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PIECE = 1 << 20
"""Bytes that are read at once of a file that may be large."""


class Entry(NamedTuple):
    """A file of a source: its name there, with `/` between folders, and what tells its versions."""

    name: str
    size: int
    stamp: int
    """When it was last changed, nanoseconds since 1970."""


class Source(Protocol):
    """A place with image, caption and mask files."""

    root: str
    """Path or id, for messages."""

    def entries(self, findings: Findings) -> Iterator[Entry]:
        """Every file, in no particular order; what cannot be listed goes to `findings`."""

    def open(self, name: str) -> BinaryIO:
        """A file to read from; safe to call from any thread.

        Raises:
            OSError: if it is gone or cannot be read.
        """

    def path(self, name: str) -> str:
        """What a person calls the file."""


class NoSourceError(Exception):
    """There is nothing to read at a path; its text says why and what to do, without the path."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message} {fix}")
        self.message, self.fix = message, fix


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
                        try:
                            if entry.is_dir():
                                if self._recursive:
                                    waiting.append(f"{prefix}{entry.name}/")
                                continue
                            status = entry.stat()
                            if not S_ISREG(status.st_mode):
                                raise OSError(EINVAL, "it is a device or a pipe, and no file")
                        except OSError as error:  # of a link to itself even `is_dir` fails
                            _unreadable(findings, entry.path, error)
                            continue
                        yield Entry(prefix + entry.name, status.st_size, changed_at(status))
            except OSError as error:
                _unreadable(findings, folder, error)

    def open(self, name: str) -> BinaryIO:
        """A file to read from."""
        return open(os.path.join(self.root, name), "rb")  # noqa: PTH118, PTH123

    def path(self, name: str) -> str:
        """The file's path."""
        return os.path.join(self.root, name)  # noqa: PTH118


class Several:
    """Several archives as one place; each is a folder in it.

    Args:
        root: the folder that holds them.
        parts: what they hold, by name.
    """

    def __init__(self, root: str, parts: dict[str, Source]) -> None:
        self.root, self._parts = root, parts

    def entries(self, findings: Findings) -> Iterator[Entry]:
        """Every file of every part."""
        for prefix, part in self._parts.items():
            for entry in part.entries(findings):
                yield entry._replace(name=f"{prefix}/{entry.name}")

    def open(self, name: str) -> BinaryIO:
        """A file to read from."""
        part, inner = self._find(name)
        return part.open(inner)

    def path(self, name: str) -> str:
        """What a person calls the file."""
        part, inner = self._find(name)
        return part.path(inner)

    def _find(self, name: str) -> tuple[Source, str]:
        prefix, _, inner = name.partition("/")
        return self._parts[prefix], inner


def open_source(root: str, recursive: bool, films: bool = False) -> Source:
    """The source that a concept's path names.

    It is a folder of images, a zip or tar file (webdataset), a parquet or arrow file, a folder of
    such files, or the id of a data set on the Hugging Face hub.

    Args:
        root: the path or id.
        recursive: read folders below it too.
        films: whether films count as images do.

    Raises:
        NoSourceError: if there is none.
    """
    path, kinds = Path(root), IMAGE_SUFFIXES | FILM_SUFFIXES if films else IMAGE_SUFFIXES
    if root and path.is_dir():
        if archives := _archives(path, kinds):
            return Several(root, {a.name: _open_archive(a) for a in archives})
        return Folder(root, recursive)
    if root and path.is_file():
        return _open_archive(path)
    if _HUB_ID.fullmatch(root) and not root.startswith("."):
        return open_source(_from_hub(root, kinds), True, films)
    raise NoSourceError("is not there.", "Choose another folder, or disable the concept.")


def read(source: Source, name: str) -> bytes:
    """All of a file's content."""
    with source.open(name) as file:
        return file.read()


def digest_of(source: Source, name: str) -> bytes:
    """SHA-256 of a file's content, which is read piece by piece: films are large."""
    digest = hashlib.sha256()
    with source.open(name) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.digest()


def in_memory(content: bytes) -> BinaryIO:
    """Content as a file."""
    return io.BytesIO(content)


def changed_at(status: os.stat_result) -> int:
    """When a file's content, or its name or owner, was last changed; nanoseconds."""
    return max(status.st_mtime_ns, status.st_ctime_ns)


def _archives(folder: Path, kinds: frozenset[str]) -> Sequence[Path]:
    """The archives of a folder that is a set of them, as hub data sets are; else none."""
    for place in (folder, folder / "data"):
        try:
            names = os.listdir(place)  # noqa: PTH208 - pathlib is 5x slower here
        except OSError:
            continue
        endings = {name: os.path.splitext(name)[1].lower() for name in names}  # noqa: PTH122
        if kinds & set(endings.values()):
            return ()
        found = sorted(place / name for name, ending in endings.items() if ending in ARCHIVES)
        if found := [path for path in found if path.is_file() and path.name[0] != "."]:
            return found
    return ()


def _open_archive(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix in (".zip", ".tar"):
        from modules.data.archives import Tar, Zip

        return Zip(path) if suffix == ".zip" else Tar(path)
    if suffix in (".parquet", ".arrow"):
        from modules.data.tables import Table

        return Table(path)
    raise NoSourceError(
        "is no folder, and no file of images that can be read.",
        f"Choose a folder, or a file that ends in {', '.join(sorted(ARCHIVES))}.",
    )


def _from_hub(name: str, kinds: frozenset[str]) -> str:
    """The folder of a data set of the Hugging Face hub, downloaded if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in sorted(kinds | ARCHIVES | {".txt"})]
    try:
        return str(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NoSourceError(
            f"is no folder, and no data set that the hub gives ({reason}).",
            "Check the name and the connection, or choose a folder.",
        ) from None


def _unreadable(findings: Findings, path: str, error: OSError) -> None:
    reason = error.strerror or type(error).__name__
    fix = "Mend or remove it; it is left out."
    findings.add("unreadable file", path, f"cannot be read ({reason}).", fix, skipped=True)
