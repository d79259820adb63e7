"""Drawn pictures on disk: PNG files that hold their own settings, and an index to search them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from modules.atomic import atomic_file
from modules.config import VideoFormat
from ot_notebook.services.inference_recipe import Recipe, read_recipe

if TYPE_CHECKING:
    import pandas as pd

INDEX, SOURCES = "index.jsonl", "sources"
FAST = 1
"""Of zlib's 9 levels: a third of the usual time, for files that are some percent larger."""


@dataclass(frozen=True)
class Picture:
    """One picture of the gallery."""

    path: Path
    recipe: Recipe


class InferenceGallery:
    """A folder of pictures. The index only saves time: what it lacks is read from the pictures.

    Args:
        folder: made when the first picture is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def keep(self, image: Image, recipe: Recipe) -> Path:
        """Write a picture with its settings, and give its file."""
        now = datetime.now()
        moment = f"{now:%Y-%m-%d_%H-%M-%S}.{now.microsecond // 1000:03}"
        name = f"{moment}-{recipe.seed}-{secrets.token_hex(2)}.png"
        path = self.folder / name
        with atomic_file(path) as temporary:
            image.save(temporary, "PNG", compress_level=FAST, pnginfo=recipe.png_info())
        line = json.dumps({"file": name, **recipe.to_dict()})
        with self._lock, (self.folder / INDEX).open("a", encoding="utf-8") as index:
            index.write(f"{line}\n")
        return path

    def keep_film(self, picture: Path, frames: Sequence[Image], frames_per_second: int) -> Path:
        """Write a film beside the picture that stands for it, which holds its settings.

        Gives its MP4 file; without imageio-ffmpeg, which writes those, a folder of its frames.
        """
        from modules.sampling.film import write_film

        able = importlib.util.find_spec("imageio_ffmpeg") is not None
        kind = VideoFormat.MP4 if able else VideoFormat.PNG_IMAGE_SEQUENCE
        return write_film(frames, picture.with_suffix(""), kind, frames_per_second)

    def source(self, image: Image) -> Path:
        """Keep a picture to begin with, once for each content, and give its file.

        So that the recipe of what came of it stays whole, whatever becomes of the original.
        """
        kept = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
        content = hashlib.sha256(repr((kept.mode, kept.size)).encode() + kept.tobytes())
        path = self.folder / SOURCES / f"{content.hexdigest()[:20]}.png"
        if not path.is_file():
            with atomic_file(path) as temporary:
                kept.save(temporary, "PNG")
        return path

    def pictures(self) -> list[Picture]:
        """Every picture that is there, oldest first; one whose settings are damaged is left out."""
        indexed = dict(self._indexed())
        found = []
        for path in sorted(self.folder.glob("*.png")):
            try:
                recipe = indexed.get(path.name) or read_recipe(path)
            except (OSError, ValueError):
                continue  # a picture of someone else's: not ours to list
            found.append(Picture(path, recipe))
        return found

    def newest(self, count: int) -> list[Path]:
        """Files of the last pictures, newest first; their names begin with the time."""
        return sorted(self.folder.glob("*.png"), reverse=True)[:count]

    def table(self) -> pd.DataFrame:
        """The pictures as a table, oldest first: settings and path."""
        import pandas as pd

        rows: list[dict[str, Any]] = [
            {**picture.recipe.to_dict(), "path": picture.path} for picture in self.pictures()
        ]
        table: pd.DataFrame = pd.DataFrame(rows, columns=[*Recipe.__dataclass_fields__, "path"])
        return table

    def _indexed(self) -> Iterator[tuple[str, Recipe]]:
        file = self.folder / INDEX
        if not file.is_file():
            return
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                data = json.loads(line)
                yield data["file"], Recipe.from_dict(data)
            except (ValueError, KeyError, TypeError):
                continue  # a torn line: the picture itself still tells
