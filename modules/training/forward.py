"""One forward pass: from a batch of the training set to the loss of each image.

Shapes: B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modules.config import DataType, TrainConfig
from modules.data import Batch
from modules.families import Condition, Family, Parts
from modules.families.loading import DTYPES
from modules.training.losses import Distance
from modules.training.noise import build_noise
from modules.training.objective import build_objective
from modules.training.schedules import batch_scale


@dataclass(frozen=True, slots=True)
class Draw:
    """A batch with everything random about it decided, on the training device."""

    latents: Tensor
    noise: Tensor
    timestep: Tensor
    captions: Sequence[str]
    condition: Condition | None
    """Encoded captions; None while a text encoder trains and has to encode them anew."""
    weight: Tensor
    """Factor of each image's loss that the data gives, [B]."""
    size: Tensor
    """Original size, crop and final size, [B, 6] pixels."""

    def pieces(self, count: int) -> Iterator[tuple[Draw, float]]:
        """The same images in so many smaller draws, each with its share of the whole."""
        if count == 1:
            yield self, 1.0
            return
        size = len(self.latents)
        width = -(-size // count)
        for start in range(0, size, width):
            at = slice(start, start + width)
            condition = self.condition and {k: v[at] for k, v in self.condition.items()}
            piece = Draw(
                self.latents[at],
                self.noise[at],
                self.timestep[at],
                self.captions[at],
                condition,
                self.weight[at],
                self.size[at],
            )
            yield piece, len(piece.latents) / size


class Forward:
    """Noises a batch, asks the model, and measures its error, as the settings say.

    Args:
        config: loss, noise, timesteps and precision.
        family: the architecture.
        parts: its live networks.
        device: where the loop runs.
    """

    def __init__(
        self, config: TrainConfig, family: Family, parts: Parts, device: torch.device
    ) -> None:
        self._family, self._parts, self._device = family, parts, device
        self._compute = None if config.train_dtype in FULL else DTYPES[config.train_dtype]
        stored = getattr(config, family.denoiser).weight_dtype
        self._dtype = DTYPES.get(stored, self._compute or torch.float32)
        self._empty: Condition | None = None
        self.configure(config)

    def configure(self, config: TrainConfig) -> None:
        """Take up settings, at the start or changed while the run goes on.

        Raises:
            ConfigError: if they do not fit the model.
        """
        kind, scheduler = self._family.objective(self._parts), self._parts.scheduler
        self._objective, self._timesteps = build_objective(config, kind, scheduler, self._device)
        self._noise = build_noise(config, self._objective)
        self._distance = Distance(
            config.mse_strength,
            config.mae_strength,
            config.log_cosh_strength,
            config.huber_strength,
            config.huber_delta,
        )
        self._scale = batch_scale(config.loss_scaler, config)
        self._caption_dropout = config.text_encoder.dropout_probability
        self._cache_casts = config.enable_autocast_cache

    def draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        """Decide noise, timesteps and dropped captions of a batch, all from one generator."""
        latents = batch.latents.to(self._device, torch.float32, non_blocking=True)
        timestep = self._timesteps.draw(latents, generator)
        noise = self._noise.draw(latents, timestep, generator)
        captions: Sequence[str] = batch.captions
        condition = batch.condition
        if condition is not None:
            condition = {
                name: tensor.to(self._device, self._dtype, non_blocking=True)
                for name, tensor in condition.items()
            }
        if self._caption_dropout:
            captions, condition = self._without_some(captions, condition, generator)
        weight = batch.loss_weight.to(self._device, torch.float32, non_blocking=True)
        size = batch.size.to(self._device, non_blocking=True)
        return Draw(latents, noise, timestep, captions, condition, weight, size)

    def loss(self, draw: Draw) -> Tensor:
        """Weighted error of each image, [B], float32, with its graph."""
        objective = self._objective
        noisy = objective.add_noise(draw.latents, draw.noise, draw.timestep).to(self._dtype)
        with self._autocast():
            condition = draw.condition
            if condition is None:
                condition = self._encode(draw.captions)
            time = objective.time(draw.timestep)
            prediction = self._family.predict(self._parts, noisy, time, condition, draw.size)
        target = objective.target(draw.latents, draw.noise, draw.timestep)
        factor = objective.weight(draw.timestep) * draw.weight
        if self._scale != 1:
            factor = factor * self._scale
        return self._distance(prediction, target) * factor

    def _encode(self, captions: Sequence[str]) -> Condition:
        return self._family.encode_text(self._parts, captions)

    def _without_some(
        self, captions: Sequence[str], condition: Condition | None, generator: torch.Generator
    ) -> tuple[Sequence[str], Condition | None]:
        """Put the empty caption in the place of some, so that guidance has it to start from."""
        draws = torch.rand(len(captions), generator=generator, device=generator.device)
        dropped = draws < self._caption_dropout
        if condition is None:
            pairs = zip(captions, dropped.tolist(), strict=True)
            return ["" if gone else text for text, gone in pairs], None
        if self._empty is None:
            with torch.no_grad():
                self._empty = {
                    name: tensor.to(self._device, self._dtype)
                    for name, tensor in self._encode([""]).items()
                }
        kept = {
            name: torch.where(dropped.view(-1, *[1] * (tensor.ndim - 1)), self._empty[name], tensor)
            for name, tensor in condition.items()
        }
        return captions, kept

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._compute is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._compute, cache_enabled=self._cache_casts)


FULL = (DataType.FLOAT_32, DataType.TFLOAT_32)
"""Types in which everything is computed as it is stored, without autocast."""
