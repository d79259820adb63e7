"""When something falls due: samples, backups and saves, and the end of a part's training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from modules.config import TimeUnit, TrainConfig

SECONDS = {TimeUnit.SECOND: 1.0, TimeUnit.MINUTE: 60.0, TimeUnit.HOUR: 3600.0}


class Schedule:
    """What a run does now and then between its steps."""

    def __init__(self) -> None:
        self.sampling = Due(0, TimeUnit.NEVER, at_start=True)
        self.validation = Due(0, TimeUnit.NEVER, at_start=True)
        self.backup = Due(0, TimeUnit.NEVER)
        self.saving = Due(0, TimeUnit.NEVER)

    def configure(self, config: TrainConfig) -> None:
        """Take up the settings, at the start or changed on the way."""
        self.sampling.change(
            config.sample_after, config.sample_after_unit, config.sample_skip_first
        )
        unit = config.validate_after_unit if config.validation else TimeUnit.NEVER
        self.validation.change(config.validate_after, unit)
        self.backup.change(config.backup_after, config.backup_after_unit)
        self.saving.change(config.save_every, config.save_every_unit, config.save_skip_first)

    @property
    def seconds(self) -> float:
        """Since the run began, but for the time between a backup and going on from it."""
        return self.backup.seconds

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Clocks and counters of all."""
        return {name: due.state_dict() for name, due in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, dict[str, float]]) -> None:
        """Go on as if no time had passed since the backup."""
        for name, due in vars(self).items():
            due.load_state_dict(state[name])


class Due:
    """Fires every `every` units of epochs, optimizer steps or time.

    Args:
        every: how many units lie between two firings.
        unit: what is counted; NEVER and ALWAYS count nothing.
        at_start: whether it also fires before the first step.
        skip: units at the beginning of the run in which it stays silent.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        every: float,
        unit: TimeUnit,
        *,
        at_start: bool = False,
        skip: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every, self._unit, self._skip = every, unit, skip
        self._at_start, self._clock = at_start, clock
        self._began = self._fired = clock()
        self._asked = -1
        self._again: float | None = None

    def fires(self, step: int, epoch: int, epoch_ended: bool) -> bool:
        """Whether it is due after `step` optimizer steps and `epoch` whole epochs.

        Asked about the same step again, as after a resume, it says no.
        """
        if step == self._asked:
            return False
        self._asked = step
        if self._again is not None and self._clock() >= self._again:
            self._again = None
            return True
        if self._unit is TimeUnit.NEVER or self._every <= 0:
            return False
        if step == 0:
            return self._at_start and self._skip <= 0
        if self._unit is TimeUnit.ALWAYS:
            return True
        if self._unit in SECONDS:
            return self._time_is_up(SECONDS[self._unit])
        if self._unit is TimeUnit.STEP:
            return step > self._skip and step % self._every == 0
        return epoch_ended and epoch > self._skip and epoch % self._every == 0

    def change(self, every: float, unit: TimeUnit, skip: float = 0) -> None:
        """Count otherwise from now on; what has been counted so far stays."""
        self._every, self._unit, self._skip = every, unit, skip

    def again(self, seconds: float = 60.0) -> None:
        """Fire once more after so long, because it could not be done; in a resumed run, at once."""
        self._asked, self._again = -1, self._clock() + seconds

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    def state_dict(self) -> dict[str, float]:
        """Seconds on its clocks, the step it was last asked about, and whether it owes one."""
        now = self._clock()
        return {
            "began": now - self._began,
            "fired": now - self._fired,
            "asked": self._asked,
            "owed": self._again is not None,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on as if no time had passed since the backup."""
        now = self._clock()
        self._began, self._fired = now - state["began"], now - state["fired"]
        self._asked = int(state["asked"])
        self._again = now if state.get("owed") else None  # older backups do not say

    def _time_is_up(self, unit: float) -> bool:
        now = self._clock()
        if now - self._began <= self._skip * unit or now - self._fired < self._every * unit:
            return False
        self._fired = now
        return True


def freeze_finished(
    config: TrainConfig,
    trainable: Mapping[str, Sequence[nn.Parameter]],
    step: int,
    epoch: int,
    seconds: float,
) -> list[str]:
    """Freeze the parts whose training is over, as `stop_training_after` says; returns their names.

    ALWAYS stops a part before it has begun.

    Args:
        config: says when each part stops.
        trainable: what trains, by part.
        step: optimizer steps done.
        epoch: whole epochs done.
        seconds: of the run.
    """
    finished = []
    done: dict[TimeUnit, float] = {TimeUnit.EPOCH: epoch, TimeUnit.STEP: step}
    done |= {unit: seconds / length for unit, length in SECONDS.items()}
    for name, parameters in trainable.items():
        part = config.get(name)
        unit, limit = part.stop_training_after_unit, part.stop_training_after
        over = unit is TimeUnit.ALWAYS or (limit and unit in done and done[unit] >= limit)
        if over and parameters[0].requires_grad:
            for parameter in parameters:
                parameter.requires_grad_(False)
            finished.append(name)
    return finished


def anything_learns(trainable: Mapping[str, Sequence[nn.Parameter]]) -> bool:
    """Whether any part still trains."""
    return any(parameters and parameters[0].requires_grad for parameters in trainable.values())
