"""What a rule of `checks` looks at, and how it speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from modules.config.hardware import Hardware
from modules.config.models import ModelFacts
from modules.config.problems import Problem
from modules.config.section import clip, plain
from modules.config.train_config import TrainConfig


@dataclass(frozen=True)
class DataFacts:
    """What is known of the training set after a scan."""

    images: int
    """Images of one epoch, repeats counted."""


@dataclass(frozen=True)
class Case:
    """A config and what surrounds it."""

    config: TrainConfig
    facts: ModelFacts
    """Of the config's model type."""
    hardware: Hardware
    """The device that trains."""
    data: DataFacts | None = None
    """The training set, where it was scanned."""


Rule = Callable[[Case], Iterator[Problem]]


def refuse(field: str, message: str, fix: str) -> Problem:
    """A problem that keeps a run from starting."""
    return Problem(field, "error", message, fix)


def warn(field: str, message: str, fix: str) -> Problem:
    """A problem that a run starts with."""
    return Problem(field, "warning", message, fix)


def shown(value: Any) -> str:
    """A setting's value as a message says it."""
    value = plain(value)
    if isinstance(value, (dict, list)):
        return "not empty" if value else "empty"
    if value is None:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else clip(str(value)) or "empty"
