"""A run's backups: everything that decides how it goes on, written down and taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from modules.config import TrainConfig
from modules.config.paths import backup_folder, backups
from modules.config.problems import error
from modules.data import Batches
from modules.training.checkpoint import (
    BackupError,
    Checkpoint,
    prune,
    read_backup,
    read_newest,
    write_backup,
)
from modules.training.method import Method
from modules.training.onetrainer_backup import ForeignBackup, average, optimizer_state
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
        batches: where it is in the training set.
        moving: whatever else moves, by its name in the file.
        warn: is told, in words, what could not be taken up.
    """

    def __init__(
        self,
        workspace: Workspace,
        method: Method,
        update: Update,
        batches: Batches,
        moving: Mapping[str, Moving],
        warn: Callable[[str], None],
    ) -> None:
        self._workspace, self._method, self._update = workspace, method, update
        self._batches = batches
        self._moving, self._warn = {"batches": batches, **moving}, warn

    def write(self, place: Place, config: TrainConfig, changes: list[dict[str, Any]]) -> Path:
        """Write a backup and remove old ones, as far as the config says so; returns its folder.

        Args:
            place: where in the run it is.
            config: what the run does now.
            changes: settings that were changed on the way, to be changed again on resume.
        """
        there = [path.name for path in backups(self._workspace.folder)]
        folder = self._workspace.backup(place, there[0] if there else "")
        if not folder.exists():  # a second one in the same second at the same step is the same
            state = {name: part.state_dict() for name, part in self._moving.items()}
            checkpoint = Checkpoint(
                place, self._update.state_dict(), {**state, "changes": list(changes)}
            )
            write_backup(folder, checkpoint, config, self._method.write_backup)
        if config.rolling_backup:
            prune(self._workspace.folder, config.rolling_backup_count)
        return folder

    def take_up(self, config: TrainConfig) -> tuple[Path, Place, list[dict[str, Any]]] | None:
        """Go on from the chosen backup, or the newest that can be read; None if there is none.

        What stands in the way is said, and that the run begins anew where nothing is found.

        Returns:
            Its folder, where in the run it was written, and the settings changed until then.

        Raises:
            ConfigError: if the chosen one cannot be read.
            ValueError: if the backup is of other weights than this run trains.
        """
        damaged = 0
        for folder, found in _candidates(self._workspace.folder, config):
            if isinstance(found, BackupError):
                damaged += 1
                self._warn(f"Passed over a damaged backup: {found}.")
                continue
            self._method.read_backup(folder)
            if isinstance(found, ForeignBackup):
                self._take_up_foreign(folder.name, found, config)
                return folder, found.place, []
            for missing in self._update.load_state_dict(found.optimizer):
                self._warn(f"{folder.name}: {missing}.")
            for name, part in self._moving.items():
                if note := part.load_state_dict(found.state[name]):
                    self._warn(note)
            return folder, found.place, found.state["changes"]
        place = self._workspace.folder / "backup"
        there = f"There are backups in {place} ({damaged}), but none can be read"
        self._warn(f"{there if damaged else f'No backup in {place}'}; the run begins anew.")
        return None

    def _take_up_foreign(self, name: str, found: ForeignBackup, config: TrainConfig) -> None:
        """Go on from what OneTrainer wrote down, and say what it did not."""
        live = self._update.optimizer
        ids = {path: each.uuid for path, each in config.embeddings_in_use.items()}
        moments = optimizer_state(found.optimizer, config.optimizer.optimizer, live, ids)
        if isinstance(moments, str):
            self._warn(f"{name}: {moments}, so the optimizer starts anew.")
        else:
            self._update.load_moments(moments)
        if self._update.ema is not None:
            averaged = average(found.ema, found.optimizer, live, ids)
            if averaged is None:
                self._warn(f"{name}: its EMA is not this run's, so the average starts anew.")
            else:
                self._update.ema.load_state_dict({"average": averaged})
        batches = self._batches
        here = min(found.place.epoch_step, batches.batches_in(found.place.epoch) - 1)
        batches.load_state_dict(
            {**batches.state_dict(), "epoch": found.place.epoch, "position": here}
        )
        self._warn(
            f"{name} is a backup of OneTrainer, which keeps no generators, no loss scale and no "
            f"order of images: noise is drawn anew, and epoch {found.place.epoch + 1} goes on "
            f"after {here} batches of another order."
        )


def _candidates(
    workspace: Path, config: TrainConfig
) -> Iterable[tuple[Path, Checkpoint | ForeignBackup | BackupError]]:
    """The backup that the config names, or all, newest first."""
    name = config.ot.resume_from
    if not name:
        return read_newest(workspace, config.train_device)
    folder = backup_folder(config.workspace_dir, name)
    try:
        return [(folder, read_backup(folder, config.train_device))]
    except BackupError as failure:
        fix = "Name another, or leave it empty for the newest that can be read."
        raise error("ot.resume_from", f"{failure}.", fix) from failure
