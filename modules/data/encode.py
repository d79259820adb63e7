"""Fills a cache: pictures are read and decoded in threads while the encoder works in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from modules.config.models import Hint
from modules.data.ahead import CachingStopped, ahead, chunks
from modules.data.buckets import Bucket
from modules.data.cache import Shelf, Space
from modules.data.films import on_disk, read_clip, same
from modules.data.findings import Findings
from modules.data.images import (
    Circle,
    View,
    decode,
    needed_edge,
    render,
    render_hint,
    render_mask,
)
from modules.data.items import DAMAGE, Item, reason
from modules.data.plan import Planned
from modules.data.sources import Source, read

PIXELS = 1 << 20
"""Pixels that are encoded at once: one picture of 1024 x 1024, or more smaller ones."""
PICTURES = 8
"""Pictures that are encoded at once, however small; more are slower on a CPU, whose caches end."""
HALF = 127
"""Grey above which a mask is 1 for a denoiser."""
CAPTIONS = 32
"""Captions that are encoded at once."""


class Encoder(Protocol):
    """Turns pictures and captions into what is cached."""

    image_identity: str
    """Differs wherever the same picture is encoded otherwise."""
    text_identity: str | None
    """The same for captions; None if they are not to be encoded here."""
    hint: Hint
    """What the denoiser reads of the picture itself."""
    hint_identity: str
    """Differs wherever the same picture and mask make another hint."""
    lanes: int
    """Batches that may be encoded at once, each in a thread; a GPU's memory is for one of them."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> latents [B, C, H, W] on the CPU; films have frames there."""

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions -> tensors by name, each [B, ...] on the CPU."""

    def encode_hints(self, pixels: Tensor, mask: Tensor, hide: bool) -> dict[str, Tensor]:
        """[B, 3, h, w] in [-1, 1] and mask [B, 1, h, w] -> tensors by name, each [B, ...].

        `hide` says whether nothing of the picture is seen where the mask is 1.
        """


@dataclass(frozen=True, slots=True)
class Picture:
    """An image or film and the views of it, all of one bucket, that the cache lacks."""

    item: Item
    digest: bytes
    views: tuple[tuple[bytes, View], ...]
    """With the key of each."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture, a mask, and the views, all of one size, of which the cache lacks the hint."""

    source: Source
    name: str | None
    """The picture's file; None if nothing of it is seen."""
    digest: bytes
    mask: str | None
    """Its mask; None for everywhere."""
    mask_digest: bytes
    image_size: tuple[int, int]
    """Width and height of the image that it belongs to."""
    views: tuple[tuple[bytes, View, Circle | None], ...]
    """With the key of each, and what counts of the mask."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask file and its places that the cache lacks."""

    source: Source
    name: str
    digest: bytes
    image_size: tuple[int, int]
    """Width and height of the image that it belongs to."""
    places: tuple[tuple[bytes, View, Circle | None, tuple[int, int]], ...]
    """Key, view, what counts of the mask, height and width of the latents."""


Job = TypeVar("Job", Picture, Shown)
Row = TypeVar("Row")


@dataclass(frozen=True)
class Progress:
    """Whom to tell, and whom to ask whether to go on."""

    threads: int
    findings: Findings
    step: Callable[[int], None]
    """Receives how many encodings were done."""
    should_stop: Callable[[], bool]


def encode_pictures(
    pictures: Iterable[Picture], encoder: Encoder, space: Space, progress: Progress
) -> None:
    """Encode images size by size; a picture that fails is reported and left out.

    Raises:
        CachingStopped: if told to stop; what was encoded is kept.
    """

    def prepare(picture: Picture) -> list[tuple[bytes, NDArray[np.uint8]]]:
        return read_picture(picture, progress.findings)

    def encode(batch: list[tuple[bytes, NDArray[np.uint8]]]) -> tuple[list[bytes], Tensor]:
        pixels = to_pixels([image for _, image in batch])
        return [key for key, _ in batch], encoder.encode_images(pixels)

    with _shelf(space) as shelf:
        batches, lanes = _batches(pictures, prepare, progress), encoder.lanes
        for keys, latents in ahead(encode, batches, lanes, lanes, progress.should_stop):
            shelf.add(keys, {"latents": latents})
            progress.step(len(keys))


