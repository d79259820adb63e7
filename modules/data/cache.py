"""Encoded rows on disk: safetensors shards that say themselves what they hold.

A space is a folder for one encoder. Each shard in it holds rows of equal shapes, stacked, and names
them in its metadata, so that no index can disagree with the shards. A shard is written whole and
renamed into place; a crash loses at most the one that was being filled.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from modules.atomic import atomic_file
from modules.config.problems import error
from modules.data.ahead import CachingStopped

SHARD_BYTES = 64 << 20
"""A shard is written when it has grown to this size: large enough for network drives."""
SHARD_SECONDS = 20.0
"""Or when its first row is this old: how much work a crash may cost."""
SMALL_BYTES, MANY = 8 << 20, 16
"""More small shards than this are joined."""
SUFFIX = ".safetensors"
DAMAGED = (SafetensorError, OSError, ValueError, KeyError, TypeError)
"""What reading a broken shard raises."""

_ROWS = 1 << 32
"""More rows than a shard can have: shard and row are kept as one number."""

Row = tuple[int, int]
"""Number of a shard in its space, and of the row in the shard."""


def space_name(kind: Literal["image", "hint", "text"], identity: str) -> str:
    """The folder of an encoder's encodings, below that of the cache."""
    return f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


class Space:
    """The encodings of one encoder.

    Args:
        folder: where its shards are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: set[Path] = set()
        """Shards whose rows are in use."""
        self._shards: list[Path] = []
        self._rows: dict[bytes, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take note of shards that came since, from this process or another.

        One that cannot be read counts as missing, and is written anew under the same name.
        """
        known = set(self._shards)
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path not in known:
                with suppress(*DAMAGED):
                    self._take(path, keys_of(path))

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> Row:
        return divmod(self._rows[key], _ROWS)

    def shape(self, key: bytes, name: str) -> tuple[int, ...]:
        """Shape of one of a row's tensors, as its shard's header has it; nothing else is read.

        Raises:
            FileNotFoundError: if another process has removed the shard.
        """
        number, _ = self[key]
        with safe_open(self._shards[number], "pt") as file:
            return tuple(file.get_slice(name).get_shape()[1:])

    def load(self, shards: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        """Tensors of some shards, [rows, ...], mapped from the disk and not read until used.

        Raises:
            FileNotFoundError: if another process has removed one.
        """
        held = {}
        for number in shards:
            path = self._shards[number]
            held[number] = load_file(path)
            self.loaded.add(path)
            with suppress(OSError):  # a cache on a read-only drive is as good
                os.utime(path)  # when it was last used
        return held

    @contextmanager
    def writing(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Alone to fill this space; waits for another process that does.

        Raises:
            CachingStopped: if told to stop while waiting.
            ConfigError: if the folder cannot be written.
        """
        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    lock.acquire(timeout=0.2)
                    break
                except Timeout:
                    if should_stop():
                        raise CachingStopped from None
        except OSError as failure:
            message = f"{self.folder} cannot be written ({failure.strerror or failure})."
            raise error("cache_dir", message, "Choose another folder for the cache.") from None
        try:
            for torn in self.folder.glob(".*.part"):  # of a process that was killed
                torn.unlink(missing_ok=True)
            self.refresh()
            yield
            self._join()
        finally:
            lock.release()

    def write(self, keys: Sequence[bytes], rows: Mapping[str, Tensor]) -> Path:
        """Publish a shard; `rows` are stacked, [len(keys), ...]."""
        names = [key.hex() for key in keys]
        path = self.folder / (hashlib.sha256("".join(names).encode()).hexdigest()[:32] + SUFFIX)
        rows = {name: tensor.contiguous() for name, tensor in sorted(rows.items())}
        parts = [{n: t[row] for n, t in rows.items()} for row in range(len(keys))]
        sums = [checksum(part) for part in parts]
        with atomic_file(path) as temporary:
            save_file(dict(rows), temporary, {"keys": json.dumps(names), "sums": json.dumps(sums)})
        self._take(path, list(keys))
        return path

    def _take(self, path: Path, keys: Sequence[bytes]) -> None:
        number = len(self._shards)
        self._shards.append(path)
        for row, key in enumerate(keys):
            self._rows.setdefault(key, number * _ROWS + row)

    def _join(self) -> None:
        """Make few large shards of many small ones, which interrupts and edits leave behind."""
        sizes = {path: path.stat().st_size for path in self.folder.glob(f"*{SUFFIX}")}
        small = sorted(path for path, size in sizes.items() if size < SMALL_BYTES)
        if len(small) <= MANY:
            return
        shelf = Shelf(self, patient=True)
        seen: set[bytes] = set()
        for path in small:
            try:
                keys, rows = keys_of(path), load_file(path)
            except DAMAGED:
                continue
            fresh = [row for row, key in enumerate(keys) if key not in seen]
            seen.update(keys)
            if fresh:
                picked = {name: tensor[fresh] for name, tensor in rows.items()}
                shelf.add([keys[row] for row in fresh], picked)
        shelf.flush()
        for path in set(small) - set(shelf.written):
            with suppress(OSError):  # in use on Windows; the same rows then stand twice
                path.unlink()
        self._shards, self._rows = [], {}
        self.refresh()


class Shelf:
    """Collects rows and writes them to a space as shards.

    Args:
        space: where to.
        patient: write only full shards, however long it takes; else after a while.
    """

    def __init__(self, space: Space, patient: bool = False) -> None:
        self.written: list[Path] = []
        self._space, self._patient = space, patient
        self._groups: dict[str, list[tuple[list[bytes], Mapping[str, Tensor]]]] = {}
        self._since = time.monotonic()

    def add(self, keys: Sequence[bytes], rows: Mapping[str, Tensor]) -> None:
        """Add stacked rows; those of equal shapes come into one shard."""
        if not self._groups:
            self._since = time.monotonic()
        shapes = [(name, tensor.shape[1:], tensor.dtype) for name, tensor in sorted(rows.items())]
        group = self._groups.setdefault(repr(shapes), [])
        group.append((list(keys), rows))
        size = sum(tensor.nbytes for _, held in group for tensor in held.values())
        if size >= SHARD_BYTES:
            self._write(self._groups.pop(repr(shapes)))
        elif not self._patient and time.monotonic() - self._since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        while self._groups:
            self._write(self._groups.pop(next(iter(self._groups))))

    def _write(self, group: list[tuple[list[bytes], Mapping[str, Tensor]]]) -> None:
        keys = [key for names, _ in group for key in names]
        stacked = {name: torch.cat([rows[name] for _, rows in group]) for name in group[0][1]}
        self.written.append(self._space.write(keys, stacked))


def keys_of(path: Path) -> list[bytes]:
    """Names of a shard's rows.

    Raises:
        ValueError: or another of `DAMAGED`, if it is no whole shard.
    """
    with safe_open(path, "pt") as file:
        keys = [bytes.fromhex(name) for name in json.loads(file.metadata()["keys"])]
        for name in file.keys():  # noqa: SIM118 - not a dict
            if file.get_slice(name).get_shape()[0] != len(keys):
                raise ValueError(f"{path} has {len(keys)} names for another number of rows")
    return keys


def checksum(row: Mapping[str, Tensor]) -> int:
    """CRC-32 of a row's tensors, by name in order."""
    value = 0
    for name in sorted(row):
        content = row[name].reshape(-1).view(torch.uint8).numpy()
        value = zlib.crc32(content.data, value)
    return value


def prune(cache_dir: Path, limit: int, keep: set[Path] | None = None) -> list[Path]:
    """Remove the shards that were not used for longest until the cache fits; they are returned.

    Args:
        cache_dir: the cache.
        limit: bytes; 0 removes nothing.
        keep: shards in use.
    """
    found = []
    for path in cache_dir.glob(f"*/*{SUFFIX}"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    removed: list[Path] = []
    for _, size, path in sorted(found):
        if not limit or total <= limit:
            break
        if path not in (keep or ()):
            with suppress(OSError):  # in use on Windows, or a read-only drive
                path.unlink()
                removed.append(path)
                total -= size
    return removed
