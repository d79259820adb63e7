"""What a denoiser learns: how latents are noised, what it should answer, what each answer counts.

Shapes: B batch, C latent channels, H W latent height and width, N noise levels (1000, or 10,000 for
a continuous schedule). Timesteps are whole numbers, 0 (clean) to N - 1 (noise), in every objective;
`time` turns them into what a family's `predict` takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from modules.config import ConfigError, LossWeight, Problem, TrainConfig
from modules.families.base import Objective
from modules.training.timesteps import Timesteps, dynamic_shift

LEVELS = 1000
"""Noise levels of a flow model, which itself knows only a continuous time."""
COSINE_LEVELS = 10_000
"""Those of a continuous cosine schedule: as fine as OneTrainer draws them."""
COSINE_OFFSET = 0.008
"""How far from 0 the cosine begins, so that the first levels differ."""
COSINE_LEAST = 0.001
"""The least time that is drawn."""
COSINE_REACH = {"cosine": 1.0, "cosine_dwelling": 1.08}
"""Factor of the drawn times, by objective; what passes 1 stays there, and is pure noise."""


@dataclass(frozen=True)
class Diffusion:
    """Diffusion that predicts the noise or the velocity, on levels of a schedule.

    Source: Ho et al. 2020, arXiv:2006.11239 (noising); Salimans and Ho 2022, arXiv:2202.00512
    (velocity).
    """

    signal: Tensor
    """Factor of the latents at each timestep, [N]: the root of alphas_cumprod."""
    sigma: Tensor
    """Factor of the noise at each timestep, [N]."""
    prediction: Literal["epsilon", "v_prediction"]
    weights: Tensor
    """Factor of the loss at each timestep, [N]."""
    times: Tensor | None = None
    """What the denoiser is told at each timestep, [N]; None for its number."""

    @classmethod
    def build(
        cls,
        alphas_cumprod: Tensor,
        prediction: Literal["epsilon", "v_prediction"],
        loss_weight: LossWeight,
        gamma: float,
        times: Tensor | None = None,
    ) -> Diffusion:
        """From a schedule's share of signal variance, [N], and a loss weight of strength gamma."""
        velocity = prediction == "v_prediction"
        weights = snr_weights(alphas_cumprod, velocity, loss_weight, gamma)
        signal, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        return cls(signal, sigma, prediction, weights, times)

    @property
    def levels(self) -> int:
        """How many timesteps there are."""
        return len(self.signal)

    def time(self, timestep: Tensor) -> Tensor:
        """The timesteps as they are, or the continuous times that they stand for."""
        return timestep if self.times is None else self.times[timestep]

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """`signal * latents + sigma * noise`, [B, C, H, W]."""
        signal, sigma = _at(self.signal, timestep, latents), _at(self.sigma, timestep, latents)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the denoiser should say, [B, C, H, W]: the noise, or the velocity."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = _at(self.signal, timestep, latents), _at(self.sigma, timestep, latents)
        return signal * noise - sigma * latents

    def weight(self, timestep: Tensor) -> Tensor:
        """Factor of each image's loss, [B]."""
        return self.weights[timestep]


