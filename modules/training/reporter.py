"""What a run says about its steps: measured without waiting for the device, and in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from modules.training.events import Event, LossUpdate, Progress, Warned
from modules.training.meter import Meter, Reading

SKIPPED_IN_A_ROW = 20
"""Steps without a finite gradient after which a run gives up; half precision needs a few."""


class Reporter:
    """Turns steps into events.

    Args:
        emit: receives them.
        device: where the steps run.
        max_step: optimizer steps of the run.
        max_epoch: its epochs.
        images: images of an optimizer step.
        batches_in: batches of an epoch, counted from 0.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        device: torch.device,
        max_step: int,
        max_epoch: int,
        images: int,
        batches_in: Callable[[int], int],
    ) -> None:
        self._emit, self._device = emit, device
        self._max_step, self._max_epoch, self._images = max_step, max_epoch, images
        self._batches_in = lru_cache(maxsize=2)(batches_in)  # asked at every step
        self._skipped = 0
        self.meter = Meter(device)
        """Its smoothed loss is part of a backup."""

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
        """Note a step that was just asked for; see `Meter.push`."""
        self.meter.push(step, epoch, epoch_step, rates, loss, grad_norm, timestep)
        self.report()

    def report(self, wait: bool = False) -> None:
        """Emit what the device has finished computing; all of it if told to wait.

        Raises:
            FloatingPointError: if too many steps in a row changed nothing.
        """
        for done in self.meter.readings(wait):
            if done.finite:
                self._skipped = 0
                self._say(done)
            else:
                self._say_skipped(done)

    def _say(self, done: Reading) -> None:
        cuda = self._device.type == "cuda"
        self._emit(
            LossUpdate(
                done.step,
                done.epoch + 1,
                done.loss,
                done.smooth_loss,
                done.learning_rate,
                done.grad_norm,
                done.steps_per_second * self._images,
                torch.cuda.max_memory_allocated(self._device) if cuda else 0,
                done.corrected_loss,
            )
        )
        left = self._max_step - done.step
        self._emit(
            Progress(
                done.step,
                self._max_step,
                done.epoch + 1,
                self._max_epoch,
                done.epoch_step,
                self._batches_in(done.epoch),
                done.loss,
                done.smooth_loss,
                max(done.learning_rate.values()),
                done.steps_per_second,
                left / done.steps_per_second if done.steps_per_second else 0.0,
            )
        )

    def _say_skipped(self, done: Reading) -> None:
        self._skipped += 1
        what = f"loss {done.loss:g}, gradient norm {done.grad_norm:g}"
        if self._skipped >= SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"{self._skipped} steps in a row had no finite gradient (step {done.step}: "
                f"{what}). Lower learning_rate or clip_grad_norm; with train_dtype FLOAT_16 use "
                f"BFLOAT_16 or FLOAT_32."
            )
        self._emit(
            Warned(
                f"Step {done.step} was skipped: {what}. The weights are as before it "
                f"({self._skipped} in a row; the run ends at {SKIPPED_IN_A_ROW})."
            )
        )
