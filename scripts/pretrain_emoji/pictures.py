"""Emoji pictures and their names: from icon packages, or from a folder of one's own.

Pictures are uint8 arrays [S, S, 4], RGBA with straight alpha; S is the edge in pixels.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

PACKAGES = (
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "@iconify-json/fluent-emoji@1.2.7",
    "@iconify-json/noto@1.2.9",
    "unicode-emoji-json@0.9.0",
    "emojilib@4.0.3",
)
_SKIN_TONES = re.compile(r"-(dark|medium-dark|medium|medium-light|light)$")


@dataclass(frozen=True)
class Picture:
    """One emoji."""

    id: str
    name: str
    """Lower case, as it stands in captions: "hot air balloon"."""
    group: str
    """Unicode's group, such as "Food & Drink"; empty where it is not known."""
    keywords: tuple[str, ...]
    pixels: np.ndarray
    """[S, S, 4], uint8."""
    weight: float = 1.0
    """How often it is looked at in training, against the others."""


def read_packages(node_modules: Path, style: str, size: int) -> list[Picture]:
    """Every emoji of an icon package, skin tones left out, in the order of their ids.

    Args:
        node_modules: folder that holds the packages in `PACKAGES`.
        style: an icon package, for instance "fluent-emoji-flat".
        size: edge of the pictures, in pixels.

    Raises:
        FileNotFoundError: if a package is missing; says how to get all of them.
    """
    icons = _package_file(node_modules, f"@iconify-json/{style}/icons.json")
    characters = _package_file(node_modules, f"@iconify-json/{style}/chars.json")
    unicode = {
        _without_variant(emoji): entry
        for emoji, entry in _package_file(
            node_modules, "unicode-emoji-json/data-by-emoji.json"
        ).items()
    }
    keywords = {
        _without_variant(emoji): words
        for emoji, words in _package_file(node_modules, "emojilib/dist/emoji-en-US.json").items()
    }
    code_points: dict[str, str] = {}
    for points, icon in characters.items():
        code_points.setdefault(icon, points)

    pictures = []
    for icon in sorted({*icons["icons"], *icons.get("aliases", {})} & code_points.keys()):
        emoji = "".join(chr(int(point, 16)) for point in code_points[icon].split("-"))
        entry = unicode.get(_without_variant(emoji))
        if entry is None or _SKIN_TONES.search(icon):
            continue
        name = spoken(entry["name"])
        spoken_keywords = (spoken(word) for word in keywords.get(_without_variant(emoji), ()))
        pictures.append(
            Picture(
                id=icon,
                name=name,
                group=entry["group"],
                keywords=tuple(word for word in spoken_keywords if word != name),
                pixels=_draw(_svg(icons, icon), size),
            )
        )
    return pictures


def read_folder(folder: Path, size: int) -> list[Picture]:
    """Every PNG, WebP and SVG of a folder, in the order of their file names.

    A picture's name is its `.txt` caption up to the first comma, or else its file name.

    Raises:
        ValueError: if the folder holds no picture.
    """
    pictures = []
    for path in sorted(folder.glob("*")):
        if path.suffix == ".svg":
            pixels = _draw(path.read_text(encoding="utf-8"), size)
        elif path.suffix in (".png", ".webp"):
            pixels = _fit(Image.open(path), size)
        else:
            continue
        caption = path.with_suffix(".txt")
        words = caption.read_text(encoding="utf-8").split(",")[0] if caption.exists() else ""
        name = spoken(words or path.stem.replace("-", " "))
        pictures.append(Picture(path.stem, name, group="", keywords=(), pixels=pixels))
    if not pictures:
        raise ValueError(f"{folder} holds no .png, .webp or .svg file. Give a folder of pictures.")
    return pictures


def spoken(name: str) -> str:
    """A name as one says it: lower case, without colons, underscores and curly quotes."""
    plain = name.replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    return re.sub(r"[_:\s]+", " ", plain).strip().lower()


def on_background(pixels: np.ndarray, color: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Pictures [..., S, S, 4] laid on one colour: [..., S, S, 3], uint8."""
    alpha = pixels[..., 3:].astype(np.float32) / 255
    blend = pixels[..., :3] * alpha + np.array(color, np.float32) * (1 - alpha)
    return blend.round().astype(np.uint8)


def map_pixels(
    pictures: Iterable[Picture], change: Callable[[np.ndarray], np.ndarray]
) -> list[Picture]:
    """The same emoji, each drawn in another way."""
    return [replace(picture, pixels=change(picture.pixels)) for picture in pictures]


def sheet(pictures: np.ndarray, columns: int) -> Image.Image:
    """Pictures [N, S, S, 3] side by side, row by row; empty places stay white."""
    count, edge = pictures.shape[:2]
    rows = -(-count // columns)
    canvas = np.full((rows * columns, edge, edge, 3), 255, np.uint8)
    canvas[:count] = pictures
    grid = canvas.reshape(rows, columns, edge, edge, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * edge, columns * edge, 3))


def _package_file(node_modules: Path, name: str) -> Any:
    path = node_modules / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. In the folder above node_modules, run: "
            f"npm install {' '.join(PACKAGES)}"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _without_variant(emoji: str) -> str:
    return emoji.replace("\ufe0f", "")  # asks for colour; packages differ in whether they write it


def _svg(icons: dict[str, Any], name: str) -> str:
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    width, height = (icon.get(edge, icons.get(edge, 16)) for edge in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    body = icon["body"].replace("currentColor", "#222")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{box}">{body}</svg>'
    )


def _draw(svg: str, size: int) -> np.ndarray:
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, height=2 * size)
    return _fit(Image.open(io.BytesIO(bytes(png))), size)


def _fit(image: Image.Image, size: int) -> np.ndarray:
    image = image.convert("RGBA")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)
