"""One pass of a VAE that learns to decode: from pictures and their latents to each one's error.

Shapes: B batch, C latent channels, H W latent height and width, h = f H and w = f W pixels, where
f is how many pixels a latent stands for along each edge: 8 in published models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.config import TrainConfig, TrainingMethod
from modules.data import Batch
from modules.families import Family, Parts
from modules.families.loading import DTYPES
from modules.training.forward import FULL, Draw, Forward
from modules.training.losses import Distance, Masking
from modules.training.schedules import batch_scale


class Decoding:
    """Decodes latents and compares with the pictures that they were made from.

    It stands where `Forward` stands in other runs; noise, timesteps and captions have no part.

    Args:
        config: loss, masks and precision.
        family: the architecture.
        parts: its live networks.
        device: where the loop runs.
    """

    levels = 1
    """Amounts of noise that it knows: none."""
    borrow: Callable[[], AbstractContextManager[None]]
    """As `Forward` has it; the VAE is here anyway."""

    def __init__(
        self, config: TrainConfig, family: Family, parts: Parts, device: torch.device
    ) -> None:
        self._family, self._parts, self._device = family, parts, device
        self.configure(config)

    def configure(self, config: TrainConfig) -> None:
        """Take up settings, at the start or changed while the run goes on."""
        self._compute = None if config.train_dtype in FULL else DTYPES[config.train_dtype]
        self._cache_casts = config.enable_autocast_cache
        self._distance = Distance(
            config.mse_strength,
            config.mae_strength,
            config.log_cosh_strength,
            config.huber_strength,
            config.huber_delta,
        )
        self._scale = batch_scale(config.loss_scaler, config)
        self._unmasked = config.unmasked_probability
        self._masking = None
        if config.masked_training:
            self._masking = Masking(config.unmasked_weight, config.normalize_masked_area_loss)

    def share(self, draws: Sequence[Draw]) -> None:
        """None: there are no timesteps."""

    def draw(
        self, batch: Batch, generator: torch.Generator, timestep: Tensor | None = None
    ) -> Draw:
        """A batch on the training device; the generator decides whose masks are left out.

        Args:
            batch: from the training set, pictures beside their latents.
            generator: on the training device.
            timestep: given for a measurement, in which nothing is left out.
        """
        held = batch.latents.to(self._device, torch.float32, non_blocking=True)
        weight = batch.loss_weight.to(self._device, torch.float32, non_blocking=True)
        size = batch.size.to(self._device, non_blocking=True)
        mask = None
        if self._masking is not None and batch.mask is not None:
            mask = batch.mask.to(self._device, torch.float32, non_blocking=True)
            if self._unmasked and timestep is None:
                draws = torch.rand(len(mask), generator=generator, device=generator.device)
                mask = torch.where((draws < self._unmasked).view(-1, 1, 1, 1), 1.0, mask)
        nothing = held.new_zeros(len(held), 0)
        return Draw(held, nothing, nothing, batch.captions, None, weight, size, mask)

    def loss(self, draw: Draw) -> Tensor:
        """Weighted error of each picture, [B], float32, with its graph."""
        latents, pixels = apart(draw.latents, self._parts.pipeline.vae_scale_factor)
        with torch.autocast(
            self._device.type,
            self._compute or torch.bfloat16,
            enabled=self._compute is not None,
            cache_enabled=self._cache_casts,
        ):
            decoded = self._family.decode(self._parts, latents)
        factor = draw.weight * self._scale
        if self._masking is None or draw.mask is None:
            return self._distance(decoded, pixels) * factor
        mask = F.interpolate(draw.mask, pixels.shape[-2:])
        return self._masking(self._distance.elements(decoded, pixels), mask) * factor


def together(latents: Tensor, pixels: Tensor) -> Tensor:
    """Latents [B, C, H, W], pictures [B, 3, h, w] -> what the cache holds, [B, C + 3ff, H, W]."""
    edge = pixels.shape[-1] // latents.shape[-1]
    return torch.cat([latents, F.pixel_unshuffle(pixels.to(latents), edge)], 1)


def apart(held: Tensor, edge: int) -> tuple[Tensor, Tensor]:
    """The way back of `together`, given f."""
    channels = held.shape[1] - 3 * edge**2
    return held[:, :channels], F.pixel_shuffle(held[:, channels:], edge)


def forward_for(
    config: TrainConfig, family: Family, parts: Parts, device: torch.device, cached: bool
) -> Forward | Decoding:
    """What a run does with a batch, by what it trains; `cached` is whether captions are."""
    if config.training_method is TrainingMethod.FINE_TUNE_VAE:
        return Decoding(config, family, parts, device)
    forward = Forward(config, family, parts, device)
    if cached and config.text_encoder.dropout_probability:
        forward.keep_empty()
    return forward
