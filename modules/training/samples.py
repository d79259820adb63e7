"""Samples of a run: drawn from the live networks and put on disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from PIL.Image import Image

from modules.atomic import atomic_file
from modules.config import ImageFormat, SampleConfig, VideoFormat
from modules.families import Family, Parts
from modules.sampling.film import write_film
from modules.sampling.sampler import sample_batch

PIL_FORMAT = {ImageFormat.PNG: ("PNG", ".png"), ImageFormat.JPG: ("JPEG", ".jpg")}


def take_sample(
    family: Family,
    parts: Parts,
    definition: SampleConfig,
    path: Path,
    image_format: ImageFormat,
    video_format: VideoFormat = VideoFormat.MP4,
    *,
    report: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> tuple[Path, int] | None:
    """Draw one sample and write it: its file and seed, or None if it was stopped.

    A film is written beside a picture of its first frame, which stands for it.

    Args:
        family: the architecture.
        parts: its live networks.
        definition: what to draw.
        path: of the file, without its suffix.
        image_format: type of the file.
        video_format: type of a film.
        report: called after each denoising step with (done, total).
        should_stop: asked after each denoising step.
    """
    if definition.random_seed:
        definition = definition.update(seed=random.SystemRandom().randrange(2**31))
    seeds = [definition.seed]
    frames = sample_batch(family, parts, definition, seeds, report=report, should_stop=should_stop)
    if frames is None:
        return None
    still = write_sample(frames[0], path, image_format)
    if len(frames) > 1:
        write_film(frames, still.with_suffix(""), video_format, family.film_rate(parts))
    return still, definition.seed


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
