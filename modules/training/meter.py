"""Reads losses back from the device without making it wait, and smooths them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.training.by_timestep import ByTimestep


@dataclass(frozen=True, slots=True)
class Reading:
    """What one optimizer step measured, on the CPU."""

    step: int
    epoch: int
    epoch_step: int
    loss: float
    smooth_loss: float
    grad_norm: float
    learning_rate: dict[str, float]
    steps_per_second: float
    corrected_loss: float | None
    """Smoothed, without what the timesteps make of it; None where they are not known."""
    finite: bool
    """Whether loss and gradient were numbers, so that the step changed the weights."""


class Meter:
    """Holds each step's numbers until the device has computed them.

    On a GPU they are copied behind the step's own work and read once they have arrived, some steps
    later; on a CPU at once. `smooth_loss` is a moving average whose memory grows to 100 steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[tuple[int, int, int, dict[str, float], Tensor, object]] = deque()
        self._smooth = 0.0
        self._count = 0
        self._corrected = 0.0
        self._by_timestep = ByTimestep()
        self._marks: deque[float] = deque(maxlen=20)

    def push(
        self,
        step: int,
        epoch: int,
        epoch_step: int,
        rates: dict[str, float],
        loss: Tensor,
        grad_norm: Tensor,
        timestep: Tensor | None = None,
    ) -> None:
        """Note a step; all tensors are scalars on the training device.

        `timestep` is the mean of the step's timesteps as a share of all.
        """
        found = [loss, grad_norm] if timestep is None else [loss, grad_norm, timestep]
        numbers = torch.stack([each.detach().float() for each in found])
        arrived: object = None
        if self._device.type == "cuda":
            host = torch.empty(len(found), pin_memory=True)
            host.copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
            numbers = host
        self._pending.append((step, epoch, epoch_step, rates, numbers, arrived))

    def readings(self, wait: bool = False) -> Iterator[Reading]:
        """The steps whose numbers have arrived, oldest first; all of them if told to wait.

        A step that was no number leaves the smoothed loss as it was.
        """
        while self._pending:
            step, epoch, epoch_step, rates, numbers, arrived = self._pending[0]
            if isinstance(arrived, torch.cuda.Event):
                if wait:
                    arrived.synchronize()
                elif not arrived.query():  # type: ignore[no-untyped-call]
                    return
            self._pending.popleft()
            loss, grad_norm, *rest = numbers.tolist()
            finite = math.isfinite(loss) and math.isfinite(grad_norm)
            smooth = self._smoothed(loss) if finite else self._smooth
            if finite and rest:
                self._correct(loss, *rest)
            corrected, speed = self._corrected if rest else None, self._speed()
            measured = (loss, smooth, grad_norm, rates, speed, corrected, finite)
            yield Reading(step, epoch, epoch_step, *measured)

    def restart_clock(self) -> None:
        """Forget the speed so far: call it after a pause, or work that is no training."""
        self._marks.clear()

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs to go on smoothing."""
        own = {"smooth": self._smooth, "count": self._count, "corrected": self._corrected}
        return own | self._by_timestep.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up a backup's average."""
        self._smooth, self._count = state["smooth"], int(state["count"])
        self._corrected = state.get("corrected", self._smooth)
        self._by_timestep.load_state_dict(state)

    def _correct(self, loss: float, timestep: float) -> None:
        loss = self._by_timestep.correct(loss, self._smooth, timestep)
        memory = min(0.99, 1 - 1 / self._count)
        self._corrected = memory * self._corrected + (1 - memory) * loss

    def _smoothed(self, loss: float) -> float:
        self._count += 1
        memory = min(0.99, 1 - 1 / self._count)
        self._smooth = memory * self._smooth + (1 - memory) * loss
        return self._smooth

    def _speed(self) -> float:
        self._marks.append(time.monotonic())
        seconds = self._marks[-1] - self._marks[0]
        return (len(self._marks) - 1) / seconds if seconds > 0 else 0.0
