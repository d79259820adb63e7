"""What a person does with a cache: look at it, check it, carry it elsewhere."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from safetensors import safe_open
from safetensors.torch import load_file

from modules.atomic import atomic_file
from modules.data.cache import DAMAGED, SUFFIX, checksum, keys_of
from modules.data.encoder_notes import FOLDER, NOTE_BYTES, all_notes, is_note, take_notes

_NAME = re.compile(r"((image|text|hint)-[0-9a-f]{16}|mask)/[0-9a-f]{32}\.safetensors")


@dataclass(frozen=True)
class SpaceUse:
    """What one encoder's encodings take."""

    name: str
    shards: int
    rows: int
    size: int
    """Bytes."""
    last_used: float
    """Seconds since 1970."""


def usage(cache_dir: Path) -> list[SpaceUse]:
    """What is in a cache, encoder by encoder."""
    found = []
    for folder in sorted({path.parent for path in cache_dir.glob(f"*/*{SUFFIX}")}):
        shards = list(folder.glob(f"*{SUFFIX}"))
        rows = 0
        for path in shards:
            try:
                rows += len(keys_of(path))
            except DAMAGED:
                continue  # `verify` says so
        stats = [path.stat() for path in shards]
        size, last = sum(s.st_size for s in stats), max(s.st_mtime for s in stats)
        found.append(SpaceUse(folder.name, len(shards), rows, size, last))
    return found


def verify(cache_dir: Path, remove: bool = False) -> list[tuple[Path, str]]:
    """Read every row of a cache; each shard that is not as it was written, and why.

    Args:
        cache_dir: the cache.
        remove: delete such shards, so that the next run encodes anew what they held.
    """
    damaged = []
    for path in sorted(cache_dir.glob(f"*/*{SUFFIX}")):
        if reason := _damage(path):
            damaged.append((path, reason))
            if remove:
                path.unlink(missing_ok=True)
    return damaged


def export(cache_dir: Path, path: Path) -> int:
    """Write a cache as one zip file, for another machine; returns the number of shards in it.

    With it go the notes of which encoders made what, so that it can be judged there.
    """
    shards = sorted(cache_dir.glob(f"*/*{SUFFIX}"))
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for shard in shards:
            archive.write(shard, shard.relative_to(cache_dir).as_posix())
        for name, text in all_notes(cache_dir).items():
            archive.writestr(f"{FOLDER}/{name}", text)
    return len(shards)


def take_in(path: Path, cache_dir: Path) -> int:
    """Add the shards of an exported cache to another; returns how many were new.

    Raises:
        ValueError: if the file is no exported cache; nothing was added then.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            notes = {}
            for info in archive.infolist():
                if _NAME.fullmatch(info.filename):
                    continue
                if (text := _note(archive, info)) is None:
                    raise ValueError(
                        f"{path} holds {info.filename!r}, which is no part of a cache. Choose a "
                        f"file that was exported from one."
                    )
                notes[PurePosixPath(info.filename).name] = text
            new = 0
            for name in filter(_NAME.fullmatch, archive.namelist()):
                target = cache_dir / PurePosixPath(name)
                if not target.exists():
                    with atomic_file(target) as temporary:
                        temporary.write_bytes(archive.read(name))
                    new += 1
            take_notes(cache_dir, notes)
            return new
    except zipfile.BadZipFile:
        raise ValueError(
            f"{path} is no zip file. Choose a file that was exported from a cache."
        ) from None


def _note(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | None:
    """What a note says; None for any other file, of which no more is read than a note may have."""
    folder, _, name = info.filename.partition("/")
    if folder != FOLDER or not is_note(name, "") or info.file_size > NOTE_BYTES:
        return None
    with archive.open(info) as file:
        text = file.read(NOTE_BYTES).decode("ascii", "replace")
    return text if is_note(name, text) else None


def _damage(path: Path) -> str:
    """What is wrong with a shard; empty if nothing is."""
    try:
        keys, rows = keys_of(path), load_file(path)
        with safe_open(path, "pt") as file:
            sums = json.loads(file.metadata()["sums"])
        for row in range(len(keys)):
            if checksum({name: tensor[row] for name, tensor in rows.items()}) != sums[row]:
                return f"row {row} of {len(keys)} has changed since it was written"
    except DAMAGED as error:
        return f"cannot be read: {error}"
    return ""
