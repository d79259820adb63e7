"""Encoded rows on disk: safetensors shards that say themselves what they hold.

A space is a folder for one encoder. Each shard in it holds rows of equal shapes, stacked, and names
them in its metadata, so that no index can disagree with the shards. A shard is written whole and
renamed into place; a crash loses at most the one that was being filled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from modules.atomic import atomic_file
from modules.data.ahead import CachingStopped

SHARD_BYTES = 64 << 20
"""A shard is written when it has grown to this size: large enough for network drives."""

Row = tuple[int, int]
"""Number of a shard in its space, and of the row in the shard."""


class Space:
    """The encodings of one encoder.

    Args:
        folder: where its shards are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[Path] = []
        """Shards that cannot be read; what they held counts as missing."""
        self._shards: list[Path] = []
        self._rows: dict[bytes, Row] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take note of shards that came since, from this process or another."""
        known = set(self._shards)
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in known and path not in self.damaged:
                try:
                    self._take(path, _keys(path))
                except FileNotFoundError:
                    continue  # another process removed it meanwhile
                except (SafetensorError, OSError, ValueError, KeyError):
                    self.damaged.append(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> Row:
        return self._rows[key]

    def load(self, shards: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        """Tensors of some shards, [rows, ...], mapped from the disk and not read until used."""
        loaded = {}
        for number in shards:
            path = self._shards[number]
            loaded[number] = load_file(path)
            with suppress(OSError):  # a cache on a read-only drive is as good
                os.utime(path)  # when it was last used
        return loaded

    @contextmanager
    def writing(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Alone to fill this space; waits for another process that does.

        Raises:
            CachingStopped: if told to stop while waiting.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        while True:
            try:
                lock.acquire(timeout=0.2)
                break
            except Timeout:
                if should_stop():
                    raise CachingStopped from None
        try:
            self.refresh()
            yield
        finally:
            lock.release()

    def write(self, keys: Sequence[bytes], rows: Mapping[str, Tensor]) -> None:
        """Publish a shard; `rows` are stacked, [len(keys), ...]."""
        names = [key.hex() for key in keys]
        digest = hashlib.sha256("".join(names).encode()).hexdigest()[:32]
        path = self.folder / f"{digest}.safetensors"
        with atomic_file(path) as temporary:
            contiguous = {name: tensor.contiguous() for name, tensor in rows.items()}
            save_file(contiguous, temporary, {"keys": json.dumps(names)})
        self._take(path, list(keys))

    def _take(self, path: Path, keys: Sequence[bytes]) -> None:
        number = len(self._shards)
        self._shards.append(path)
        for row, key in enumerate(keys):
            self._rows.setdefault(key, (number, row))


class Shelf:
    """Collects rows and writes them to a space as shards; closed, it has written all.

    Args:
        space: where to.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._keys: list[bytes] = []
        self._rows: list[Mapping[str, Tensor]] = []
        self._bytes = 0

    def add(self, keys: Sequence[bytes], rows: Mapping[str, Tensor]) -> None:
        """Add stacked rows."""
        if self._rows and _shapes(rows) != _shapes(self._rows[-1]):
            self.flush()
        self._keys += keys
        self._rows.append(rows)
        self._bytes += sum(tensor.nbytes for tensor in rows.values())
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if self._keys:
            names = self._rows[0]
            self._space.write(
                self._keys, {name: torch.cat([rows[name] for rows in self._rows]) for name in names}
            )
        self._keys, self._rows, self._bytes = [], [], 0


def _keys(path: Path) -> list[bytes]:
    with safe_open(path, "pt") as file:
        keys = [bytes.fromhex(name) for name in json.loads(file.metadata()["keys"])]
        for name in file.keys():  # noqa: SIM118 - not a dict
            if file.get_slice(name).get_shape()[0] != len(keys):
                raise ValueError(f"{path} has {len(keys)} names for another number of rows")
    return keys


def _shapes(rows: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {name: (*tensor.shape[1:], tensor.dtype) for name, tensor in rows.items()}
