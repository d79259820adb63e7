"""Draws the image sets that ship with the package, and the pictures that its model is judged by.

    npm install <the packages that scripts/pretrain_emoji/pictures.py names>
    python -m scripts.draw_datasets --packages node_modules

Everything is deterministic: the same packages give the same files.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.pretrain_emoji.evaluate import thumbnails
from scripts.pretrain_emoji.pictures import (
    Picture,
    map_pixels,
    on_background,
    read_packages,
    sheet,
)

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "ot_notebook" / "assets"
REFERENCES = ROOT / "tests" / "assets" / "emoji_16px.png"
"""The emoji of `classes.json` in its order, 20 in a row, 16 x 16 pixels each."""

SIZE = 64
COUNT = 96
CELL = 4  # pixels of a pixel-art cell
COLORS = 24  # of the whole pixel-art set

RESERVED = frozenset(
    [
        "avocado",
        "balloon",
        "butterfly",
        "cactus",
        "christmas-tree",
        "cupcake",
        "doughnut",
        "fox",
        "frog",
        "hamburger",
        "mushroom",
        "octopus",
        "owl",
        "parrot",
        "penguin",
        "pineapple",
        "pizza",
        "strawberry",
        "sunflower",
        "teapot",
        "tiger-face",
        "tomato",
        "trophy",
        "turtle",
        "watermelon",
    ]
)
"""In no set, so that drawing them shows what a style does to emoji that it was not taught on."""

INK = (0.12, 0.30)  # darker emoji are filled shapes, not lines


def line_art(pixels: np.ndarray) -> np.ndarray:
    """Black lines on white."""
    return on_background(pixels)


def pixel_art(pixels: np.ndarray) -> np.ndarray:
    """Few square cells with a dark outline on white, [S, S, 3]."""
    small = Image.fromarray(pixels).resize((SIZE // CELL,) * 2, Image.Resampling.BOX)
    cells = np.asarray(small)
    solid = np.pad(cells[..., 3] >= 128, 1)
    inside = solid[:-2, 1:-1] & solid[2:, 1:-1] & solid[1:-1, :-2] & solid[1:-1, 2:]
    solid = solid[1:-1, 1:-1]
    colors = np.where(inside[..., None], cells[..., :3], cells[..., :3] * 0.45)
    drawn = np.where(solid[..., None], colors, 255).round().astype(np.uint8)
    return drawn.repeat(CELL, axis=0).repeat(CELL, axis=1)


def one_palette(images: list[np.ndarray]) -> list[np.ndarray]:
    """The images in the `COLORS` colours that suit all of them together."""
    joined = Image.fromarray(np.concatenate(images))
    few = joined.quantize(COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return list(np.asarray(few.convert("RGB")).reshape(len(images), *images[0].shape))


def write(name: str, pictures: list[Picture]) -> None:
    """The pictures as PNG files with a caption beside each."""
    folder = ASSETS / "datasets" / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.png"), *folder.glob("*.txt")):
        old.unlink()
    for picture in pictures:
        path = folder / f"{picture.id}.png"
        Image.fromarray(picture.pixels).save(path, optimize=True)
        caption = f"{picture.name}, {name.replace('_', ' ')}"
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def main() -> None:
    """Draw all sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, required=True, help="the node_modules folder")
    packages = parser.parse_args().packages

    known = json.loads((ASSETS / "emoji" / "classes.json").read_text(encoding="utf-8"))
    lines = {p.id: p for p in read_packages(packages, "fluent-emoji-high-contrast", SIZE)}
    flat = {p.id: p for p in read_packages(packages, "fluent-emoji-flat", SIZE)}
    ink = {id_: picture.pixels[..., 3].mean() / 255 for id_, picture in lines.items()}
    light = [id_ for id_ in known if id_ in ink and INK[0] <= ink[id_] <= INK[1]]
    chosen = sorted(random.Random(0).sample([id_ for id_ in light if id_ not in RESERVED], COUNT))

    write("line_art", map_pixels((lines[id_] for id_ in chosen), line_art))
    cells = map_pixels((flat[id_] for id_ in chosen), pixel_art)
    palette = iter(one_palette([picture.pixels for picture in cells]))
    write("pixel_art", map_pixels(cells, lambda _: next(palette)))

    known_pictures = np.stack([on_background(flat[id_].pixels) for id_ in known])
    REFERENCES.parent.mkdir(parents=True, exist_ok=True)
    sheet(thumbnails(known_pictures), columns=20).save(REFERENCES, optimize=True)


if __name__ == "__main__":
    main()
