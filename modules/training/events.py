"""What a run says: every output of the engine is one of these frozen events, in order.

A reader is a `match` that ends in `assert_never`, so an event that nobody handles is a type error.
Each class carries the short `name` that callbacks (`on_<name>`) and `TrainerService.on` use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

State = Literal[
    "idle",
    "loading",
    "caching",
    "training",
    "paused",
    "sampling",
    "saving",
    "stopping",
    "finished",
    "stopped",
    "failed",
]
"""Where a run is. It may go back and forth between training and what interrupts it."""

ENDED: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The run entered another state."""

    name: ClassVar[str] = "state"
    state: State


@dataclass(frozen=True, slots=True)
class StatusLine:
    """What the run is doing now, in words for a person."""

    name: ClassVar[str] = "status"
    text: str


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """How far a part of the run that is not training has come."""

    name: ClassVar[str] = "task"
    task: Literal["loading", "caching", "sampling", "saving"]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Position in the run after a step. Steps are optimizer steps; epochs count from 1."""

    name: ClassVar[str] = "progress"
    step: int
    max_step: int
    epoch: int
    max_epoch: int
    epoch_step: int
    max_epoch_step: int
    loss: float
    smooth_loss: float
    learning_rate: float
    steps_per_second: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class LossUpdate:
    """What one optimizer step measured."""

    name: ClassVar[str] = "step"
    step: int
    epoch: int
    loss: float
    smooth_loss: float
    learning_rate: dict[str, float]
    """Rate of each part that trains, by its name in the config ("unet", "text_encoder")."""
    grad_norm: float
    """Total norm before clipping."""
    images_per_second: float
    peak_memory: int
    """Most bytes that tensors held on the training device since the run began; 0 on a CPU."""
    corrected_loss: float | None = None
    """Smoothed loss without what the timesteps make of it; see `by_timestep`."""


@dataclass(frozen=True, slots=True)
class SampleImage:
    """A sample was written to disk."""

    name: ClassVar[str] = "sample"
    kind: Literal["default", "custom"]
    path: Path
    prompt: str
    seed: int
    step: int
    epoch: int
    index: int
    """Position of its definition in the list of samples; -1 for a custom one."""


@dataclass(frozen=True, slots=True)
class BackupCreated:
    """A resumable checkpoint was written."""

    name: ClassVar[str] = "backup"
    path: Path
    step: int


@dataclass(frozen=True, slots=True)
class ModelSaved:
    """A file that other tools load was written."""

    name: ClassVar[str] = "save"
    path: Path
    format: str
    step: int
    final: bool


@dataclass(frozen=True, slots=True)
class ValidationLoss:
    """The loss of the validation set, on noise and timesteps that are the same every time."""

    name: ClassVar[str] = "validation"
    step: int
    loss: float
    """Mean over the concepts, with the average of the weights where the run keeps one."""
    by_concept: dict[str, float]
    raw: float | None = None
    """The mean with the weights as they are, where `loss` is of their average."""


@dataclass(frozen=True, slots=True)
class SettingChanged:
    """A setting of the running config has another value, from this step on."""

    name: ClassVar[str] = "setting"
    setting: str
    old: Any
    new: Any
    step: int


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know; the run goes on."""

    name: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The run ended on an error; `advice` says what to change."""

    name: ClassVar[str] = "failure"
    error: str
    advice: str
    traceback: str = field(repr=False, default="")


Event = (
    TrainingState
    | StatusLine
    | TaskProgress
    | Progress
    | LossUpdate
    | SampleImage
    | BackupCreated
    | ModelSaved
    | ValidationLoss
    | SettingChanged
    | Warned
    | RunFailed
)

EVENT_TYPES: dict[str, type[Event]] = {kind.name: kind for kind in get_args(Event)}
"""Event classes by their short name."""
