"""Samples of a run: drawn from the live networks and put on disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from PIL.Image import Image

from modules.atomic import atomic_file
from modules.config import ImageFormat, SampleConfig
from modules.families import Family, Parts
from modules.sampling.sampler import sample

PIL_FORMAT = {ImageFormat.PNG: ("PNG", ".png"), ImageFormat.JPG: ("JPEG", ".jpg")}


def take_sample(
    family: Family,
    parts: Parts,
    definition: SampleConfig,
    path: Path,
    image_format: ImageFormat,
    *,
    report: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> tuple[Path, int] | None:
    """Draw one sample and write it: its file and seed, or None if it was stopped.

    Args:
        family: the architecture.
        parts: its live networks.
        definition: what to draw.
        path: of the file, without its suffix.
        image_format: type of the file.
        report: called after each denoising step with (done, total).
        should_stop: asked after each denoising step.
    """
    if definition.random_seed:
        definition = definition.update(seed=random.SystemRandom().randrange(2**31))
    image = sample(family, parts, definition, report=report, should_stop=should_stop)
    if image is None:
        return None
    return write_sample(image, path, image_format), definition.seed


def write_sample(image: Image, path: Path, image_format: ImageFormat) -> Path:
    """Write one sample, whole or not at all, beside those of the same name; returns its file."""
    pil_format, suffix = PIL_FORMAT[image_format]
    file, number = path.with_name(path.name + suffix), 1
    while file.exists():  # two in the same second
        number += 1
        file = path.with_name(f"{path.name}-{number}{suffix}")
    with atomic_file(file) as temporary:
        image.save(temporary, pil_format, **({"quality": 95} if pil_format == "JPEG" else {}))
    return file
