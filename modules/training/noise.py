"""The noise that latents are mixed with, and the changes to a model's noise schedule.

Shapes: B batch, C latent channels, H W latent height and width, N noise levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modules.config import ConfigError, Problem, TrainConfig, settings
from modules.training.objective import Diffusion, TrainingObjective


@dataclass(frozen=True)
class Noise:
    """Standard normal noise, with what the settings add to it.

    Offset noise shifts each channel of each image by one draw, so that the model learns pictures
    that are dark or bright as a whole.
    """

    offset: float = 0.0
    perturbation: float = 0.0
    """Strength of a second, independent draw that is added to every element."""
    offset_scale: Tensor | None = None
    """Factor of the offset at each timestep, [N]; None for 1 at all of them."""

    def draw(self, latents: Tensor, timestep: Tensor, generator: torch.Generator) -> Tensor:
        """Noise like the latents [B, C, ...], for timesteps [B]; on the generator's device."""

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(
                shape, generator=generator, device=generator.device, dtype=latents.dtype
            )

        noise = normal(latents.shape)
        if self.offset:
            ones = (1,) * (latents.ndim - 2)
            shift = self.offset * normal((*latents.shape[:2], *ones))
            if self.offset_scale is not None:
                shift = shift * self.offset_scale[timestep].view(-1, 1, *ones)
            noise = noise + shift
        if self.perturbation:
            noise = noise + self.perturbation * normal(latents.shape)
        return noise


def build_noise(config: TrainConfig, objective: TrainingObjective) -> Noise:
    """The noise that the settings ask for.

    Raises:
        ConfigError: if the generalised offset is asked for where it has no meaning.
    """
    scale = None
    if config.offset_noise_weight and config.generalized_offset_noise:
        if not isinstance(objective, Diffusion):
            raise _offset_error(
                "needs a model that predicts noise or velocity; a flow model has no such schedule."
            )
        if not objective.signal[-1] > 0:
            raise _offset_error(
                "has no offset left on a schedule that ends in pure noise, as "
                "rescale_noise_scheduler_to_zero_terminal_snr makes it."
            )
        scale = offset_schedule(objective.signal, objective.sigma)
    return Noise(config.offset_noise_weight, config.perturbation_noise_weight, scale)


def offset_schedule(signal: Tensor, sigma: Tensor) -> Tensor:
    """Factor of a generalised offset at each timestep, [N], rising to 1.

    An offset that is part of the forward process moves x_t by `phi_t xi`, and the posterior mean
    then asks the model for `noise + psi_t xi` with `psi_t = sigma_t (phi_t - sqrt(alpha_t)
    phi_(t-1)) / beta_t`. Where both are to be the same noise, `phi_t = sigma_t psi_t`, that leaves
    `psi_t` in proportion to `sigma_t / signal_t`.

    Source: Kutsuna 2024, arXiv:2412.03134 (the balanced schedule), by the derivation above.
    """
    ratio = sigma / signal
    return ratio / ratio[-1]


def adapt_scheduler(pipeline: Any, config: TrainConfig) -> None:
    """Give a pipeline the noise schedule that the settings ask for; samples then follow it too.

    Only Stable Diffusion and SDXL can have another; settings leave that of other models alone.

    Zero terminal SNR makes the last timestep pure noise, which only a velocity can learn, and
    samples from it have to start there. Source: Lin et al. 2023, arXiv:2305.08891.
    """
    changes: dict[str, Any] = {}
    if not ADAPTABLE.fits_model(config):
        return
    if config.rescale_noise_scheduler_to_zero_terminal_snr:
        changes = {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        }
    elif config.force_v_prediction:
        changes = {"prediction_type": "v_prediction"}
    elif config.force_epsilon_prediction:
        changes = {"prediction_type": "epsilon"}
    if changes:
        from diffusers import DDIMScheduler

        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **changes)


ADAPTABLE = next(s for s in settings(TrainConfig) if s.path == "force_v_prediction")
"""Says which model types can have another schedule."""


def _offset_error(why: str) -> ConfigError:
    return ConfigError(
        [
            Problem(
                "generalized_offset_noise",
                "error",
                f"generalized_offset_noise {why}",
                "Turn it off for plain offset noise.",
            )
        ]
    )
