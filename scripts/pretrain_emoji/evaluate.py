"""Whether a model draws the emoji that it was asked for.

A sample counts as right if, of all emoji that the model was taught, the one asked for is nearest to
it: mean 16 x 16 RGB cells, Euclidean distance, mirror images equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

EDGE = 16  # of the pictures that are compared
STEPS, GUIDANCE, SEED = 20, 3.0, 0


@dataclass(frozen=True)
class Score:
    """Shares of the samples, between 0 and 1."""

    top_1: float
    top_5: float
    ranks: tuple[int, ...]
    """For each sample, how many other emoji are nearer to it than the one asked for."""

    def __str__(self) -> str:
        return f"top-1 {self.top_1:.1%}, top-5 {self.top_5:.1%} of {len(self.ranks)} samples"


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    """Pictures [N, S, S, 3] as means of square cells, [N, EDGE, EDGE, 3], uint8.

    Raises:
        ValueError: if S is not a multiple of `EDGE`.
    """
    count, height, width, channels = pictures.shape
    if height != width or height % EDGE:
        raise ValueError(
            f"Pictures of {width} x {height} do not divide into {EDGE} x {EDGE} cells; "
            f"draw them square, with an edge that is a multiple of {EDGE}."
        )
    cell = height // EDGE
    cells = pictures.reshape(count, EDGE, cell, EDGE, cell, channels)
    return np.asarray(cells.mean((2, 4)).round(), np.uint8)


def score(samples: np.ndarray, asked_for: Sequence[int], references: np.ndarray) -> Score:
    """How many samples are nearest to the emoji asked for.

    Args:
        samples: thumbnails [M, EDGE, EDGE, 3].
        asked_for: for each sample, the row of its emoji in `references`.
        references: thumbnails of every emoji that the model was taught, [N, EDGE, EDGE, 3].
    """
    both = np.stack([references, references[:, :, ::-1]]).astype(np.float64)
    ranks = []
    for sample, wanted in zip(samples, asked_for, strict=True):
        distance = np.square(both - sample).sum((2, 3, 4)).min(0)
        ranks.append(int((distance < distance[wanted]).sum()))
    places = np.array(ranks)
    return Score(float((places < 1).mean()), float((places < 5).mean()), tuple(ranks))


def draw(pipeline: Any, prompts: Sequence[str], batch_size: int = 16) -> np.ndarray:
    """One sample for each prompt, all from the same noise: [N, S, S, 3], uint8.

    Args:
        pipeline: a diffusers text-to-image pipeline.
        prompts: what to draw.
        batch_size: pictures drawn together; the result does not depend on it.
    """
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[np.ndarray] = []
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        drawn = pipeline(
            batch,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(SEED) for _ in batch],
        )
        pictures += [np.asarray(image) for image in drawn.images]
    return np.stack(pictures)
