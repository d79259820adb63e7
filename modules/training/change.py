"""Settings that change while a run goes on."""

from __future__ import annotations

from typing import Any

from modules.config import TrainConfig, settings


def change(config: TrainConfig, setting: str, value: Any) -> TrainConfig:
    """The config with one setting changed, where a running run can take that up.

    Raises:
        ConfigError: for an unknown setting or a value that it cannot have.
        ValueError: for one that is fixed when a run starts.
    """
    changed = config.update(**{setting: value})
    known = {one.path: one for one in settings(TrainConfig)}
    if setting in known and known[setting].applies != "now":
        raise ValueError(
            f"{setting} is fixed when a run starts. Stop, change it, and start again "
            f"(continue_last_backup goes on from here)"
        )
    return changed
