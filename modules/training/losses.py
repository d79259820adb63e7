"""How far a prediction is from its target.

Shapes: B batch; any number of dimensions after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """A sum of error terms, each with a strength; a term of strength 0 costs nothing.

    log-cosh is `log(cosh(d))`, quadratic near 0 and linear far out. Huber is `d^2 / 2` up to
    `huber_delta` and `delta * (|d| - delta / 2)` beyond (Huber 1964).
    """

    mse: float = 1.0
    mae: float = 0.0
    log_cosh: float = 0.0
    huber: float = 0.0
    huber_delta: float = 1.0

    def elements(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The error of every element, in float32 and of the shape of both.

        Raises:
            ValueError: if the shapes differ (the smaller one would silently broadcast).
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have "
                f"one shape; the smaller one would silently broadcast."
            )
        difference = prediction.float() - target.float()
        terms = []
        if self.mse:
            terms.append(self.mse * difference.square() if self.mse != 1 else difference.square())
        if self.mae:
            terms.append(self.mae * difference.abs())
        if self.log_cosh:
            # log(cosh(d)) overflows beyond |d| = 89; this form does not.
            size = difference.abs()
            terms.append(self.log_cosh * (size + F.softplus(-2.0 * size) - math.log(2.0)))
        if self.huber:
            zero = torch.zeros_like(difference)
            error = F.huber_loss(difference, zero, reduction="none", delta=self.huber_delta)
            terms.append(self.huber * error)
        if not terms:
            raise ValueError(
                "mse_strength, mae_strength, log_cosh_strength and huber_strength are all 0, so "
                "there is no loss. Give one of them a positive value."
            )
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean error of each image, [B], float32."""
        return self.elements(prediction, target).flatten(1).mean(1)


@dataclass(frozen=True)
class Masking:
    """How a mask weighs the error inside an image.

    Outside the mask the error counts `unmasked_weight`, so that the rest is not free to drift. With
    `prior_weight` the rest is also held to what the model drew before training.
    """

    unmasked_weight: float
    normalize: bool
    """Whether the mean is over the masked area rather than the whole image."""
    prior_weight: float = 0.0

    def __call__(self, errors: Tensor, mask: Tensor, prior_errors: Tensor | None = None) -> Tensor:
        """Mean masked error of each image, [B].

        Args:
            errors: error of every element against the target, [B, C, ...].
            mask: 1 where the picture matters, 0 where not, [B, 1, ...].
            prior_errors: error of every element against the untrained model's prediction.
        """
        weight = mask.float().clamp(self.unmasked_weight, 1.0)
        loss = self._mean(errors, weight)
        if prior_errors is not None and self.prior_weight:
            loss = loss + self.prior_weight * self._mean(prior_errors, 1.0 - weight)
        return loss

    def _mean(self, errors: Tensor, weight: Tensor) -> Tensor:
        mean = (errors * weight).flatten(1).mean(1)
        if not self.normalize:
            return mean
        # An empty mask has no masked area to take a mean over: it then counts nothing, where a
        # plain division would make the whole step NaN.
        return mean / weight.flatten(1).mean(1).clamp(min=1e-6)
