"""Fills a cache: pictures are read and decoded in threads while the encoder works in batches."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.data.buckets import Size
from modules.data.cache import Shelf, Space
from modules.data.findings import Findings
from modules.data.images import View, decode, render
from modules.data.items import DAMAGE, Item, reason
from modules.data.sources import read

PIXELS = 1 << 20
"""Pixels that are encoded at once: one picture of 1024 x 1024, or more smaller ones."""
PICTURES = 128
"""Pictures that are encoded at once, however small."""
CAPTIONS = 32
"""Captions that are encoded at once."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class CachingStopped(Exception):  # noqa: N818 - not an error
    """`should_stop` said so; what was encoded until then is kept."""


class Encoder(Protocol):
    """Turns pictures and captions into what is cached."""

    image_identity: str
    """Differs wherever the same picture is encoded otherwise."""
    text_identity: str | None
    """The same for captions; None if they are not to be encoded here."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> latents [B, C, H, W] on the CPU."""

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions -> tensors by name, each [B, ...] on the CPU."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file and the views of it, all of one size, that the cache lacks."""

    item: Item
    digest: bytes
    views: tuple[tuple[bytes, View], ...]
    """With the key of each."""


def digest_files(
    items: Sequence[Item], threads: int, should_stop: Callable[[], bool], findings: Findings
) -> list[bytes]:
    """SHA-256 of each item's file; empty for one that cannot be read, which is reported.

    Raises:
        CachingStopped: if told to stop.
    """

    def digest(item: Item) -> bytes:
        try:
            return hashlib.sha256(read(item.source, item.name)).digest()
        except OSError as error:
            message = f"cannot be read any more ({reason(error)}), and is left out."
            findings.add("unreadable file", item.path, message, "Mend or remove it.", skipped=True)
            return b""

    with ThreadPoolExecutor(threads) as pool:
        return list(_ahead(pool, digest, items, 64, should_stop))


def encode_pictures(
    pictures: Iterable[Picture],
    encoder: Encoder,
    space: Space,
    threads: int,
    findings: Findings,
    step: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Encode what is missing, size by size; a picture that fails is reported and left out.

    Args:
        pictures: what to encode.
        encoder: the networks.
        space: where to.
        threads: how many read and decode.
        findings: receives the trouble.
        step: receives how many views were done.
        should_stop: asked between pictures.

    Raises:
        CachingStopped: if told to stop; what was encoded is kept.
    """
    by_size: dict[Size, list[Picture]] = {}
    for picture in pictures:
        by_size.setdefault(picture.views[0][1].size, []).append(picture)

    def prepare(picture: Picture) -> list[tuple[bytes, NDArray[np.uint8]]]:
        return _prepare(picture, findings)

    with ThreadPoolExecutor(threads) as pool, _shelf(space) as shelf:
        for size, group in by_size.items():
            at_once = max(1, min(PICTURES, PIXELS // (size.height * size.width)))
            ready = _ahead(pool, prepare, group, 2 * at_once, should_stop)
            views = (view for views in ready for view in views)
            for batch in _chunks(views, at_once):
                pixels = torch.from_numpy(np.stack([pixels for _, pixels in batch]))
                pixels = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
                shelf.add([key for key, _ in batch], {"latents": encoder.encode_images(pixels)})
                step(len(batch))


def encode_captions(
    captions: Iterable[tuple[bytes, str]],
    encoder: Encoder,
    space: Space,
    step: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Encode captions, each with its key.

    Raises:
        CachingStopped: if told to stop; what was encoded is kept.
    """
    with _shelf(space) as shelf:
        for batch in _chunks(captions, CAPTIONS):
            if should_stop():
                raise CachingStopped
            rows = encoder.encode_text([text for _, text in batch])
            shelf.add([key for key, _ in batch], rows)
            step(len(batch))


def _prepare(picture: Picture, findings: Findings) -> list[tuple[bytes, NDArray[np.uint8]]]:
    """Each view's pixels; none if the file is broken, or no longer the one that was scanned."""
    item = picture.item
    try:
        content = read(item.source, item.name)
        if hashlib.sha256(content).digest() != picture.digest:
            message = "changed while it was read, and is left out."
            findings.add("changed", item.path, message, "Start again to train on it.", True)
            return []
        image = decode(content)
        return [(key, render(image, view)) for key, view in picture.views]
    except DAMAGE as error:
        message = f"cannot be decoded ({reason(error)}), and is left out."
        findings.add("unreadable image", item.path, message, "Mend or remove it.", skipped=True)
        return []


@contextmanager
def _shelf(space: Space) -> Iterator[Shelf]:
    """A shelf whose rows are kept whatever ends the block."""
    shelf = Shelf(space)
    try:
        yield shelf
    finally:
        shelf.flush()


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[_In], _Out],
    inputs: Iterable[_In],
    ahead: int,
    should_stop: Callable[[], bool],
) -> Iterator[_Out]:
    """`map` in threads, in order, that is never more than `ahead` results before its reader."""
    waiting: deque[Future[_Out]] = deque()
    try:
        for value in inputs:
            if should_stop():
                raise CachingStopped
            waiting.append(pool.submit(work, value))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            if should_stop():
                raise CachingStopped
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _chunks(values: Iterable[_In], size: int) -> Iterator[list[_In]]:
    chunk: list[_In] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
