"""From the bytes of a picture to the pixels that are encoded. Pillow does the work on pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from modules.config.concept_config import ConceptImageConfig
from modules.data.buckets import Bucket, Size
from modules.data.draws import stream
from modules.data.films import Clip, first_frame
from modules.data.items import TRANSPARENT, Item, upright
from modules.data.sources import read

SHRINK = (0.2, 1.0)
"""Radius of the circle that a mask shrinks to, as a share of the one that keeps all of it."""
TURN = 20.0
"""Degrees that a crop to the mask turns the image at most."""
PADDING = (0.1, 0.3)
"""Surroundings that such a crop keeps, as a share of the mask's box on each side."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Part of an image that stands for it: the image turned about its centre, and a box in it."""

    angle: float
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Circle:
    """What is kept of a mask, in pixels of the image."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class View:
    """How one variation of an image is cut and changed, with every draw made.

    It names the variation in the cache: two settings that come to the same view share an encoding.
    """

    scaled: Size
    """Size that the whole image, or its frame, is scaled to."""
    top: int
    left: int
    """Where the crop begins in it."""
    size: Size
    """Size of the crop."""
    flip: bool = False
    angle: float = 0.0
    """Degrees, counter-clockwise."""
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    """Factors; 1 changes nothing."""
    hue: float = 0.0
    """Shift, as a share of the colour circle."""
    frame: Frame | None = None
    clip: Clip | None = None
    """The part of a film; None for a picture."""

    @property
    def bucket(self) -> Bucket:
        """What it has in common with others of a batch."""
        return Bucket(*self.size, self.clip.frames if self.clip else 1)

    def changes(self) -> tuple[object, ...]:
        """What tells it from other views of the same file, without what is as usual.

        So a new kind of change leaves the names of all views without it as they are.
        """
        usual = {field.name: field.default for field in fields(self)}
        values = ((name, getattr(self, name)) for name in usual)
        return tuple((name, value) for name, value in values if value != usual[name])

    def geometry(self) -> View:
        """The same place and direction, with the colours as they are, at any time of a film."""
        return replace(self, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, clip=None)


def draw_view(
    config: ConceptImageConfig,
    width: int,
    height: int,
    size: Size,
    *names: object,
    frame: Frame | None = None,
    clip: Clip | None = None,
) -> View:
    """The view of an image that fills `size`.

    Args:
        config: what may be changed; random wins where random and fixed are both on.
        width: of the upright image or its frame, pixels.
        height: the same.
        size: what to fill; what stands over is cropped.
        names: decide the draws, as `stream` takes them.
        frame: the part that stands for the image.
        clip: the part of a film.
    """
    scale = max(size.height / height, size.width / width)
    scaled = Size(max(size.height, round(height * scale)), max(size.width, round(width * scale)))
    down, right = scaled.height - size.height, scaled.width - size.width
    shares = (0.5, 0.5)
    if config.enable_crop_jitter and (down or right):
        crop = stream("crop", *names)
        shares = (crop.random(), crop.random())
    flip = config.enable_fixed_flip
    if config.enable_random_flip:
        flip = stream("flip", *names).random() < 0.5

    def spread(what: str, most: float) -> float:
        """A value in -most ... most, or `most` if fixed, or 0 if the change is off."""
        if getattr(config, f"enable_random_{what}"):
            return stream(what, *names).uniform(-most, most)
        return most if getattr(config, f"enable_fixed_{what}") else 0.0

    return View(
        scaled,
        round(down * shares[0]),
        round(right * shares[1]),
        size,
        flip,
        spread("rotate", config.random_rotate_max_angle),
        max(0.0, 1.0 + spread("brightness", config.random_brightness_max_strength)),
        max(0.0, 1.0 + spread("contrast", config.random_contrast_max_strength)),
        max(0.0, 1.0 + spread("saturation", config.random_saturation_max_strength)),
        spread("hue", config.random_hue_max_strength / 2),
        frame,
        clip,
    )


def still(item: Item, edge: int = 0) -> Image.Image:
    """An item as a picture, decoded: of a film its first frame.

    Raises:
        OSError: or another of `DAMAGE`, if it cannot be read.
        ImportError: for a film, without imageio-ffmpeg.
    """
    if item.film:
        return first_frame(item.source, item.name, (item.width, item.height))
    return decode(read(item.source, item.name), edge)


def decode(content: bytes, edge: int = 0) -> Image.Image:
    """The picture in 8-bit RGB, upright; the first frame of several, white behind transparency.

    Args:
        content: the file.
        edge: pixels that each side needs at least, so that a large JPEG can be decoded at a half,
            a quarter or an eighth of its size; 0 for all there are.
    """
    image: Image.Image = Image.open(io.BytesIO(content))
    if edge:
        image.draft(None, (edge, edge))
    image.load()
    image = upright(image)
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
        levels = np.asarray(image, np.int64)
        image = Image.fromarray((levels >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray((np.asarray(image) * 255).round().clip(0, 255).astype(np.uint8))
    if image.mode in TRANSPARENT or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def needed_edge(views: Iterable[View]) -> int:
    """Pixels that `decode` must give for some views: twice the result, so that nothing is lost.

    0, for all there are, if a view has a frame, which counts in pixels of the file.
    """
    seen = list(views)
    return 0 if any(view.frame for view in seen) else 2 * max(max(view.scaled) for view in seen)


def render(image: Image.Image, view: View) -> NDArray[np.uint8]:
    """The view of a decoded image, [h, w, 3]; where a turn shows what is not there, a mirror."""
    image = _place(image, view, mirror=True)
    if view.brightness != 1:
        image = ImageEnhance.Brightness(image).enhance(view.brightness)
    if view.contrast != 1:
        image = ImageEnhance.Contrast(image).enhance(view.contrast)
    if view.saturation != 1:
        image = ImageEnhance.Color(image).enhance(view.saturation)
    if view.hue:
        hue, saturation, value = image.convert("HSV").split()
        shift = round(view.hue * 256)
        hue = Image.fromarray(((np.asarray(hue, np.int64) + shift) % 256).astype(np.uint8))
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return np.asarray(image)


def render_mask(
    mask: Image.Image, view: View, circle: Circle | None, image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The same place of a mask, [h, w]; 0 where a turn shows what is not there.

    Args:
        mask: decoded.
        view: of the image.
        circle: the part of the mask that counts.
        image_size: width and height of the upright image.
    """
    mask = fitted_mask(mask, image_size)
    if circle:
        mask = _inside(mask, circle)
    return np.asarray(_place(mask, view, mirror=False))


