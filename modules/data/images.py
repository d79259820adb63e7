"""From the bytes of a picture to the pixels that are encoded."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modules.config.concept_config import ConceptImageConfig
from modules.data.buckets import Size
from modules.data.draws import stream
from modules.data.items import upright


@dataclass(frozen=True, slots=True)
class View:
    """How one variation of an image is cut and changed, with every draw made.

    It names the variation in the cache: two settings that come to the same view share an encoding.
    """

    scaled: Size
    """Size that the whole image is scaled to."""
    top: int
    left: int
    """Where the crop begins in it."""
    size: Size
    """Size of the crop."""
    flip: bool = False

    def changes(self) -> tuple[object, ...]:
        """What tells it from other views of the same file, without what is as usual.

        So a new kind of change leaves the names of all views without it as they are.
        """
        usual = {field.name: field.default for field in fields(self)}
        values = ((name, getattr(self, name)) for name in usual)
        return tuple((name, value) for name, value in values if value != usual[name])


def draw_view(
    config: ConceptImageConfig, width: int, height: int, size: Size, *names: object
) -> View:
    """The view of an image of `width` x `height` pixels that fills `size`; `names` decide draws."""
    scale = max(size.height / height, size.width / width)
    scaled = Size(max(size.height, round(height * scale)), max(size.width, round(width * scale)))
    down, right = scaled.height - size.height, scaled.width - size.width
    crop = stream("crop", *names)
    shares = (crop.random(), crop.random()) if config.enable_crop_jitter else (0.5, 0.5)
    flip = config.enable_fixed_flip
    if config.enable_random_flip:
        flip = stream("flip", *names).random() < 0.5
    return View(scaled, round(down * shares[0]), round(right * shares[1]), size, flip)


def decode(content: bytes) -> Image.Image:
    """The picture in 8-bit RGB, upright; the first frame of several, white behind transparency."""
    image: Image.Image = Image.open(io.BytesIO(content))
    image.load()
    image = upright(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        image = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def render(image: Image.Image, view: View) -> NDArray[np.uint8]:
    """The view of a decoded image, [h, w, 3]."""
    if image.size != (view.scaled.width, view.scaled.height):
        image = image.resize(
            (view.scaled.width, view.scaled.height), Image.Resampling.BILINEAR, reducing_gap=3.0
        )
    if view.scaled != view.size:
        right, low = view.left + view.size.width, view.top + view.size.height
        image = image.crop((view.left, view.top, right, low))
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)
