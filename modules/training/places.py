"""Where a run's files go, by OneTrainer's layout of a workspace."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from modules.config import ConfigPart, ModelFormat, TrainConfig
from modules.config.paths import resolve


@dataclass(frozen=True)
class Place:
    """Where in a run something happened."""

    step: int
    """Optimizer steps done."""
    global_step: int
    """Forward passes done: OneTrainer's count."""
    epoch: int
    """Whole epochs done."""
    epoch_step: int
    """Batches of the current epoch done."""
    epoch_sample: int
    """Images of the current epoch done."""

    def __str__(self) -> str:
        """As it stands in the names of files and folders."""
        return f"{self.global_step}-{self.epoch}-{self.epoch_step}"


class Workspace:
    """The folder of a run; names in it begin with the time and sort by it.

    Args:
        config: names the folder, the output and the prefix of files.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.folder = Path(resolve(config.workspace_dir))
        self._prefix = config.save_filename_prefix
        self._output = Path(resolve(config.output_model_destination))
        folder = config.output_model_format is ModelFormat.DIFFUSERS
        self._suffix = "" if folder else ".safetensors"

    def backup(self, place: Place, newest: str = "") -> Path:
        """Folder of a backup, whose name sorts behind that of the newest before it.

        Clocks go back, by an hour each autumn, and two backups may fall into one second.
        """
        folder = self.folder / "backup"
        name = f"{_now()}-backup-{place}"
        if name >= newest:
            return folder / name
        try:
            after = datetime.strptime(newest[:STAMP_LENGTH], STAMP) + timedelta(seconds=1)
        except ValueError:  # a folder that someone named
            return folder / name
        return folder / f"{after:{STAMP}}-backup-{place}"

    def save(self, place: Place) -> Path:
        """File, or folder, of the model in the middle of a run."""
        return self.folder / "save" / f"{self._stamp()}-save-{place}{self._suffix}"

    def best(self, place: Place) -> Path:
        """File, or folder, of a model whose validation loss is among the lowest."""
        return self.folder / "best" / f"{self._stamp()}-best-{place}{self._suffix}"

    def final(self) -> Path:
        """File, or folder, of the final model."""
        if self._suffix and (self._output.is_dir() or not self._output.suffix):
            return self._output / f"{self._stamp()}{self._suffix}"
        return self._output

    def sample(self, index: int, prompt: str, place: Place, averaged: bool = True) -> Path:
        """File of a sample, without its suffix; `index` is negative for custom samples.

        Beside samples of a moving average those of the weights themselves have a folder.

        The prompt is cut to what every file system takes: letters, digits and a few signs, 32 long.
        """
        words = re.sub(r"[^\w .-]+", "", prompt)[:32].strip(" .")
        folder = "custom" if index < 0 else f"{index} - {words}"
        folder += "" if averaged else " - no-ema"
        return self.folder / "samples" / folder / f"{self._stamp()}-training-sample-{place}"

    def tensorboard(self) -> Path:
        """Folder of this run's log."""
        return self.folder / "tensorboard" / self._stamp()

    def _stamp(self) -> str:
        return f"{self._prefix}{_now()}"


def config_metadata(config: TrainConfig) -> dict[str, str]:
    """The config as an output file holds it, as far as `include_train_config` wants it there."""
    if config.include_train_config is ConfigPart.NONE:
        return {}
    settings = config.to_dict()
    if config.include_train_config is ConfigPart.SETTINGS:
        settings |= {"concepts": None, "samples": None}
    return {"ot_config": json.dumps(settings)}


STAMP, STAMP_LENGTH = "%Y-%m-%d_%H-%M-%S", 19
"""How a time stands in a name, and how long that is."""


def _now() -> str:
    return f"{datetime.now():{STAMP}}"
