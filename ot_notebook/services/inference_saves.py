"""What a run has kept on its way: adapters of its saves and backups, to draw with each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from modules.config import TrainingMethod
from modules.training.events import ModelSaved
from ot_notebook.services.inference_request import refused
from ot_notebook.services.run import Run, runs
from ot_notebook.services.run import run as find_run
from ot_notebook.services.run_store import FILE


@dataclass(frozen=True)
class Save:
    """An adapter as a run had it at one step."""

    step: int
    path: Path
    kin: frozenset[Path] = field(default=frozenset(), compare=False, repr=False)
    """All adapters of the run: the one of them that is loaded makes way for this."""

    def __str__(self) -> str:
        return f"step {self.step}"


def saves_of(run: Run | str | Path | None) -> list[Save]:
    """The adapters that a run has kept, by step; where a save and a backup share one, the save.

    Args:
        run: a run, its id, or its workspace; the newest run of the default workspace where it is
            None.

    Raises:
        ConfigError: if there is no such run, or it trains whole models, or has kept nothing.
    """
    from modules.training.checkpoint import backups

    chosen = _found(run)
    if chosen.config.training_method is not TrainingMethod.LORA:
        raise refused(
            "run",
            f"Run {chosen.id} trains a whole model: each of its saves needs a load of its own.",
            "Load them one after the other: load(path), generate(...).",
        )
    found, kin = {}, set()
    for folder in backups(chosen.workspace):
        adapter = folder / "lora" / "lora.safetensors"
        if adapter.is_file():
            found[_step(folder)] = adapter
            kin.add(adapter.absolute())
    for event in chosen.events("save"):
        if isinstance(event, ModelSaved) and event.path.is_file():
            found[event.step] = event.path
            kin.add(event.path.absolute())
    if not found:
        raise refused(
            "run",
            f"Run {chosen.id} has kept neither saves nor backups.",
            "Set save_every or backup_after, or press Save while it trains.",
        )
    return [Save(step, path, frozenset(kin)) for step, path in sorted(found.items())]


def _found(run: Run | str | Path | None) -> Run:
    if isinstance(run, Run):
        return run
    table = runs(run if run is not None and (Path(run) / FILE).is_file() else None)
    if run is None or (Path(run) / FILE).is_file():
        ids = list(table["id"])
    else:
        ids = [name for name in table["id"] if name == str(run)]
    if not ids:
        raise refused(
            "run",
            f"There is no run {run or 'here yet'}.",
            "Give the id of a run, or its workspace; ot.runs() lists them.",
        )
    return find_run(ids[0], table.set_index("id")["workspace"][ids[0]])


def _step(backup: Path) -> int:
    progress = json.loads((backup / "meta.json").read_text(encoding="utf-8"))["train_progress"]
    return int(progress["global_step"])
