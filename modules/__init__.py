"""The engine of ot_notebook: fine-tunes diffusion models and knows nothing of notebooks.

Names load on first use, so that a config can be read where there is no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.config import ConceptConfig as ConceptConfig
    from modules.config import ConfigError as ConfigError
    from modules.config import Problem as Problem
    from modules.config import SampleConfig as SampleConfig
    from modules.config import TrainConfig as TrainConfig
    from modules.config import validate as validate
    from modules.training.callbacks import TrainCallbacks as TrainCallbacks
    from modules.training.commands import TrainCommands as TrainCommands
    from modules.training.trainer import GenericTrainer as GenericTrainer

_HOMES = {
    "ConceptConfig": "modules.config",
    "ConfigError": "modules.config",
    "GenericTrainer": "modules.training.trainer",
    "Problem": "modules.config",
    "SampleConfig": "modules.config",
    "TrainCallbacks": "modules.training.callbacks",
    "TrainCommands": "modules.training.commands",
    "TrainConfig": "modules.config",
    "validate": "modules.config",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list by any other means


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
