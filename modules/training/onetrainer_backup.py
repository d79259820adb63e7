"""OneTrainer's own backups, as far as they say how a run goes on.

They hold weights, moments, the average and how far the run was; no generator, no loss scale, no
gradients of an unfinished step, and an order of images that is drawn otherwise here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.config import Optimizer
from modules.training.places import Place


@dataclass(frozen=True)
class ForeignBackup:
    """What one of them holds besides weights."""

    place: Place
    optimizer: Mapping[str, Any] | None
    ema: Any


def is_foreign(folder: Path) -> bool:
    """Whether a backup is OneTrainer's: ours have a folder `ot`."""
    return (folder / "meta.json").is_file() and not (folder / "ot").exists()


def read_foreign(folder: Path) -> ForeignBackup:
    """Read one, but for its weights.

    Raises:
        Exception: if a file that is there cannot be read, of any kind.
    """
    progress = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["train_progress"]
    counts = {
        key: int(progress[key]) for key in ("global_step", "epoch", "epoch_step", "epoch_sample")
    }
    settings = folder / "onetrainer_config" / "args.json"
    accumulate = 1
    if settings.is_file():
        known = json.loads(settings.read_text(encoding="utf-8"))
        accumulate = max(1, int(known.get("gradient_accumulation_steps", 1)))
    place = Place(step=counts["global_step"] // accumulate, **counts)
    return ForeignBackup(
        place, _load(folder / "optimizer" / "optimizer.pt"), _load(folder / "ema" / "ema.pt")
    )


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


def optimizer_state(
    saved: Mapping[str, Any] | None, kind: Optimizer, live: torch.optim.Optimizer
) -> dict[str, Any] | str:
    """Its moments as the live optimizer's `load_state_dict` takes them, or why they cannot be.

    OneTrainer names each parameter group after its part and notes which optimizer it is of.

    Args:
        saved: the content of `optimizer.pt`.
        kind: the optimizer that the config names.
        live: that optimizer, with a "name" in each group.
    """
    if saved is None:
        return "it has no optimizer"
    names = [str(name).removesuffix("_lora") for name in saved["param_group_mapping"]]
    kinds = set(map(str, saved["param_group_optimizer_mapping"]))
    if kinds != {kind.value}:
        return f"its optimizer is {' and '.join(sorted(kinds))}, this run's {kind.value}"
    groups = dict(zip(names, saved["param_groups"], strict=True))
    state: dict[int, Any] = {}
    found: list[dict[str, Any]] = []
    for group in live.param_groups:
        theirs = groups.get(group["name"])
        if theirs is None or len(theirs["params"]) != len(group["params"]):
            return f"its optimizer does not train {group['name']} as this run does"
        places = []
        for parameter, old in zip(group["params"], theirs["params"], strict=True):
            moments = saved["state"].get(old, {})
            if not _fit(moments, parameter):
                return f"its moments of {group['name']} are of other shapes"
            places.append(len(state))
            state[len(state)] = moments
        found.append({**theirs, "params": places, "name": group["name"]})
    return {"state": state, "param_groups": found}


def _fit(moments: Mapping[str, Any], parameter: nn.Parameter) -> bool:
    whole = (m for m in moments.values() if isinstance(m, Tensor) and m.ndim == parameter.ndim)
    return all(moment.shape == parameter.shape for moment in whole)


def average(saved: Any, groups: Sequence[Mapping[str, Any]]) -> list[Tensor] | None:
    """Its moving average, group after group of the run, or None if it is of other shapes.

    Args:
        saved: the content of `ema.pt`: somewhere in it a list of tensors, encoders first.
        groups: the live optimizer's, the denoiser first.
    """
    lists = saved.values() if isinstance(saved, Mapping) else [saved]
    tensors = next((list(each) for each in lists if _tensors(each)), None)
    if tensors is None:
        return None
    parts = [list(group["params"]) for group in groups]
    denoiser, *encoders = parts
    for order in ([*encoders, denoiser], parts):
        shapes = [p.shape for part in order for p in part]
        if shapes == [tensor.shape for tensor in tensors]:
            by_parameter = {
                id(p): tensor
                for p, tensor in zip((p for part in order for p in part), tensors, strict=True)
            }
            return [by_parameter[id(p)].float() for part in parts for p in part]
    return None


def _tensors(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple, nn.ParameterList))
        and len(value) > 0
        and all(isinstance(each, Tensor) for each in value)
    )
