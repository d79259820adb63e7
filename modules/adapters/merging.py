"""Adapters written into the weights of a model."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modules.adapters.change import weight_change
from modules.adapters.files import AdapterError, read_tensors
from modules.adapters.reading import read_with, spellings
from modules.adapters.writing import by_layer
from modules.atomic import atomic_folder
from modules.config import ModelType
from modules.families.folders import read_index
from modules.families.stored import StoredModel, find_model, own_part, put_part
from modules.tensor_files import MODEL_SPEC, Progress, finite, open_tensors, silent, write_tensors

Changes = Mapping[str, Sequence[tuple[Mapping[str, Tensor], float]]]
"""By layer, `part.path`: the adapters that change it, each with its strength."""
LOST = "Leave out the adapter that holds such, or take another model if it is that."
LARGE = "Lower the strength of the adapters, or convert the model to BFLOAT_16 or FLOAT_32 first."


def merge(
    model: str | Path,
    target: str | Path,
    adapters: Mapping[str, float] | Mapping[Path, float],
    *,
    model_type: ModelType | str | None = None,
    progress: Progress = silent,
) -> None:
    """Write a model with adapters in it: it answers as the model does with them laid over it.

    Weights keep their type; one at a time is in memory.

    Args:
        model: a diffusers folder, a single file, or a file of the denoiser alone.
        target: what to write, of the same layout; an older model there is replaced.
        adapters: files, of any format and kind, and the strength of each.
        model_type: architecture, where the files do not tell it.
        progress: is told how many of how many weights are written.

    Raises:
        AdapterError: if an adapter is of another architecture, or changes a layer that the model's
            files lack.
        ValueError: if a sum is not finite, or too large for the model's type; names the weight.
        OSError: if the model is missing.
    """
    source, goal = Path(model), Path(target)
    if goal.resolve() == source.resolve():
        raise AdapterError(f"{target} is the model itself. Choose another target.")
    stored = find_model(source, ModelType(model_type) if model_type else None)
    changes = _changes(stored, {Path(path): strength for path, strength in adapters.items()})
    merged = ", ".join(f"{Path(path).name} ({strength:g})" for path, strength in adapters.items())
    if source.is_file():
        notes = {**MODEL_SPEC, **stored.family.metadata()}
        notes["modelspec.merged_from"] = f"{source.name}, {merged}"
        _rewrite(source, goal, stored, changes, notes, progress)
        return
    if goal.exists() and not read_index(goal) and any(goal.iterdir()):
        raise FileExistsError(f"{goal} holds other things than a model; choose another folder.")
    with atomic_folder(goal, replace=True) as new:
        for file in sorted(source.rglob("*")):
            copy = new / file.relative_to(source)
            if file.is_dir():
                copy.mkdir(exist_ok=True)
            elif any(
                name in changes for held in stored.layers.get(file, {}).values() for name, _ in held
            ):
                _rewrite(file, copy, stored, changes, {}, progress)
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def _changes(stored: StoredModel, adapters: Mapping[Path, float]) -> Changes:
    changes: dict[str, list[tuple[Mapping[str, Tensor], float]]] = defaultdict(list)
    names = stored.homes().keys()
    layers: dict[str, list[str]] = defaultdict(list)
    for name in names:
        part, _, below = name.partition(".")
        layers[part].append(below)
    index = spellings(stored.family, layers)
    for path, strength in adapters.items():
        tensors, _ = read_tensors(path)
        found = read_with(tensors, index)
        odd = [*found.unplaced, *sorted(found.layers - names)]
        if odd:
            raise AdapterError(
                f"{path} changes {odd[0]}, which {stored.path} lacks ({len(odd)} such). The model "
                f"is {stored.family.architecture}; choose an adapter of its own architecture."
            )
        for name, of in by_layer(found.tensors).items():
            changes[name].append((of, strength))
    return changes


def _rewrite(
    source: Path,
    target: Path,
    stored: StoredModel,
    changes: Changes,
    notes: Mapping[str, str],
    progress: Progress,
) -> None:
    with open_tensors(source) as opened:

        def read(key: str) -> Tensor:
            weight = opened.read(key)
            changed = [each for each in stored.layers[source].get(key, ()) if each[0] in changes]
            if not changed:
                return weight
            whole = weight.to(torch.float32, copy=True)
            for name, place in changed:
                own = own_part(whole, place)
                try:
                    sums = [weight_change(of, own, strength) for of, strength in changes[name]]
                except RuntimeError as error:
                    raise AdapterError(
                        f"{name} is {tuple(own.shape)} in {source}, which an adapter does not "
                        f"fit: {error}"
                    ) from error
                put_part(whole, place, own + torch.stack(sums).sum(0))
            return finite(whole, weight.dtype, key, if_lost=LOST, if_large=LARGE)

        write_tensors(target, opened.shapes, read, {**opened.metadata, **notes}, progress)
