"""Which noise levels a step trains on.

Every distribution is a probability for each of the n timesteps inside the chosen window, worked out
once; a draw is one uniform number and one search, so all of them come from the run's own generator.

Symbols, as in the settings: w noising_weight, b noising_bias, s shift; x is a timestep's share of
the window, 0 at its clean end and 1 at its noisy end. A shift maps x to `s x / (1 + (s - 1) x)`
(Esser et al. 2024, arXiv:2403.03206, equation 23), so a density f becomes `f(x') dx'/dx` at
`x' = x / (s - (s - 1) x)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modules.config import TimestepDistribution as Kind

HEAVY_TAIL_POINTS = 200_000
"""Points of the numeric histogram of HEAVY_TAIL, whose CDF has no closed form."""


@dataclass(frozen=True)
class Timesteps:
    """Draws timesteps `first` (included) to `last` (excluded)."""

    kind: Kind
    first: int
    last: int
    weight: float = 0.0
    bias: float = 0.0
    shift: float = 1.0
    shift_for: Callable[[int, int], float] | None = None
    """Shift for latents of a height and width; takes the place of `shift`."""
    _tables: dict[tuple[float, torch.device], Tensor] = field(default_factory=dict, repr=False)

    def draw(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """A timestep for each of the latents [B, ..., H, W]: [B], int64, where the generator is."""
        height, width = latents.shape[-2:]
        shift = self.shift_for(height, width) if self.shift_for else self.shift
        uniform = torch.rand(len(latents), generator=generator, device=generator.device)
        drawn = torch.searchsorted(self._cumulative(shift, generator.device), uniform, right=True)
        return drawn + self.first

    def _cumulative(self, shift: float, device: torch.device) -> Tensor:
        key = (shift, device)
        if key not in self._tables:
            count = self.last - self.first
            chances = probabilities(self.kind, count, self.weight, self.bias, shift)
            table = chances.cumsum(0)
            # Rounding must not leave a gap at the end that a draw could fall into; timesteps of
            # probability 0 there stay impossible.
            table[torch.nonzero(chances)[-1, 0] :] = 1.0
            self._tables[key] = table.float().to(device)
        return self._tables[key]


def dynamic_shift(scheduler_config: Mapping[str, Any]) -> Callable[[int, int], float]:
    """Shift by picture size, as a flow model's scheduler describes it.

    mu rises linearly with the number of image tokens (2x2 latent cells each), shift is e^mu.

    Raises:
        KeyError: if the scheduler has no such description.
    """
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    low, high, low_mu, high_mu = (float(scheduler_config[name]) for name in names)
    slope = (high_mu - low_mu) / (high - low)
    return lambda height, width: math.exp(low_mu + slope * ((height // 2) * (width // 2) - low))


def probabilities(kind: Kind, count: int, weight: float, bias: float, shift: float) -> Tensor:
    """Probability of each of `count` timesteps, [count], float64, sum 1.

    Sources: LOGIT_NORMAL, HEAVY_TAIL (there "mode sampling") and COS_MAP: Esser et al. 2024,
    arXiv:2403.03206, section 3.1. The others are OneTrainer's.
    """
    chances: Tensor
    if kind in DENSITIES:
        x = torch.linspace(0, 1, count, dtype=torch.float64)
        inner = x / (shift - (shift - 1) * x)
        slope = shift / (shift - (shift - 1) * x).square()
        chances = DENSITIES[kind](inner, weight, bias) * slope
    else:
        edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        inner = edges / (shift - (shift - 1) * edges)
        chances = CUMULATIVE[kind](inner, weight, bias).diff()
    positive: Tensor = chances.clamp(min=0)
    return positive / positive.sum()


def _logit_normal(x: Tensor, weight: float, bias: float) -> Tensor:
    below: Tensor = torch.special.ndtr((torch.logit(x) - bias) / (weight + 1))
    return below


def _heavy_tail(x: Tensor, weight: float, _bias: float) -> Tensor:
    points = (torch.arange(HEAVY_TAIL_POINTS, dtype=torch.float64) + 0.5) / HEAVY_TAIL_POINTS
    cosine = torch.cos(math.pi / 2 * points).square()
    mapped, _ = (1 - points - weight * (cosine - 1 + points)).sort()
    return torch.searchsorted(mapped, x).double() / HEAVY_TAIL_POINTS


def _beta(x: Tensor, weight: float, bias: float) -> Tensor:
    """CDF of Beta(max(1e-4, w), max(1e-4, b)), up to a factor: its density, bin by bin."""
    alpha, beta = max(1e-4, weight), max(1e-4, bias)
    near = x[1:] + x[:-1] < 1.0
    left = _beta_mass(x[:-1], x[1:], alpha, beta)
    right = _beta_mass(1 - x[1:], 1 - x[:-1], beta, alpha)
    return torch.cat([x[:1], torch.where(near, left, right).cumsum(0)])


def _beta_mass(low: Tensor, high: Tensor, alpha: float, beta: float) -> Tensor:
    """Integral of `t^(a-1) (1-t)^(b-1)` from each low to its high.

    With `v = t^a` the integrand is `(1 - v^(1/a))^(b-1) / a`, which has no pole at 0; 16 midpoints
    in v are exact to 1e-6 of the whole.
    """
    points = (torch.arange(16, dtype=low.dtype) + 0.5) / 16
    start, width = low.pow(alpha), high.pow(alpha) - low.pow(alpha)
    inside = 1 - (start[:, None] + width[:, None] * points).pow(1 / alpha)
    return inside.clamp(min=1e-300).pow(beta - 1).mean(1) * width / alpha


def _cos_map(x: Tensor, _weight: float, _bias: float) -> Tensor:
    return 2 / (math.pi - 2 * math.pi * x + 2 * math.pi * x.square())


def _sigmoid(x: Tensor, weight: float, bias: float) -> Tensor:
    return torch.sigmoid(weight * (x - (bias + 0.5)))


def _inverted_parabola(x: Tensor, weight: float, bias: float) -> Tensor:
    return (2 - weight * (x - (bias + 0.5)).square()).clamp(min=0)


CUMULATIVE: dict[Kind, Callable[[Tensor, float, float], Tensor]] = {
    Kind.UNIFORM: lambda x, _weight, _bias: x,
    Kind.LOGIT_NORMAL: _logit_normal,
    Kind.HEAVY_TAIL: _heavy_tail,
    Kind.BETA: _beta,
}
"""Distributions that are given by their CDF, at shift 1."""

DENSITIES: dict[Kind, Callable[[Tensor, float, float], Tensor]] = {
    Kind.COS_MAP: _cos_map,
    Kind.SIGMOID: _sigmoid,
    Kind.INVERTED_PARABOLA: _inverted_parabola,
}
"""Distributions that are given by a density at each timestep, at shift 1."""
