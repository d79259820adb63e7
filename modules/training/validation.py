"""The loss of images that the run does not learn from, measured the same way every time.

Shapes: B batch, N noise levels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch

from modules.data import Batch, Batches, Dataset
from modules.families import Parts
from modules.sampling.sampler import undisturbed
from modules.training.decoding import Decoding
from modules.training.events import ValidationLoss
from modules.training.forward import Forward
from modules.training.update import Update

TIMES = 8
"""Timesteps at which each image is measured: the middles of as many equal parts of the range."""


class Validation:
    """Measures validation concepts on a fixed grid of timesteps, each with noise of its own seed.

    Args:
        dataset: the validation images.
        forward: the run's forward pass.
        parts: its networks.
        device: where the loop runs.
    """

    def __init__(
        self, dataset: Dataset, forward: Forward | Decoding, parts: Parts, device: torch.device
    ) -> None:
        self._dataset, self._forward, self._parts = dataset, forward, parts
        self._device = device
        measured = sorted({item.concept for item in dataset.items})
        named = {index: dataset.concepts[index] for index in measured}
        self._names = dict(
            zip(named, _distinct(each.name or each.path for each in named.values()), strict=True)
        )

    def of_weights(
        self, step: int, update: Update, should_stop: Callable[[], bool]
    ) -> ValidationLoss | None:
        """What the weights give, as they would be saved and as they are; None if it was stopped.

        Args:
            step: optimizer steps done.
            update: holds the average that stands in for them, if there is one.
            should_stop: asked between images.
        """
        with update.shown():
            losses = self.measure(should_stop)
        if not losses:
            return None
        raw = None
        if update.ema is not None:
            with update.shown(averaged=False):
                raw = self.measure(should_stop)
            if raw is None:
                return None
        return ValidationLoss(step, _mean(losses), losses, _mean(raw) if raw else None)

    @torch.no_grad()
    def measure(self, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Mean loss of each concept, by a name of its own; None if it was stopped.

        Dropout is off, and no generator outside moves.
        """
        batches = Batches(self._dataset, 1, seed=0)  # one at a time: none is filled up or left out
        found: dict[int, list[float]] = defaultdict(list)
        with undisturbed(self._parts):
            for _ in range(batches.batches_in(0)):
                if should_stop():
                    return None
                batch = next(batches)
                (item,) = batch.items
                found[self._dataset.items[item].concept].append(self._loss_of(batch, item))
        return {
            name: sum(found[index]) / len(found[index])
            for index, name in self._names.items()
            if index in found  # one may be drawn too seldom for any image
        }

    def _loss_of(self, batch: Batch, item: int) -> float:
        generator = torch.Generator(self._device).manual_seed(item)
        levels = self._forward.levels
        total = 0.0
        for index in range(TIMES):
            timestep = torch.tensor([(2 * index + 1) * levels // (2 * TIMES)], device=self._device)
            draw = self._forward.draw(batch, generator, timestep)
            total += self._forward.loss(draw).mean().item()
        return total / TIMES


def _distinct(names: Iterable[str]) -> list[str]:
    """Names in their order, of which no two are alike: the second "cards" is "cards (2)"."""
    wanted = list(names)
    found: list[str] = []
    for name in wanted:
        tried, number = name, 1
        while tried in found or (number > 1 and tried in wanted):
            number += 1
            tried = f"{name} ({number})"
        found.append(tried)
    return found


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses)