def shown_of(
    planned: Planned, hint: Hint, views: tuple[tuple[bytes, View, Circle | None], ...]
) -> Shown:
    """What a denoiser is to see of an item, in some of its views."""
    item, digests = planned.item, planned.digests
    picture, digest = planned.shown(hint)
    mask = item.mask if digests.mask else None
    return Shown(
        item.source,
        picture and picture.name,
        digest,
        mask and mask.name,
        digests.mask,
        (item.width, item.height),
        views,
    )


def encode_hints(
    hints: Iterable[Shown], encoder: Encoder, space: Space, progress: Progress, hide: bool
) -> None:
    """Encode what a denoiser reads of pictures; a file that fails is reported and left out.

    Raises:
        CachingStopped: if told to stop; what was encoded is kept.
    """

    def prepare(shown: Shown) -> list[tuple[bytes, NDArray[np.uint8], NDArray[np.uint8]]]:
        return read_hint(shown, progress.findings)

    with _shelf(space) as shelf:
        for batch in _batches(hints, prepare, progress):
            pixels = to_pixels([image for _, image, _ in batch])
            rows = encoder.encode_hints(pixels, to_masks([mask for _, _, mask in batch]), hide)
            shelf.add([key for key, _, _ in batch], rows)
            progress.step(len(batch))


def encode_masks(masks: Iterable[Mask], space: Space, progress: Progress) -> None:
    """Scale masks to the grids of their latents; one that fails is reported and left out.

    Raises:
        CachingStopped: if told to stop; what was done is kept.
    """

    def prepare(mask: Mask) -> list[tuple[bytes, Tensor]]:
        image = decoded(mask.source, mask.name, mask.digest, progress.findings)
        if image is None:
            return []
        rows = []
        for key, view, circle, (height, width) in mask.places:
            pixels = render_mask(image, view, circle, mask.image_size)
            rows.append((key, shrunk(pixels, height, width)[None]))
        return rows

    with _shelf(space) as shelf:
        for rows in ahead(prepare, masks, progress.threads, 2 * PICTURES, progress.should_stop):
            for key, row in rows:
                shelf.add([key], {"mask": row})
            progress.step(len(rows))


def encode_captions(
    captions: Iterable[tuple[bytes, str]], encoder: Encoder, space: Space, progress: Progress
) -> None:
    """Encode captions, each with its key.

    Raises:
        CachingStopped: if told to stop; what was encoded is kept.
    """
    with _shelf(space) as shelf:
        for batch in chunks(captions, CAPTIONS):
            if progress.should_stop():
                raise CachingStopped
            rows = encoder.encode_text([text for _, text in batch])
            shelf.add([key for key, _ in batch], rows)
            progress.step(len(batch))


def decoded(
    source: Source, name: str, digest: bytes, findings: Findings, edge: int = 0
) -> Image.Image | None:
    """A picture; None if the file is broken, or no longer the one that was planned with."""
    try:
        content = read(source, name)
        if hashlib.sha256(content).digest() == digest:
            return decode(content, edge)
        _note_change(source.path(name), findings)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        message = f"cannot be decoded ({reason(error)}), and is left out."
        findings.add("unreadable image", source.path(name), message, "Mend or remove it.", True)
    return None


def _batches(
    jobs: Iterable[Job], prepare: Callable[[Job], list[Row]], progress: Progress
) -> Iterator[list[Row]]:
    """What jobs come to, bucket by bucket, in the numbers that are encoded at once."""
    by_bucket: dict[Bucket, list[Job]] = {}
    for job in jobs:
        by_bucket.setdefault(job.views[0][1].bucket, []).append(job)
    for bucket, group in by_bucket.items():
        most = at_once(bucket)
        ready = ahead(prepare, group, progress.threads, 2 * most, progress.should_stop)
        yield from chunks((row for rows in ready for row in rows), most)


