"""Samples of a run: drawn from the live networks and put on disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from PIL.Image import Image

from modules.atomic import atomic_file
from modules.config import ImageFormat, SampleConfig, TrainConfig
from modules.families import Family, Parts
from modules.sampling.film import write_film
from modules.sampling.sampler import sample_batch
from modules.training.events import Event, SampleImage, TaskProgress
from modules.training.places import Place, Workspace

PIL_FORMAT = {ImageFormat.PNG: ("PNG", ".png"), ImageFormat.JPG: ("JPEG", ".jpg")}


class Samples:
    """Draws a run's samples.

    Args:
        family: the architecture.
        parts: its live networks.
        workspace: where the files go.
        emit: is told how far a sample is.
        should_stop: asked after each denoising step.
    """

    def __init__(
        self,
        family: Family,
        parts: Parts,
        workspace: Workspace,
        emit: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._family, self._parts, self._workspace = family, parts, workspace
        self._emit, self._should_stop = emit, should_stop

    def take(
        self,
        definition: SampleConfig,
        index: int,
        config: TrainConfig,
        place: Place,
        averaged: bool = True,
    ) -> SampleImage | None:
        """Draw one sample with the weights as they are, and write it; None if it was stopped.

        A film is written beside a picture of its first frame, which stands for it.

        Args:
            definition: what to draw.
            index: its number in the config; -1 for one that somebody asked for.
            config: says of what type the files are.
            place: where in the run it is taken.
            averaged: False if the weights are not the average that there is.
        """
        family, parts = self._family, self._parts
        path = self._workspace.sample(index, definition.prompt, place, averaged)
        if definition.random_seed:
            definition = definition.update(seed=random.SystemRandom().randrange(2**31))
        frames = sample_batch(
            family,
            parts,
            definition,
            [definition.seed],
            report=lambda done, total: self._emit(TaskProgress("sampling", done, total)),
            should_stop=self._should_stop,
        )
        if frames is None:
            return None
        still = write_sample(frames[0], path, config.sample_image_format)
        if len(frames) > 1:
            film, rate = still.with_suffix(""), family.film_rate(parts)
            write_film(frames, film, config.sample_video_format, rate)
        kind: Literal["custom", "default"] = "custom" if index < 0 else "default"
        said = definition.prompt, definition.seed, place.step, place.epoch + 1, index
        return SampleImage(kind, still, *said)


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