def render_hint(
    image: Image.Image | None,
    mask: Image.Image | None,
    view: View,
    circle: Circle | None,
    image_size: tuple[int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The view of a picture that a denoiser is shown, [h, w, 3], and of its mask, [h, w].

    Args:
        image: decoded; None for grey.
        mask: decoded; None for one that is white everywhere.
        view: of the image.
        circle: the part of the mask that counts.
        image_size: width and height of the upright image.
    """
    grey = np.full((*view.size, 3), 127, np.uint8)
    white = np.full(view.size, 255, np.uint8)
    shown = grey if image is None else render(image, view)
    return shown, white if mask is None else render_mask(mask, view, circle, image_size)


def fitted_mask(mask: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    """A mask in grey, at the size of its image."""
    mask = mask.convert("L")
    if mask.size != image_size:
        mask = mask.resize(image_size, Image.Resampling.BILINEAR)
    return mask


def draw_circle(mask: Image.Image, *names: object) -> Circle | None:
    """A random circle about a random point of a mask; None if the mask is empty."""
    rows, columns = np.nonzero(np.asarray(mask) > 127)
    if not len(rows):
        return None
    rng = stream("circle", *names)
    centre = rng.randrange(len(rows))
    y, x = int(rows[centre]), int(columns[centre])
    farthest = float(np.sqrt((rows - y) ** 2.0 + (columns - x) ** 2.0).max())
    return Circle(x, y, rng.uniform(*SHRINK) * farthest)


def draw_frame(mask: Image.Image, circle: Circle | None, *names: object) -> Frame | None:
    """A turned box about a mask with some surroundings; None if the mask is empty."""
    rng = stream("frame", *names)
    angle = rng.uniform(-TURN, TURN)
    if circle:
        mask = _inside(mask, circle)
    turned = mask.rotate(angle, Image.Resampling.BILINEAR)
    box = turned.point(lambda level: 255 if level > 127 else 0).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    more = rng.uniform(*PADDING)
    across, down = round((right - left) * more), round((bottom - top) * more)
    return Frame(
        angle,
        max(0, left - across),
        max(0, top - down),
        min(mask.width, right + across),
        min(mask.height, bottom + down),
    )


def _place(image: Image.Image, view: View, mirror: bool) -> Image.Image:
    """Frame, scale, crop, flip and turn."""
    if view.frame:
        image = _turned(image, view.frame.angle, mirror)
        frame = view.frame
        image = image.crop((frame.left, frame.top, frame.right, frame.bottom))
    if image.size != (view.scaled.width, view.scaled.height):
        size = (view.scaled.width, view.scaled.height)
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    if view.angle:  # turn what surrounds the crop too: it fills the corners
        margin = math.ceil((math.hypot(*view.size) - min(view.size)) / 2)
        image = _grown(image, margin, mirror)
        box = (view.left, view.top, view.size.width + 2 * margin, view.size.height + 2 * margin)
    else:
        margin, box = 0, (view.left, view.top, view.size.width, view.size.height)
    left, top, width, height = box
    if image.size != (width, height):
        image = image.crop((left, top, left + width, top + height))
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.angle:
        image = image.rotate(view.angle, Image.Resampling.BILINEAR)
        image = image.crop((margin, margin, width - margin, height - margin))
    return image


def _turned(image: Image.Image, angle: float, mirror: bool) -> Image.Image:
    """An image turned about its centre, at its size."""
    margin = math.ceil((math.hypot(*image.size) - min(image.size)) / 2)
    width, height = image.size
    image = _grown(image, margin, mirror).rotate(angle, Image.Resampling.BILINEAR)
    return image.crop((margin, margin, margin + width, margin + height))


def _grown(image: Image.Image, margin: int, mirror: bool) -> Image.Image:
    """An image with a margin that mirrors it, or is black."""
    pixels = np.asarray(image)
    widths = [(margin, margin), (margin, margin), (0, 0)][: pixels.ndim]
    return Image.fromarray(np.pad(pixels, widths, mode="symmetric" if mirror else "constant"))


def _inside(mask: Image.Image, circle: Circle) -> Image.Image:
    y, x = np.ogrid[: mask.height, : mask.width]
    outside = (x - circle.x) ** 2 + (y - circle.y) ** 2 > circle.radius**2
    return Image.fromarray(np.where(outside, 0, np.asarray(mask)).astype(np.uint8))
