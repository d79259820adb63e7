"""The loss of a learned variance: how well a step's spread is predicted, not its middle.

Shapes: B batch, C latent channels, H W latent height and width, N noise levels.

Source: Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.1; the posterior is equations 6 and 7
of Ho et al. 2020, arXiv:2006.11239.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VarianceLoss:
    """One term of the variational bound, in bits, of a model that predicts the noise.

    Its gradient reaches the variance alone: the middle is learned from the noise.
    """

    alphas_cumprod: Tensor
    """Share of signal variance at each timestep, [N]."""
    log_posterior: Tensor
    """Log of the least variance of a step, that of the true posterior, [N]."""
    log_beta: Tensor
    """Log of the greatest, [N]."""
    from_clean: Tensor
    """What the posterior's middle has of the clean latents, [N]..."""
    from_noisy: Tensor
    """...and of the noisy ones, [N]."""

    @classmethod
    def build(cls, alphas_cumprod: Tensor) -> VarianceLoss:
        """From a schedule's share of signal variance, [N]."""
        now = alphas_cumprod.double()
        before = torch.cat([torch.ones_like(now[:1]), now[:-1]])
        beta = 1 - now / before
        posterior = beta * (1 - before) / (1 - now)
        posterior[0] = posterior[1]  # the last step adds no noise, whose log is no number
        tables = (
            posterior.log(),
            beta.log(),
            beta * before.sqrt() / (1 - now),
            (1 - before) * (1 - beta).sqrt() / (1 - now),
        )
        return cls(alphas_cumprod.float(), *(table.float() for table in tables))

    def elements(
        self, latents: Tensor, noisy: Tensor, timestep: Tensor, noise: Tensor, variance: Tensor
    ) -> Tensor:
        """The term of every element, [B, C, H, W], float32, at least about 0.

        Args:
            latents: clean.
            noisy: at the timesteps.
            timestep: [B].
            noise: as predicted.
            variance: as predicted: -1 for the least, 1 for the greatest, between them its log.
        """

        def at(table: Tensor) -> Tensor:
            return table[timestep].view(-1, *[1] * (latents.ndim - 1))

        latents, noisy, noise = latents.float(), noisy.float(), noise.detach().float()
        signal = at(self.alphas_cumprod)
        guess = (noisy - (1 - signal).sqrt() * noise) / signal.sqrt()
        from_clean, from_noisy = at(self.from_clean), at(self.from_noisy)
        off = from_clean * (latents - guess)  # of the two middles; the noisy share is in both
        share = (variance.float() + 1) / 2
        log_true = at(self.log_posterior)
        log_said = share * at(self.log_beta) + (1 - share) * log_true
        divergence = 0.5 * (
            log_said - log_true - 1 + (log_true - log_said).exp() + off.square() / log_said.exp()
        )
        middle = from_clean * guess + from_noisy * noisy
        last = -_log_likelihood(latents, middle, (0.5 * log_said).exp())
        first = (timestep == 0).view(-1, *[1] * (latents.ndim - 1))
        return torch.where(first, last, divergence) / math.log(2)


def _log_likelihood(latents: Tensor, middle: Tensor, spread: Tensor) -> Tensor:
    """Log probability of a bin of 2/255 about each number; latents have no bounds as bytes do."""
    above = torch.special.ndtr((latents - middle + 1 / 255) / spread)
    below = torch.special.ndtr((latents - middle - 1 / 255) / spread)
    return torch.log((above - below).clamp(min=1e-12))