def at_once(bucket: Bucket) -> int:
    """How many pictures or films of a bucket are encoded at once."""
    return max(1, min(PICTURES, PIXELS // (bucket.height * bucket.width * bucket.frames)))


def read_picture(picture: Picture, findings: Findings) -> list[tuple[bytes, NDArray[np.uint8]]]:
    """The views of an image, [h, w, 3], each with its key; none if the file fails.

    Those of a film are [f, h, w, 3], each frame cut and changed like the others.
    """
    item = picture.item
    if item.film:
        return _read_film(picture, findings)
    edge = needed_edge(view for _, view in picture.views)
    image = decoded(item.source, item.name, picture.digest, findings, edge)
    return [(key, render(image, view)) for key, view in picture.views] if image else []


def _read_film(picture: Picture, findings: Findings) -> list[tuple[bytes, NDArray[np.uint8]]]:
    item, path, rows = picture.item, picture.item.path, []

    def note(said: str) -> None:
        message = f"is damaged ({said}); what can be read of it trains."
        findings.add("damaged film", path, message, "Mend or remove it.")

    try:
        with on_disk(item.source, item.name) as file:
            if not same(file, item.source, item.file, picture.digest):
                _note_change(path, findings)
                return []
            for key, view in picture.views:
                if view.clip is None:
                    raise AssertionError("a film was planned as a picture")
                frames = read_clip(file, view.clip, (item.width, item.height), note)
                seen = np.stack([render(frame, view) for frame in frames])
                rows.append((key, seen if view.clip.frames > 1 else seen[0]))
    except (*DAMAGE, ImportError) as error:
        message = f"cannot be decoded ({reason(error)}), and is left out."
        findings.add("unreadable image", path, message, "Mend or remove it.", True)
        return []
    return rows


def _note_change(path: str, findings: Findings) -> None:
    message = "changed while it was read, and is left out."
    findings.add("changed", path, message, "Start again to train on it.", True)


def read_hint(
    shown: Shown, findings: Findings
) -> list[tuple[bytes, NDArray[np.uint8], NDArray[np.uint8]]]:
    """What is seen of a picture, [h, w, 3], and its mask, [h, w]; none if a file fails."""
    image = mask = None
    if shown.name:
        edge = needed_edge(view for _, view, _ in shown.views)
        image = decoded(shown.source, shown.name, shown.digest, findings, edge)
    if shown.mask:
        mask = decoded(shown.source, shown.mask, shown.mask_digest, findings)
    if (shown.name and image is None) or (shown.mask and mask is None):
        return []
    return [
        (key, *render_hint(image, mask, view, circle, shown.image_size))
        for key, view, circle in shown.views
    ]


def shrunk(mask: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """A mask [h, w] on the grid of its latents, [1, H, W], 0 to 255."""
    grid = Image.fromarray(mask).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(grid))[None]


def to_pixels(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Pictures [h, w, 3] -> [B, 3, h, w] in [-1, 1]; films [f, h, w, 3] -> [B, 3, f, h, w]."""
    pixels = torch.from_numpy(np.stack(images)).movedim(-1, 1)
    return pixels.float().div_(127.5).sub_(1.0)


def to_masks(masks: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Masks [h, w] -> [B, 1, h, w], 0 or 1: a denoiser knows nothing between."""
    return (torch.from_numpy(np.stack(masks))[:, None] > HALF).float()


@contextmanager
def _shelf(space: Space) -> Iterator[Shelf]:
    """A shelf whose rows are kept whatever ends the block."""
    shelf = Shelf(space)
    try:
        yield shelf
    finally:
        shelf.flush()
