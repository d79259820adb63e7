"""OneTrainer's own backups, as far as they say how a run goes on.

They hold weights, moments, the average and how far the run was; no generator, no loss scale, no
gradients of an unfinished step, and an order of images that is drawn otherwise here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
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
    passes = 1
    if settings.is_file():
        known = json.loads(settings.read_text(encoding="utf-8"))
        passes = max(1, int(known.get("gradient_accumulation_steps", 1)))
    place = Place(step=counts["global_step"] // passes, **counts)
    return ForeignBackup(
        place, _load(folder / "optimizer" / "optimizer.pt"), _load(folder / "ema" / "ema.pt")
    )


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


@dataclass(frozen=True)
class Matched:
    """Its parameter groups, and which of them make up each of the live optimizer's.

    OneTrainer names a group after its part: `unet`, `transformer_lora`, `text_encoder` where a
    model has one text encoder and `text_encoder_1`, `text_encoder_2` where it has more; a vector of
    an embedding has one for itself, `embeddings/<uuid>` or `embeddings_1/<uuid>`. Encoders come
    first, then embeddings, then the denoiser.
    """

    groups: Sequence[Mapping[str, Any]]
    numbers: Mapping[str, Sequence[int]]
    """By live group: places in `groups`."""
    kinds: frozenset[str]
    """Names of the optimizers that they are of."""


def match_groups(
    saved: Mapping[str, Any] | None, live: torch.optim.Optimizer, ids: Mapping[str, str]
) -> Matched | str:
    """Find the live optimizer's groups in a saved one, or say why they are not there.

    Args:
        saved: the content of `optimizer.pt`.
        live: the optimizer of the run, with a "name" in each group.
        ids: of the run's embeddings, by the path of their settings.
    """
    if saved is None:
        return "it has no optimizer"
    names, groups = saved.get("param_group_mapping"), saved["param_groups"]
    if names is None or len(names) != len(groups):
        return "it does not name the groups of its optimizer"
    kinds = frozenset(map(str, saved["param_group_optimizer_mapping"]))
    numbers = {}
    for group in live.param_groups:
        name = group["name"]
        found = [place for place, theirs in enumerate(names) if _is(str(theirs), name, ids)]
        found.sort(key=lambda place: str(names[place]))  # those of an embedding, by encoder
        if sum(len(groups[place]["params"]) for place in found) != len(group["params"]):
            return f"its optimizer does not train {name} as this run does"
        numbers[name] = found
    return Matched(groups, numbers, kinds)


def _is(theirs: str, ours: str, ids: Mapping[str, str]) -> bool:
    if ours in ids:
        return theirs.startswith("embeddings") and theirs.endswith(f"/{ids[ours]}")
    name = theirs.removesuffix("_lora")
    return ("text_encoder" if name == "text_encoder_1" else name) == ours


def optimizer_state(
    saved: Mapping[str, Any] | None,
    kind: Optimizer,
    live: torch.optim.Optimizer,
    ids: Mapping[str, str],
) -> dict[str, Any] | str:
    """Its moments as the live optimizer's `load_state_dict` takes them, or why they cannot be.

    Args:
        saved: the content of `optimizer.pt`.
        kind: the optimizer that the config names.
        live: that optimizer, with a "name" in each group.
        ids: of the run's embeddings, by the path of their settings.
    """
    matched = match_groups(saved, live, ids)
    if isinstance(matched, str) or saved is None:
        return str(matched)
    if matched.kinds != {kind.value}:
        return f"its optimizer is {' and '.join(sorted(matched.kinds))}, this run's {kind.value}"
    state: dict[int, Any] = {}
    found: list[dict[str, Any]] = []
    for group in live.param_groups:
        name = group["name"]
        theirs = [matched.groups[place] for place in matched.numbers[name]]
        places = []
        olds = [old for each in theirs for old in each["params"]]
        for parameter, old in zip(group["params"], olds, strict=True):
            moments = saved["state"].get(old, {})
            if not _fit(moments, parameter):
                return f"its moments of {name} are of other shapes"
            places.append(len(state))
            state[len(state)] = moments
        found.append({**theirs[0], "params": places, "name": name})
    return {"state": state, "param_groups": found}


def _fit(moments: Mapping[str, Any], parameter: nn.Parameter) -> bool:
    whole = (m for m in moments.values() if isinstance(m, Tensor) and m.ndim == parameter.ndim)
    return all(moment.shape == parameter.shape for moment in whole)


def average(
    ema: Any,
    saved: Mapping[str, Any] | None,
    live: torch.optim.Optimizer,
    ids: Mapping[str, str],
) -> list[Tensor] | None:
    """Its moving average, group after group of the run, or None if it is not of the same weights.

    Args:
        ema: the content of `ema.pt`: the tensors of all its groups, in their order.
        saved: the content of `optimizer.pt`, which names the groups.
        live: the optimizer of the run.
        ids: of the run's embeddings, by the path of their settings.
    """
    matched = match_groups(saved, live, ids)
    tensors = ema.get("ema_parameters") if isinstance(ema, Mapping) else None
    if isinstance(matched, str) or not tensors:
        return None
    counts = [len(group["params"]) for group in matched.groups]
    if sum(counts) != len(tensors):
        return None
    ends = list(accumulate(counts))
    parts = [tensors[end - count : end] for count, end in zip(counts, ends, strict=True)]
    found = [
        tensor
        for group in live.param_groups
        for place in matched.numbers[group["name"]]
        for tensor in parts[place]
    ]
    shapes = [p.shape for group in live.param_groups for p in group["params"]]
    if shapes != [tensor.shape for tensor in found]:
        return None
    return [tensor.float() for tensor in found]
