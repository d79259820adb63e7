"""Recoloured copies of pictures, so that a model learns colour words and backgrounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from scripts.pretrain_emoji.pictures import Picture, on_background

HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "blue": 215, "purple": 275, "pink": 330}
"""Degrees on the colour wheel."""
BACKGROUNDS = {
    "red": (232, 72, 72),
    "yellow": (250, 214, 80),
    "green": (96, 190, 104),
    "blue": (84, 144, 232),
    "pink": (250, 168, 200),
    "black": (24, 24, 28),
}
COLORFUL = 0.25  # saturation from which a pixel counts as coloured
SHARE = 0.1  # of its pixels that must be coloured before a picture can be recoloured


def recolored(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Copies named "green penguin" and "penguin on a blue background".

    All copies of a picture together weigh as much as the picture itself.
    """
    for picture in pictures:
        pixels = picture.pixels
        drawn = {
            f"{picture.name} on a {word} background": _opaque(pixels, color)
            for word, color in BACKGROUNDS.items()
        }
        hue = main_hue(pixels)
        if hue is not None:
            drawn |= {
                f"{word} {picture.name}": turned(pixels, wanted - hue)
                for word, wanted in HUES.items()
            }
        weight = picture.weight / len(drawn)
        for name, copy in drawn.items():
            yield replace(picture, name=name, keywords=(), pixels=copy, weight=weight)


def main_hue(pixels: np.ndarray) -> float | None:
    """The hue that most of a picture's colour has, in degrees; None for one that is mostly grey."""
    hue, saturation, value = _hsv(pixels)
    coloured = (pixels[..., 3] > 128) & (saturation > COLORFUL) & (value > COLORFUL)
    if coloured.mean() < SHARE:
        return None
    angles = np.deg2rad(hue[coloured])
    strength = saturation[coloured]
    mean = np.arctan2((np.sin(angles) * strength).sum(), (np.cos(angles) * strength).sum())
    return float(np.rad2deg(mean) % 360)


def turned(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """A picture [S, S, 4] with all its hues turned on the colour wheel."""
    hsv = np.asarray(Image.fromarray(pixels[..., :3]).convert("HSV")).copy()
    hsv[..., 0] = (hsv[..., 0].astype(int) + round(degrees / 360 * 256)) % 256
    colors = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    return np.dstack([colors, pixels[..., 3]])


def _hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value in [0, 1]."""
    hsv = np.asarray(Image.fromarray(pixels[..., :3]).convert("HSV")).astype(float)
    return hsv[..., 0] / 256 * 360, hsv[..., 1] / 255, hsv[..., 2] / 255


def _opaque(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    drawn = on_background(pixels, color)
    return np.dstack([drawn, np.full(drawn.shape[:2], 255, np.uint8)])
