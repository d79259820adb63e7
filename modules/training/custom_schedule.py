"""A learning-rate schedule of the user's own: any scheduler class of torch's kind."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from modules.config import ConfigError, Problem
from modules.config.scheduler_params import scheduler_arguments


class CustomSchedule:
    """Walks a scheduler along a run, beside an optimizer of nothing.

    Where it stands depends on the count of steps alone, so that a resumed run goes on exactly.

    Args:
        name: import path of the class.
        params: its arguments, objects with `key` and `value`.
        base: learning rate of each parameter group before the schedule.
        run: what each placeholder in the arguments stands for.

    Raises:
        ConfigError: if there is no such class, it is no scheduler, or refuses its arguments.
    """

    def __init__(
        self,
        name: str,
        params: tuple[dict[str, Any], ...],
        base: Mapping[str, float],
        run: Mapping[str, Any],
    ) -> None:
        self._name, self._class = name, _class_of(name)
        try:
            self._arguments = scheduler_arguments(params, run)
        except ValueError as error:
            raise _error("scheduler_params", f"{error}") from error
        self._base = dict(base)
        self._begin()

    def rates(self, step: int) -> dict[str, float]:
        """Rate of each group after so many steps of the scheduler.

        Raises:
            ConfigError: if the scheduler cannot go that far, or needs to be told the loss.
        """
        if step < self._at:
            self._begin()
        while self._at < step:
            try:
                self._optimizer.step()  # nothing trains; torch wants this order
                self._scheduler.step()
            except (TypeError, ValueError) as error:
                what = f"{self._name} fails after {self._at} steps: {error}."
                raise _error("custom_learning_rate_scheduler", what) from error
            self._at += 1
        groups = self._optimizer.param_groups
        return {group["name"]: float(group["lr"]) for group in groups}

    def _begin(self) -> None:
        self._at = 0
        self._optimizer = torch.optim.SGD(
            [
                {"params": [torch.nn.Parameter(torch.zeros(0))], "lr": rate, "name": name}
                for name, rate in self._base.items()
            ],
            lr=0.0,
            momentum=0.9,  # schedulers that cycle it look for one
        )
        try:
            self._scheduler = self._class(self._optimizer, **self._arguments)
        except Exception as error:
            what = f"{self._name} refuses its arguments: {error}."
            raise _error("scheduler_params", what) from error


def _class_of(name: str) -> type[Any]:
    field = "custom_learning_rate_scheduler"
    module, _, word = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), word)
    except (ImportError, AttributeError, ValueError) as error:
        raise _error(field, f"{name} cannot be imported: {error}.") from error
    kinds = (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise _error(field, f"{name} is no subclass of torch.optim.lr_scheduler.LRScheduler.")
    if issubclass(found, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise _error(field, f"{name} follows a loss, which no schedule knows beforehand.")
    return found


def _error(field: str, what: str) -> ConfigError:
    fix = "Name another class or other arguments, or use another learning_rate_scheduler."
    return ConfigError([Problem(field, "error", what, fix)])
