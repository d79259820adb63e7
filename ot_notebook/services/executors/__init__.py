"""Where a run executes: the seam between the service and whatever does the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from modules.config import TrainConfig
    from modules.training.commands import TrainCommands
    from modules.training.events import Event
    from modules.training.trainer import GenericTrainer


class Executor(Protocol):
    """One run, wherever it executes. It says everything through `emit`, given when it was made."""

    @property
    def trainer(self) -> GenericTrainer | None:
        """The live trainer, where the run executes in this process; else None."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of the run; whether it has come."""


Execute = Callable[
    ["TrainConfig", Callable[["Event"], None], "TrainCommands", Callable[[], None]], Executor
]
"""Starts a run and returns at once.

It is given the config; `emit`, which receives every event in order, the last of them an ended
state; the run's commands; and `done`, to be called last of all.
"""
