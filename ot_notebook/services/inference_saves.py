"""What a run has kept on its way: its saves and backups, to draw with each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from modules.config import TrainingMethod
from modules.config.paths import backups
from modules.training.events import ModelSaved
from ot_notebook.services.inference_request import refused
from ot_notebook.services.inference_source import trained_parts
from ot_notebook.services.run import Run, runs
from ot_notebook.services.run import run as find_run
from ot_notebook.services.run_store import FILE


@dataclass(frozen=True)
class Save:
    """What a run had learnt by one step: an adapter, or a whole model."""

    step: int
    path: Path
    kin: frozenset[Path] = field(default=frozenset(), compare=False, repr=False)
    """All adapters of the run: the one of them that is loaded makes way for this."""
    whole: object = field(default=None, compare=False, repr=False)
    """What `load` takes, where it is a whole model."""

    def __str__(self) -> str:
        return f"step {self.step}"


def saves_of(run: Run | str | Path | None) -> list[Save]:
    """What a run has kept, by step; where a save and a backup share one, the save.

    Args:
        run: a run, its id, or its workspace; the newest run of the default workspace where it is
            None.

    Raises:
        ConfigError: if there is no such run, or it trains words alone, or has kept nothing.
    """
    chosen = _found(run)
    match chosen.config.training_method:
        case TrainingMethod.LORA:
            found = _adapters(chosen)
        case TrainingMethod.FINE_TUNE:
            found = _models(chosen)
        case _:
            raise refused(
                "run",
                f"Run {chosen.id} trains neither a LoRA nor a model, so that there is no grid of "
                f"its saves.",
                "Load them one after the other: load(model, embeddings=[path]), generate(...).",
            )
    if not found:
        raise refused(
            "run",
            f"Run {chosen.id} has kept neither saves nor backups.",
            "Set save_every or backup_after, or press Save while it trains.",
        )
    return [found[step] for step in sorted(found)]


def _adapters(run: Run) -> dict[int, Save]:
    adapters = ((folder, folder / "lora" / "lora.safetensors") for folder in backups(run.workspace))
    kept = {_step(folder): adapter for folder, adapter in adapters if adapter.is_file()}
    saved = {step: path for step, path in _saved(run).items() if path.is_file()}
    kin = frozenset(path.absolute() for path in [*kept.values(), *saved.values()])
    return {step: Save(step, path, kin) for step, path in {**kept, **saved}.items()}


def _models(run: Run) -> dict[int, Save]:
    config = run.config
    kept = [folder for folder in backups(run.workspace) if trained_parts(config, folder)]
    found = {_step(folder): Save(_step(folder), folder, whole=folder) for folder in kept}
    for step, path in _saved(run).items():
        found[step] = Save(step, path, whole=config.update(base_model_name=str(path)))
    return found


def _saved(run: Run) -> dict[int, Path]:
    events = [event for event in run.events("save") if isinstance(event, ModelSaved)]
    return {event.step: event.path for event in events if event.path.exists()}


def _found(run: object) -> Run:
    if isinstance(run, Run):
        return run
    if run is not None and not isinstance(run, str | Path):
        kind = type(run).__name__
        raise refused("run", f"run is a {kind}.", "Give a run, its id, or its workspace.")
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
