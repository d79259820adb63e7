"""Backups: folders from which a run goes on as if it had never stopped.

The layout is OneTrainer's (`meta.json`, `lora/`, `optimizer/`, `onetrainer_config/`); the folder
`ot/` adds what it leaves out: generators, data position and smoothed loss.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.adapters.files import save_tensors
from modules.atomic import atomic_folder
from modules.config import TrainConfig


class BackupError(ValueError):
    """A backup folder is incomplete or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """All that decides how a run goes on."""

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
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]
    """Data position, smoothed loss and generators; numbers, strings, lists, dicts and tensors."""


def backup_name(checkpoint: Checkpoint, now: datetime) -> str:
    """Folder name of a backup; names sort by time."""
    place = f"{checkpoint.global_step}-{checkpoint.epoch}-{checkpoint.epoch_step}"
    return f"{now:%Y-%m-%d_%H-%M-%S}-backup-{place}"


def write_backup(folder: Path, checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Write a backup folder: all of it, or nothing."""
    progress = {
        "epoch": checkpoint.epoch,
        "epoch_step": checkpoint.epoch_step,
        "epoch_sample": checkpoint.epoch_sample,
        "global_step": checkpoint.global_step,
    }
    with atomic_folder(folder) as new:
        for name in ("lora", "optimizer", "onetrainer_config", "ot"):
            (new / name).mkdir()
        (new / "meta.json").write_text(json.dumps({"train_progress": progress}, indent=4))
        save_tensors(checkpoint.adapter, new / "lora" / "lora.safetensors", torch.float32)
        torch.save(checkpoint.optimizer, new / "optimizer" / "optimizer.pt")
        torch.save({"step": checkpoint.step, **checkpoint.state}, new / "ot" / "state.pt")
        config.save(new / "onetrainer_config" / "args.json")


def read_backup(folder: Path) -> Checkpoint:
    """Read a backup.

    Raises:
        BackupError: if a file is missing or damaged; names it.
    """
    from safetensors.torch import load_file

    name = "meta.json"
    try:
        progress = json.loads((folder / name).read_text())["train_progress"]
        adapter = load_file(folder / (name := "lora/lora.safetensors"))
        optimizer = torch.load(folder / (name := "optimizer/optimizer.pt"), weights_only=True)
        state = torch.load(folder / (name := "ot/state.pt"), weights_only=True)
        return Checkpoint(
            state["step"],
            progress["global_step"],
            progress["epoch"],
            progress["epoch_step"],
            progress["epoch_sample"],
            adapter,
            optimizer,
            state,
        )
    except Exception as error:
        raise BackupError(f"{folder / name} cannot be read: {error}") from error


def backups(workspace: Path) -> list[Path]:
    """Backup folders of a workspace, newest first."""
    folder = workspace / "backup"
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir() and "-backup-" in path.name)
    return sorted((path for path in found if not path.name.startswith(".")), reverse=True)


def read_newest(workspace: Path) -> Iterator[tuple[Path, Checkpoint | BackupError]]:
    """Backups, newest first, each read when asked for; a damaged one gives its error."""
    for folder in backups(workspace):
        try:
            yield folder, read_backup(folder)
        except BackupError as error:
            yield folder, error


def prune(workspace: Path, keep: int) -> None:
    """Remove all but the newest `keep` backups, at least one."""
    for folder in backups(workspace)[max(1, keep) :]:
        shutil.rmtree(folder)
