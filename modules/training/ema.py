"""A moving average of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Holds an average of parameters and can stand in for them.

    Args:
        parameters: what is averaged; the average starts as their copy.
        decay: share of the old average that an update keeps, once the run is long enough.
        interval: optimizer steps between updates.
        device: where the average lives; None for beside the parameters.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        decay: float,
        interval: int,
        device: torch.device | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self.decay, self._interval = decay, max(1, interval)
        # A copy also where nothing moves: an average that aliased its parameters would be them.
        self._average = [
            p.detach().to(device or p.device, torch.float32, copy=True) for p in self._parameters
        ]

    def decay_at(self, step: int) -> float:
        """Decay of the update after `step` earlier ones: young averages forget faster."""
        return min((1 + step) / (10 + step), self.decay)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights, if this step is due; `step` optimizer steps were done before it."""
        if (step + 1) % self._interval:
            return
        now = [
            p.detach().to(average.device, torch.float32)
            for p, average in zip(self._parameters, self._average, strict=True)
        ]
        torch._foreach_lerp_(self._average, now, 1.0 - self.decay_at(step))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters hold the average inside the block, and their own bits again after it."""
        own = [p.detach().clone() for p in self._parameters]
        self._write(self._average)
        try:
            yield
        finally:
            self._write(own)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The average, in the parameters' order."""
        return {"average": self._average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Take up a backup's average.

        Raises:
            ValueError: if it is of other parameters.
        """
        shapes = [tuple(tensor.shape) for tensor in state["average"]]
        if shapes != [tuple(tensor.shape) for tensor in self._average]:
            raise ValueError("the backup's EMA is of other parameters than this run trains")
        for average, tensor in zip(self._average, state["average"], strict=True):
            average.copy_(tensor)

    @torch.no_grad()
    def _write(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self._parameters, tensors, strict=True):
            parameter.copy_(tensor)
