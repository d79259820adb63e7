"""One forward pass: from a batch of the training set to the loss of each image.

Shapes: B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from modules.adapters.lora import without_adapter
from modules.config import DataType, TrainConfig
from modules.data import Batch
from modules.families import Condition, Family, Parts
from modules.families.loading import DTYPES
from modules.training.dropout import set_dropout
from modules.training.losses import Distance, Masking
from modules.training.noise import build_noise
from modules.training.objective import Diffusion, build_objective
from modules.training.schedules import batch_scale
from modules.training.variance import VarianceLoss


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
    mask: Tensor | None = None
    """Where the pictures matter, [B, 1, H, W]; None for everywhere."""
    hints: Condition | None = None
    """What the denoiser reads of the pictures themselves; None for nothing."""
    prior: Tensor | None = None
    """Which images shall stay as the untrained model has them, [B], bool; None for none."""

    def pieces(self, count: int) -> Iterator[tuple[Draw, float]]:
        """The same images in so many smaller draws, each with its share of the whole."""
        if count == 1:
            yield self, 1.0
            return
        size = len(self.latents)
        width = -(-size // count)
        for start in range(0, size, width):
            at = slice(start, start + width)
            parts = {field.name: _cut(getattr(self, field.name), at) for field in fields(self)}
            piece = Draw(**parts)
            yield piece, len(piece.latents) / size


def _cut(value: Any, at: slice) -> Any:
    if isinstance(value, dict):
        return {name: tensor[at] for name, tensor in value.items()}
    return None if value is None else value[at]


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
        computed = config.computed_dtype
        self._compute = None if computed in FULL else DTYPES[computed]
        stored = getattr(config, family.denoiser).weight_dtype
        self._dtype = DTYPES.get(stored, self._compute or torch.float32)
        self._empty: Condition | None = None
        self._blanks: dict[tuple[int, int], Condition] = {}
        self.borrow: Callable[[], AbstractContextManager[None]] = nullcontext
        """Gives a block in which networks that wait elsewhere are on the device."""
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
        self._variance = None
        self._variance_strength = config.vb_loss_strength
        if config.vb_loss_strength and isinstance(self._objective, Diffusion):
            self._variance = VarianceLoss.build(self._objective.signal.square())
        self._scale = batch_scale(config.loss_scaler, config)
        self._masking = None
        if config.masked_training:
            self._masking = Masking(
                config.unmasked_weight,
                config.normalize_masked_area_loss,
                config.masked_prior_preservation_weight,
            )
        self._unmasked = config.unmasked_probability
        set_dropout(self._parts.modules().values(), config.dropout_probability)
        self._caption_dropout = config.text_encoder.dropout_probability
        self._cache_casts = config.enable_autocast_cache

    @torch.no_grad()
    def keep_empty(self) -> Condition:
        """Encode the empty caption, for those left out, while its encoders are on the device."""
        encoded = self._encode([""])
        self._empty = {name: t.to(self._device, self._dtype) for name, t in encoded.items()}
        return self._empty

    @property
    def levels(self) -> int:
        """How many timesteps the model knows."""
        return self._objective.levels

    def share(self, draws: Sequence[Draw]) -> Tensor:
        """Mean timestep of some draws as a share of all timesteps, a scalar on their device."""
        return torch.cat([draw.timestep for draw in draws]).float().mean() / self.levels

    def draw(
        self, batch: Batch, generator: torch.Generator, timestep: Tensor | None = None
    ) -> Draw:
        """Decide noise, timesteps and what is left out of a batch, all from one generator.

        Args:
            batch: from the training set.
            generator: on the training device.
            timestep: given timesteps, [B], for a measurement, in which nothing is left out.
        """
        latents = batch.latents.to(self._device, torch.float32, non_blocking=True)
        measured = timestep is not None
        if timestep is None:
            timestep = self._timesteps.draw(latents, generator)
        noise = self._noise.draw(latents, timestep, generator)
        captions: Sequence[str] = batch.captions
        condition = batch.condition
        if condition is not None:
            condition = {
                name: tensor.to(self._device, self._dtype, non_blocking=True)
                for name, tensor in condition.items()
            }
        if self._caption_dropout and not measured:
            captions, condition = self._without_some(captions, condition, generator)
        weight = batch.loss_weight.to(self._device, torch.float32, non_blocking=True)
        size = batch.size.to(self._device, non_blocking=True)
        mask, hints = self._masked(batch, None if measured else generator)
        prior = batch.prior.to(self._device) if batch.prior.any() and not measured else None
        return Draw(latents, noise, timestep, captions, condition, weight, size, mask, hints, prior)

    def loss(self, draw: Draw) -> Tensor:
        """Weighted error of each image, [B], float32, with its graph."""
        objective = self._objective
        noisy = objective.add_noise(draw.latents, draw.noise, draw.timestep).to(self._dtype)
        prediction, variance = self._predict(noisy, draw)
        target = objective.target(draw.latents, draw.noise, draw.timestep)
        untrained = self._untrained(noisy, draw)
        if untrained is not None and draw.prior is not None:
            chosen = draw.prior.view(-1, *[1] * (target.ndim - 1))
            target = torch.where(chosen, untrained, target)
        factor = objective.weight(draw.timestep) * draw.weight
        if self._scale != 1:
            factor = factor * self._scale
        errors = self._distance.elements(prediction, target)
        if variance is not None and self._variance is not None:
            terms = self._variance.elements(
                draw.latents, noisy, draw.timestep, prediction, variance
            )
            errors = errors + self._variance_strength * terms
        if self._masking is None or draw.mask is None:
            return errors.flatten(1).mean(1) * factor
        mask = draw.mask.view(len(target), 1, *[1] * (target.ndim - 4), *draw.mask.shape[-2:])
        drift = None
        if untrained is not None and self._masking.prior_weight:
            drift = self._distance.elements(prediction, untrained)
        return self._masking(errors, mask, drift) * factor

    def _predict(self, noisy: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """The prediction, and its variance from models that learned one."""
        with self._autocast():
            condition = draw.condition
            if condition is None:
                encoded = self._encode(draw.captions)
                condition = {name: tensor.to(self._dtype) for name, tensor in encoded.items()}
            if draw.hints is not None:
                condition = {**condition, **draw.hints}
            time = self._objective.time(draw.timestep)
            ask = self._family.predict_with_variance
            return ask(self._parts, noisy, time, condition, draw.size)

    @torch.no_grad()
    def _untrained(self, noisy: Tensor, draw: Draw) -> Tensor | None:
        """What the model says without its adapter, where a loss asks for it; else None."""
        preserves = draw.mask is not None and self._masking and self._masking.prior_weight
        if draw.prior is None and not preserves:
            return None
        with without_adapter(self._parts.modules().values()):
            return self._predict(noisy, draw)[0]

    def _masked(
        self, batch: Batch, generator: torch.Generator | None
    ) -> tuple[Tensor | None, Condition | None]:
        """The batch's masks for the loss, and its hints; with the set chance, both of no mask.

        Without a generator every mask stays.
        """
        mask = batch.mask if self._masking else None
        if mask is not None:
            mask = mask.to(self._device, torch.float32, non_blocking=True)
        hints = batch.hints
        if hints is not None:
            hints = {
                name: tensor.to(self._device, self._dtype, non_blocking=True)
                for name, tensor in hints.items()
            }
        masked = mask is not None or (hints is not None and "mask" in hints)
        if generator is None or not self._unmasked or not masked:
            return mask, hints
        draws = torch.rand(len(batch.latents), generator=generator, device=generator.device)
        chosen = draws < self._unmasked
        if mask is not None:
            mask = torch.where(chosen.view(-1, 1, 1, 1), 1.0, mask)
        if hints is not None and "mask" in hints:
            blank = self._blank(batch)
            rows = chosen.view(-1, 1, 1, 1)
            hints = {name: torch.where(rows, blank[name], hints[name]) for name in hints}
        return mask, hints

    def _blank(self, batch: Batch) -> Condition:
        """Hints of a picture of the batch's size of which all is to be painted, each [1, ...]."""
        height, width = batch.size[0, 4:].tolist()
        if (height, width) not in self._blanks:
            mask = torch.ones(1, 1, height, width, device=self._device)
            with torch.no_grad(), self.borrow():
                hints = self._family.encode_hints(self._parts, mask.expand(1, 3, -1, -1) * 0, mask)
            self._blanks[height, width] = {
                name: tensor.to(self._device, self._dtype) for name, tensor in hints.items()
            }
        return self._blanks[height, width]

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
            with self.borrow():
                self._empty = self.keep_empty()
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
