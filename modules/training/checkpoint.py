"""Backups: folders from which a run goes on as if it had never stopped.

The layout is OneTrainer's (`meta.json`, `lora/`, `optimizer/`, `onetrainer_config/`); the folder
`ot/` adds what it leaves out: generators, data position, clocks, smoothed loss and checksums.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.serialization import default_restore_location

from modules.atomic import atomic_folder
from modules.config import TrainConfig
from modules.config.paths import backups
from modules.training.onetrainer_backup import ForeignBackup, is_foreign, read_foreign
from modules.training.places import Place


class BackupError(ValueError):
    """A backup folder is incomplete or damaged."""


CHECKSUMS = "ot/checksums.json"
STATE = "ot/state.pt"


@dataclass(frozen=True)
class Checkpoint:
    """All that decides how a run goes on, but for the weights."""

    place: Place
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]
    """Data position, generators, clocks and the like: numbers, strings, lists, dicts, tensors."""


def write_backup(
    folder: Path,
    checkpoint: Checkpoint,
    config: TrainConfig,
    write_weights: Callable[[Path], None],
) -> None:
    """Write a backup folder: all of it, or nothing.

    Args:
        folder: where it comes to stand.
        checkpoint: what is not weights.
        config: what the run does now.
        write_weights: writes the trained weights into the folder it is given.
    """
    progress = {key: value for key, value in asdict(checkpoint.place).items() if key != "step"}
    with atomic_folder(folder) as new:
        for name in ("optimizer", "onetrainer_config", "ot"):
            (new / name).mkdir()
        (new / "meta.json").write_text(json.dumps({"train_progress": progress}, indent=4))
        write_weights(new)
        torch.save(checkpoint.optimizer, new / "optimizer" / "optimizer.pt")
        torch.save({"step": checkpoint.place.step, **checkpoint.state}, new / STATE)
        config.save(new / "onetrainer_config" / "args.json")
        sums = {str(path.relative_to(new).as_posix()): _digest(path) for path in _files(new)}
        (new / CHECKSUMS).write_text(json.dumps(sums, indent=4))


def read_backup(folder: Path, device: str = "cpu") -> Checkpoint | ForeignBackup:
    """Read a backup, but for its weights; those are checked too, in a backup that is ours.

    Args:
        folder: as `write_backup` left it.
        device: where what was on a GPU comes to be, which need not be that GPU.

    Raises:
        BackupError: if a file is missing or damaged; names it.
    """
    name = CHECKSUMS
    try:
        if is_foreign(folder):
            name = "of OneTrainer"
            return read_foreign(folder)
        digests = json.loads((folder / name).read_text())
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                raise ValueError("it is not what was written")
        name = "meta.json"
        progress = json.loads((folder / name).read_text())["train_progress"]
        load = partial(torch.load, map_location=partial(_to, device=device), weights_only=True)
        optimizer = load(folder / (name := "optimizer/optimizer.pt"))
        state = load(folder / (name := STATE))
        return Checkpoint(Place(state["step"], **progress), optimizer, state)
    except Exception as error:
        raise BackupError(f"{folder / name} cannot be read: {error}") from error


def read_newest(
    workspace: Path, device: str = "cpu"
) -> Iterator[tuple[Path, Checkpoint | ForeignBackup | BackupError]]:
    """Backups, newest first, each read when asked for; a damaged one gives its error."""
    for folder in backups(workspace):
        try:
            yield folder, read_backup(folder, device)
        except BackupError as error:
            yield folder, error


def prune(workspace: Path, keep: int) -> None:
    """Remove all but the newest `keep` backups, at least one."""
    for folder in backups(workspace)[max(1, keep) :]:
        shutil.rmtree(folder)


def _to(storage: Any, place: str, device: str) -> Any:
    return storage if place == "cpu" else default_restore_location(storage, device)  # type: ignore[no-untyped-call]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
