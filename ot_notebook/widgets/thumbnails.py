"""Samples as small pictures: what a page holds of each, and which of many it holds."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from PIL import Image, UnidentifiedImageError

from modules.training.events import SampleImage
from ot_notebook.widgets.texts import MAX_PROMPT, brief

THUMB_PX = 256
"""Longest edge of a picture in the state of a gallery."""

SNAPSHOT_PX = 128
"""Longest edge of a picture in a saved notebook."""

MAX_TILES = 160
"""Pictures that a page always holds; it fetches the others as they come into sight."""

SPARE_TILES = 40
"""Pictures above that before the oldest leave: each time, all of those that stay travel again."""

MIMES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
"""Formats that browsers draw; others are written anew."""


class Tile(TypedDict):
    """One sample as the page gets it; `whole` says that `image` is the file itself."""

    id: int
    prompt: str
    step: int
    epoch: int
    seed: int
    width: int
    height: int
    image: bytes
    mime: str
    whole: bool
    raw: bool
    """Drawn with the weights themselves, where the run also has a moving average."""


def tile(sample: SampleImage, number: int) -> Tile:
    """The thumbnail of a sample; without a picture (0 x 0) where its file cannot be read."""
    width, height, image, mime, whole = 0, 0, b"", "", False
    try:
        with Image.open(sample.path) as picture:
            width, height = picture.size
            whole = max(width, height) <= THUMB_PX and sample.path.suffix.lower() in MIMES
            if whole:
                image, mime = sample.path.read_bytes(), MIMES[sample.path.suffix.lower()]
            else:
                image, mime = shrink(picture, THUMB_PX)
    except (OSError, UnidentifiedImageError):
        width, height = 0, 0  # the page says that the file is gone
    return Tile(
        id=number,
        prompt=brief(sample.prompt, MAX_PROMPT),
        step=sample.step,
        epoch=sample.epoch,
        seed=sample.seed,
        width=width,
        height=height,
        image=image,
        mime=mime,
        whole=whole,
        raw=is_raw(sample),
    )


def is_raw(sample: SampleImage) -> bool:
    """Whether it was drawn with the weights themselves, where the run also has a moving average."""
    return sample.path.parent.name.endswith(" - no-ema")


def shrink(picture: Image.Image, edge: int) -> tuple[bytes, str]:
    """`picture` with its longest edge at most `edge` px, as bytes and their MIME type."""
    small = picture.convert("RGB")
    small.thumbnail((edge, edge))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), "image/jpeg"


def full(path: Path) -> tuple[bytes, str]:
    """A sample in full size, in a format that browsers draw.

    Raises:
        OSError: the file is gone or is no picture.
    """
    suffix = path.suffix.lower()
    if suffix in MIMES:
        return path.read_bytes(), MIMES[suffix]
    with Image.open(path) as picture:
        return shrink(picture, max(picture.size))


def data_uri(image: bytes, mime: str, edge: int = SNAPSHOT_PX) -> str:
    """A thumbnail for static HTML, made smaller where it is larger than `edge` px."""
    with Image.open(io.BytesIO(image)) as picture:
        if max(picture.size) > edge:
            image, mime = shrink(picture, edge)
    return f"data:{mime};base64,{base64.b64encode(image).decode()}"


def by_prompt(tiles: Iterable[Tile]) -> dict[str, list[Tile]]:
    """Tiles of each prompt, oldest first; prompts in the order in which they first came."""
    groups: dict[str, list[Tile]] = {}
    for one in tiles:
        groups.setdefault(one["prompt"], []).append(one)
    return groups


def kept(samples: Sequence[SampleImage], limit: int = MAX_TILES) -> list[SampleImage]:
    """At most about `limit` of the samples, in order: of each prompt the first and the newest.

    The first stays because before and after is what people look for.
    """
    if len(samples) <= limit:
        return list(samples)
    places: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(sample.prompt, []).append(place)
    each = max(2, limit // len(places))
    chosen = {place for of in places.values() for place in (of[0], *of[1:][-(each - 1) :])}
    return [sample for place, sample in enumerate(samples) if place in chosen]
