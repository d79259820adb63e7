"""Where samples go on disk."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from PIL.Image import Image

from modules.atomic import atomic_file
from modules.config import ImageFormat

PIL_FORMAT = {ImageFormat.PNG: ("PNG", ".png"), ImageFormat.JPG: ("JPEG", ".jpg")}


def sample_folder(workspace: Path, index: int, prompt: str) -> Path:
    """Folder of one sample definition; `index` is negative for custom samples.

    The prompt is cut to what every file system takes: letters, digits and a few signs, 32 long.
    """
    if index < 0:
        return workspace / "samples" / "custom"
    words = re.sub(r"[^\w .-]+", "", prompt)[:32].strip(" .")
    return workspace / "samples" / f"{index} - {words}"


def write_sample(
    image: Image, folder: Path, place: str, prefix: str, image_format: ImageFormat, now: datetime
) -> Path:
    """Write one sample and return its path; `place` says where in the run it was taken."""
    pil_format, suffix = PIL_FORMAT[image_format]
    path = folder / f"{prefix}{now:%Y-%m-%d_%H-%M-%S}-training-sample-{place}{suffix}"
    with atomic_file(path) as temporary:
        image.save(temporary, pil_format, **({"quality": 95} if pil_format == "JPEG" else {}))
    return path
