"""Training images as a page shows them: small in the grid, large in the item view, as cropped."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import TypedDict

import numpy as np
from PIL import Image

from modules.config import ConceptConfig
from modules.data.buckets import Size
from modules.data.images import View, draw_view, render, still
from modules.data.items import DAMAGE, Item, upright
from ot_notebook.services.concept_items import Row

THUMB_PX = 256
"""Longest edge of a picture in the grid."""

CRISP_PX = 128
"""Pictures up to this size are sent without loss: JPEG would smear their pixels."""

LARGE_PX = 1280
"""Longest edge of a picture in the item view."""

KEPT = 2000
"""Thumbnails in memory, about 15 KB each."""

Picture = tuple[bytes, str]
"""An encoded picture and its MIME type."""


class Crop(TypedDict):
    """What a bucket keeps of an image, as shares of its width and height."""

    left: float
    top: float
    width: float
    height: float
    size: str
    scale: float


class Thumbnails:
    """Small pictures of images, the latest kept in memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Picture | None] = OrderedDict()

    def forget(self) -> None:
        """Make them anew: the files may have changed."""
        self._kept.clear()

    def get(self, row: Row) -> Picture | None:
        """The thumbnail of an image; None where it cannot be read."""
        if row.item is None:
            return None
        key = str(row.path)
        if key not in self._kept:
            self._kept[key] = _thumbnail(row.item)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def large(row: Row) -> Picture | None:
    """An image for the item view; None where it cannot be read."""
    picture = _decoded(row)
    if picture is None:
        return None
    picture.thumbnail((LARGE_PX, LARGE_PX))
    return _encoded(picture)


def crop(row: Row, concept: ConceptConfig, size: Size) -> Crop:
    """What the image's bucket keeps when it is cut in the middle."""
    still = concept.image.model_copy(update={"enable_crop_jitter": False})
    view = draw_view(still, row.width, row.height, size)
    return Crop(
        left=view.left / view.scaled.width,
        top=view.top / view.scaled.height,
        width=view.size.width / view.scaled.width,
        height=view.size.height / view.scaled.height,
        size=str(size),
        scale=view.scaled.width / row.width,
    )


def variations(row: Row, concept: ConceptConfig, size: Size, count: int) -> list[Picture]:
    """The image as training may see it: cropped and changed by the concept's settings.

    Empty where it cannot be read.
    """
    picture = _decoded(row)
    if picture is None:
        return []
    made = []
    for number in range(count):
        view: View = draw_view(
            concept.image, row.width, row.height, size, concept.seed, str(row.path), number
        )
        seen = Image.fromarray(np.asarray(render(picture, view)))
        seen.thumbnail((THUMB_PX, THUMB_PX))
        made.append(_encoded(seen))
    return made


def _decoded(row: Row) -> Image.Image | None:
    if row.item is None:
        return None
    try:
        return still(row.item)
    except (*DAMAGE, Image.DecompressionBombError, ImportError):
        return None  # gone or damaged since the scan; the page says so


def _thumbnail(item: Item) -> Picture | None:
    picture = _small(item)
    if picture is None:
        return None
    picture.thumbnail((THUMB_PX, THUMB_PX))
    return _encoded(picture)


def _small(item: Item) -> Image.Image | None:
    """A picture of the item, decoded no larger than need be; None where it cannot be read."""
    try:
        if item.film:
            return still(item)
        with item.source.open(item.name) as file, Image.open(file) as image:
            image.draft("RGB", (THUMB_PX, THUMB_PX))  # a large JPEG is decoded at a fraction
            picture = upright(image)
            if picture.mode not in ("RGB", "L"):
                layer = picture.convert("RGBA")
                picture = Image.new("RGBA", layer.size, "white")  # as training does
                picture.alpha_composite(layer)
            return picture.convert("RGB")
    except (*DAMAGE, Image.DecompressionBombError, ImportError):
        return None


def _encoded(picture: Image.Image) -> Picture:
    buffer = io.BytesIO()
    if max(picture.size) <= CRISP_PX:
        picture.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), "image/png"
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), "image/jpeg"
