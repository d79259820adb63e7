"""A run's backups: everything that decides how it goes on, written down and taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from modules.config import TrainConfig
from modules.training.checkpoint import BackupError, Checkpoint, prune, read_newest, write_backup
from modules.training.method import Method
from modules.training.places import Place, Workspace
from modules.training.update import Update


class Moving(Protocol):
    """Something that moves while a run goes on."""

    def state_dict(self) -> Any:
        """Where it is: numbers, strings, lists, dicts and tensors."""

    def load_state_dict(self, state: Any) -> str | None:
        """Go on from there; returns what could not be taken up, in words."""


class Backups:
    """Writes backups of one run, and takes up the newest that can be read.

    Args:
        workspace: the run's folder.
        method: writes and reads the trained weights.
        update: holds moments, loss scale and average.
        moving: whatever else moves, by its name in the file.
        warn: is told, in words, what could not be taken up.
    """

    def __init__(
        self,
        workspace: Workspace,
        method: Method,
        update: Update,
        moving: Mapping[str, Moving],
        warn: Callable[[str], None],
    ) -> None:
        self._workspace, self._method, self._update = workspace, method, update
        self._moving, self._warn = moving, warn

    def write(self, place: Place, config: TrainConfig, changes: list[dict[str, Any]]) -> Path:
        """Write a backup and remove old ones, as far as the config says so; returns its folder.

        Args:
            place: where in the run it is.
            config: what the run does now.
            changes: settings that were changed on the way, to be changed again on resume.
        """
        folder = self._workspace.backup(place)
        if not folder.exists():  # a second one in the same second at the same step is the same
            state = {name: part.state_dict() for name, part in self._moving.items()}
            checkpoint = Checkpoint(
                place, self._update.state_dict(), {**state, "changes": list(changes)}
            )
            write_backup(folder, checkpoint, config, self._method.write_backup)
        if config.rolling_backup:
            prune(self._workspace.folder, config.rolling_backup_count)
        return folder

    def take_up(self) -> tuple[Path, Checkpoint] | None:
        """Go on from the newest backup that can be read; None if there is none.

        Raises:
            ValueError: if the backup is of other weights than this run trains.
        """
        for folder, found in read_newest(self._workspace.folder):
            if isinstance(found, BackupError):
                self._warn(f"Passed over a damaged backup: {found}.")
                continue
            self._method.read_backup(folder)
            for missing in self._update.load_state_dict(found.optimizer):
                self._warn(f"{folder.name}: {missing}.")
            for name, part in self._moving.items():
                if note := part.load_state_dict(found.state[name]):
                    self._warn(note)
            return folder, found
        return None
