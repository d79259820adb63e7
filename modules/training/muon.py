"""Which weights Muon trains, and Adam beside it.

Muon makes each update of a matrix orthogonal, which only the matrices of hidden layers suit.
Biases, norms, embeddings and the like are left to Adam, in parameter groups of their own.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from modules.config import ConfigError, Optimizer, Problem, TrainConfig, TrainOptimizerConfig
from modules.training.schedules import batch_scale

MUON = frozenset((Optimizer.MUON, Optimizer.MUON_ADV, Optimizer.ADAMUON_ADV))
AUX = " (Adam)"
"""Ends the name of a group that Adam trains."""

_OF_ADV = {
    name: f"adam_{name}"
    for name in ("eps", "weight_decay", "use_atan2", "kourkoutas_beta", "nnmf_factor")
}
AUX_SETTINGS: Mapping[Optimizer, Mapping[str, str]] = {
    Optimizer.MUON: {"eps": "eps", "weight_decay": "weight_decay"},
    Optimizer.MUON_ADV: _OF_ADV,
    Optimizer.ADAMUON_ADV: _OF_ADV,
}
"""By optimizer: what of `muon_adam_config` it takes, besides the betas, and under which name."""


def split_groups(
    settings: TrainOptimizerConfig,
    trainable: Mapping[str, Sequence[nn.Parameter]],
    networks: Iterable[nn.Module],
) -> dict[str, list[nn.Parameter]]:
    """What trains, by parameter group: the parts, and for a Muon what it leaves to Adam of each.

    Args:
        settings: which optimizer, and which layers are Muon's.
        trainable: what trains, by part.
        networks: where the parameters are; one that is in none is Adam's.

    Raises:
        ConfigError: if Muon is to train what is no matrix, or nothing at all.
    """
    if settings.optimizer not in MUON:
        return {name: list(parameters) for name, parameters in trainable.items()}
    hidden = {id(p) for p in _hidden(settings, networks)}
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameters in trainable.items():
        suited = [p for p in parameters if id(p) in hidden]
        others = [p for p in parameters if id(p) not in hidden]
        if suited:
            groups[name] = suited
        if others:
            groups[name + AUX] = others
    if all(name.endswith(AUX) for name in groups):
        raise _error(
            "muon_hidden_layers",
            f"{settings.muon_hidden_layers}, which no matrix that trains is part of",
            "Name parts of layer paths, or leave it empty for every matrix.",
        )
    if not settings.MuonWithAuxAdam and (left := [n for n in groups if n.endswith(AUX)]):
        count = sum(len(groups[name]) for name in left)
        raise _error(
            "MuonWithAuxAdam",
            f"false, but {count} of the tensors that train are no matrices of hidden layers",
            "Set it to true, so that Adam trains those.",
        )
    return groups


def _hidden(
    settings: TrainOptimizerConfig, networks: Iterable[nn.Module]
) -> Iterator[nn.Parameter]:
    """The matrices (kernels count as such) of layers that are chosen, but for embeddings."""
    chosen = _matcher(settings.muon_hidden_layers or "", settings.muon_adam_regex)
    for network in networks:
        for path, layer in network.named_modules():
            if isinstance(layer, nn.Embedding):
                continue
            for name, parameter in layer.named_parameters(path, recurse=False):
                if parameter.ndim >= 2 and chosen(name):
                    yield parameter


def _matcher(layers: str, regex: bool) -> Callable[[str], bool]:
    items = [item.strip() for item in layers.split(",") if item.strip()]
    if not items:
        return lambda _path: True
    if not regex:
        return lambda path: any(item in path for item in items)
    try:
        patterns = [re.compile(item) for item in items]
    except re.error as error:
        raise _error(
            "muon_hidden_layers",
            f"{layers}, which is no regular expression: {error}",
            "Mend it (a comma ends an item), or turn muon_adam_regex off.",
        ) from error
    return lambda path: any(pattern.search(path) for pattern in patterns)


def group_settings(settings: TrainOptimizerConfig, name: str) -> dict[str, Any]:
    """What a Muon is told about one of its groups; nothing for other optimizers."""
    if settings.optimizer not in MUON:
        return {}
    if not name.endswith(AUX):
        return {"use_muon": True}
    names, wanted = AUX_SETTINGS[settings.optimizer], settings.muon_adam_config
    told = {names[key]: value for key, value in _given(wanted) if key in names}
    prefix = "" if settings.optimizer is Optimizer.MUON else "adam_"
    if wanted.get("beta1") is not None and wanted.get("beta2") is not None:
        told[f"{prefix}betas"] = (wanted["beta1"], wanted["beta2"])
    if wanted.get("orthogonal_gradient") and prefix:
        told["adam_orthogonal_gradient"] = "flattened"
    return {"use_muon": False, **told}


def aux_problems(settings: TrainOptimizerConfig) -> list[Problem]:
    """What of `muon_adam_config` would be passed over, or cannot be."""
    if settings.optimizer not in MUON or not settings.muon_adam_config:
        return []
    wanted = settings.muon_adam_config
    known = {"beta1", "beta2", "optimizer", *AUX_SETTINGS[settings.optimizer]}
    if settings.optimizer is not Optimizer.MUON:
        known.add("orthogonal_gradient")
    kind = wanted.get("optimizer", "ADAMW")
    field, name = "optimizer.muon_adam_config", settings.optimizer.value
    if kind not in ("ADAM", "ADAMW", "ADAMW_ADV"):
        message = f"{field} names {kind}, but beside {name} only an Adam can train."
        return [Problem(field, "error", message, "Name ADAMW in it, or no optimizer.")]
    if (wanted.get("beta1") is None) != (wanted.get("beta2") is None):
        message = f"{field} has one of beta1 and beta2."
        return [Problem(field, "error", message, "Give both, or neither.")]
    usual = dict(TrainOptimizerConfig(optimizer=Optimizer(kind)))
    return [
        Problem(
            field,
            "error",
            f"{field} has {key}, which the Adam beside {name} cannot honour.",
            "Take it out.",
        )
        for key, value in _given(wanted)
        if key not in known and not key.startswith("__") and usual.get(key) != value
    ]


def _given(wanted: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in wanted.items() if value is not None]


def group_rates(
    config: TrainConfig, rates: Mapping[str, float], groups: Iterable[str]
) -> dict[str, float]:
    """Base learning rate of each parameter group.

    Args:
        config: has the rates of Adam beside Muon.
        rates: base rate of each part.
        groups: names that `split_groups` gave.
    """
    settings = config.optimizer
    factor = batch_scale(config.learning_rate_scaler, config) ** 0.5
    of_encoders = {
        "text_encoder": settings.muon_te1_adam_lr,
        "text_encoder_2": settings.muon_te2_adam_lr,
    }
    found: dict[str, float] = {}
    for name in groups:
        part = name.removesuffix(AUX)
        found[name] = rates[part]
        if name != part:
            own = of_encoders.get(part)
            own = settings.muon_adam_lr if own is None else own
            found[name] = rates[part] if own is None else factor * own
    return found


def _error(setting: str, what: str, fix: str) -> ConfigError:
    field = f"optimizer.{setting}"
    return ConfigError([Problem(field, "error", f"{field} is {what}.", fix)])
