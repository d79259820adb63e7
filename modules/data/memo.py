"""What was learned about files, so that an unchanged one need not be read again."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from modules.atomic import atomic_file
from modules.data.sources import Entry, Source

SETTLED = 2_000_000_000
"""Nanoseconds after which a change is sure to show in a file's time stamp."""
PATIENCE = 5.0
"""Seconds to wait for another process that writes too."""
VERSION = 2


class Header(NamedTuple):
    """What the beginning of an image file says, or what there is in a film."""

    width: int
    height: int
    """Pixels, upright."""
    animated: bool
    transparent: bool
    mode: str
    """Pillow's name for its kind of pixels."""
    frames: int = 0
    seconds: float = 0.0
    """Length of a film; 0 for a picture."""
    damage: str = ""
    """What is wrong with a film of which something can be read."""
    turned: bool = False
    """Whether the camera noted that it was not held upright."""


@dataclass(slots=True)
class _Facts:
    size: int
    stamp: int
    digest: str = ""
    header: Header | None = None


class Memo:
    """Headers and digests by file, size and time; one JSON file for each source.

    Without a folder it remembers nothing beyond its own life. A file that was changed within the
    last two seconds is not remembered on disk: it could change again under the same time stamp.

    Args:
        folder: where its files are; None for none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[str, dict[str, _Facts]] = {}
        self._used: dict[str, dict[str, _Facts]] = {}
        self._changed: set[str] = set()

    def header(self, source: Source, entry: Entry) -> Header | None:
        """An image's header, if it was noted and the file is the same since."""
        facts = self._recall(source, entry)
        return facts.header if facts else None

    def digest(self, source: Source, entry: Entry) -> bytes:
        """SHA-256 of the file, if it was noted and the file is the same since; else empty."""
        facts = self._recall(source, entry)
        return bytes.fromhex(facts.digest) if facts else b""

    def note_header(self, source: Source, entry: Entry, header: Header) -> None:
        """Remember a header."""
        self._note(source, entry).header = header

    def note_digest(self, source: Source, entry: Entry, digest: bytes) -> None:
        """Remember a digest."""
        self._note(source, entry).digest = digest.hex()

    def save(self) -> None:
        """Write what was noted, without files that nobody asked for, and let go of it.

        A memo that cannot be written only costs time, so that is no error.
        """
        torn = list(self._folder.glob(".*.part")) if self._folder else []
        if self._folder and (self._changed or torn):
            with suppress(OSError, Timeout):
                self._folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self._folder / ".lock", timeout=PATIENCE):
                    for part in torn:  # of a process that was killed
                        part.unlink(missing_ok=True)
                    for root in self._changed:
                        self._write(root)
        self._known, self._used, self._changed = {}, {}, set()

    def _write(self, root: str) -> None:
        settled = time.time_ns() - SETTLED
        files = {
            name: (facts.size, facts.stamp, facts.digest, facts.header)
            for name, facts in self._used[root].items()
            if facts.stamp < settled
        }
        with atomic_file(self._path(root)) as temporary:
            content = {"version": VERSION, "root": root, "files": files}
            temporary.write_text(json.dumps(content), encoding="ascii")

    def _recall(self, source: Source, entry: Entry) -> _Facts | None:
        known = self._known.get(source.root)
        if known is None:
            known = self._known[source.root] = self._read(source.root)
        facts = known.get(entry.name)
        if facts is None or facts.size != entry.size or facts.stamp != entry.stamp:
            return None
        self._used.setdefault(source.root, {})[entry.name] = facts
        return facts

    def _note(self, source: Source, entry: Entry) -> _Facts:
        self._changed.add(source.root)
        facts = self._recall(source, entry)
        if facts is None:
            facts = _Facts(entry.size, entry.stamp)
            self._known[source.root][entry.name] = facts
            self._used.setdefault(source.root, {})[entry.name] = facts
        return facts

    def _read(self, root: str) -> dict[str, _Facts]:
        if self._folder is None:
            return {}
        try:
            content = json.loads(self._path(root).read_bytes())
            if content["version"] != VERSION or content["root"] != root:
                return {}
            return {
                name: _Facts(size, stamp, digest, header and Header(*header))
                for name, (size, stamp, digest, header) in content["files"].items()
            }
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # none yet, or of another version; it is written anew

    def _path(self, root: str) -> Path:
        name = hashlib.sha256(root.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return (self._folder or Path()) / f"{name}.json"