@dataclass(frozen=True)
class Flow:
    """Rectified flow: the straight path from data to noise, and its velocity.

    Timestep i stands for sigma = (i + 1) / N. Source: Liu et al. 2022, arXiv:2209.03003.
    """

    sigmas: Tensor
    """Share of noise at each timestep, [N], 1/N to 1."""
    weights: Tensor
    """Factor of the loss at each timestep, [N]."""

    @classmethod
    def build(cls, loss_weight: LossWeight, device: torch.device | str = "cpu") -> Flow:
        """With constant weights or weights that grow with sigma.

        Raises:
            ConfigError: for a loss weight that needs a signal-to-noise ratio.
        """
        sigmas = torch.arange(1, LEVELS + 1, dtype=torch.float32, device=device) / LEVELS
        if loss_weight is LossWeight.SIGMA:
            return cls(sigmas, sigmas)
        if loss_weight is not LossWeight.CONSTANT:
            raise _weight_error(loss_weight, "a flow model", "CONSTANT or SIGMA")
        return cls(sigmas, torch.ones_like(sigmas))

    @property
    def levels(self) -> int:
        """How many timesteps there are."""
        return len(self.sigmas)

    def time(self, timestep: Tensor) -> Tensor:
        """Sigma of each timestep, in (0, 1]."""
        return self.sigmas[timestep]

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """`(1 - sigma) * latents + sigma * noise`, of the latents' shape."""
        return torch.lerp(latents, noise, _at(self.sigmas, timestep, latents))

    def target(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:  # noqa: ARG002
        """The path's velocity `noise - latents`, the same at every timestep."""
        return noise - latents

    def weight(self, timestep: Tensor) -> Tensor:
        """Factor of each image's loss, [B]."""
        return self.weights[timestep]


TrainingObjective = Diffusion | Flow


def build_objective(
    config: TrainConfig, kind: Objective, scheduler: Any, device: torch.device
) -> tuple[TrainingObjective, Timesteps]:
    """The objective of a model and the timesteps to train it on.

    Args:
        config: loss weight, timestep distribution and window.
        kind: what the model predicts.
        scheduler: the model's diffusers scheduler.
        device: where the loop runs.

    Raises:
        ConfigError: for a loss weight or a shift that this kind of model cannot have.
    """
    objective: TrainingObjective
    weighting = config.loss_weight_fn, config.loss_weight_strength
    if kind == "flow":
        objective = Flow.build(config.loss_weight_fn, device)
    elif kind in ("epsilon", "v_prediction"):
        objective = Diffusion.build(scheduler.alphas_cumprod.to(device), kind, *weighting)
    else:
        times = cosine_times(COSINE_REACH[kind]).to(device)
        objective = Diffusion.build(cosine_alphas(times), "epsilon", *weighting, times)
    shift_for = None
    if config.dynamic_timestep_shifting:
        try:
            shift_for = dynamic_shift(scheduler.config)
        except KeyError as error:
            raise ConfigError(
                [
                    Problem(
                        "dynamic_timestep_shifting",
                        "error",
                        f"dynamic_timestep_shifting is on, but the model's scheduler "
                        f"has no {error}.",
                        "Turn it off, and set timestep_shift to a fixed shift.",
                    )
                ]
            ) from None
    first = int(objective.levels * config.min_noising_strength)
    timesteps = Timesteps(
        config.timestep_distribution,
        first,
        max(first + 1, int(objective.levels * config.max_noising_strength)),
        config.noising_weight,
        config.noising_bias,
        config.timestep_shift,
        shift_for,
    )
    return objective, timesteps


def cosine_times(reach: float) -> Tensor:
    """The times of a continuous schedule's levels, [N], 0.001 to 1: 0.001 + (i + 1) / N.

    With a reach above 1 the last of them are all 1, so that pure noise is drawn more often.

    Source: the training of Würstchen, Pernias et al. 2023, arXiv:2306.00637, in the code that came
    with it; of Stable Cascade, OneTrainer's.
    """
    ratios = torch.arange(1, COSINE_LEVELS + 1, dtype=torch.float32) / COSINE_LEVELS
    return (ratios * reach + COSINE_LEAST).clamp(COSINE_LEAST, 1.0)


def cosine_alphas(times: Tensor) -> Tensor:
    """Share of signal variance at times in [0, 1], of their shape.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17; bounds as in diffusers'
    DDPMWuerstchenScheduler.
    """
    angle = (times + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)
    first = math.cos(COSINE_OFFSET / (1 + COSINE_OFFSET) * math.pi / 2)
    return (angle.cos() / first).square().clamp(0.0001, 0.9999)


def snr_weights(
    alphas_cumprod: Tensor, velocity: bool, loss_weight: LossWeight, gamma: float
) -> Tensor:
    """Factor of the loss at each timestep, [N], from its signal-to-noise ratio.

    Sources: MIN_SNR_GAMMA Hang et al. 2023, arXiv:2303.09556; DEBIASED_ESTIMATION Yu et al. 2023,
    arXiv:2310.08442; P2 Choi et al. 2022, arXiv:2204.00227. The forms for velocity count that its
    error is (SNR + 1) times that of the clean image.

    Raises:
        ConfigError: for SIGMA, which only a flow model has.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if loss_weight is LossWeight.CONSTANT:
        return torch.ones_like(snr)
    if loss_weight is LossWeight.MIN_SNR_GAMMA:
        return snr.clamp(max=gamma) / (snr + 1 if velocity else snr)
    if loss_weight is LossWeight.DEBIASED_ESTIMATION:
        return (snr.clamp(max=1000) + (1 if velocity else 0)).rsqrt()
    if loss_weight is LossWeight.P2:
        return (snr + (2 if velocity else 1)).pow(-gamma)
    raise _weight_error(
        loss_weight,
        "a model that predicts noise or velocity",
        "CONSTANT, MIN_SNR_GAMMA, DEBIASED_ESTIMATION or P2",
    )


def _at(table: Tensor, timestep: Tensor, like: Tensor) -> Tensor:
    """Rows of a table of N numbers, [B, 1, ...], to multiply with `like`."""
    return table[timestep].view(-1, *[1] * (like.ndim - 1))


def _weight_error(loss_weight: LossWeight, model: str, usable: str) -> ConfigError:
    return ConfigError(
        [
            Problem(
                "loss_weight_fn",
                "error",
                f"loss_weight_fn is {loss_weight.value}, which {model} cannot have.",
                f"Use {usable}.",
            )
        ]
    )
