"""What one setting decides about others, so that a config means the same wherever it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from modules.config.enums import ModelType
from modules.config.models import MODELS, FilterPreset
from modules.config.optimizer_config import TrainOptimizerConfig
from modules.config.problems import Problem

if TYPE_CHECKING:
    from modules.config.train_config import TrainConfig

    Config = TypeVar("Config", bound=TrainConfig)

CUSTOM = "custom"
"""The filter preset that stands for a filter of one's own."""


def resolve_loaded(data: dict[str, Any], warnings: list[Problem]) -> dict[str, Any]:
    """Optimizer parameters and layer filters as OneTrainer's screen would set them on loading."""
    data = {**data, "optimizer": _optimizer(data)} if "optimizer" in data else data
    presets = _presets(data.get("model_type"))
    data = _filter(data, presets, "", warnings)
    if isinstance(data.get("quantization"), dict):
        quantization = _filter(data["quantization"], presets, "quantization.", warnings)
        data = {**data, "quantization": quantization}
    return data


def follow(before: Config, after: Config, changes: Mapping[str, Any]) -> Config:
    """`after`, with what the changed settings decide about others."""
    more: dict[str, Any] = {}
    if after.optimizer.optimizer is not before.optimizer.optimizer:
        more["optimizer"] = _chosen_optimizer(after, changes)
    new_model = after.model_type is not before.model_type
    for prefix in ("", "quantization."):
        more |= _followed_filter(before, after, prefix, new_model)
    return after.model_copy(update=_nested(after, more)) if more else after


def _optimizer(data: Mapping[str, Any]) -> Any:
    """The optimizer section with the user's own usual parameters where it is silent."""
    given = data["optimizer"]
    own = data.get("optimizer_defaults")
    if not isinstance(given, dict) or not isinstance(own, dict):
        return given
    usual = own.get(str(given.get("optimizer", "ADAMW")))
    if not isinstance(usual, dict):
        return given
    stated = {name: value for name, value in given.items() if value is not None}
    return {**usual, **stated}


def _chosen_optimizer(after: TrainConfig, changes: Mapping[str, Any]) -> TrainOptimizerConfig:
    given = changes.get("optimizer", {})
    if isinstance(given, TrainOptimizerConfig):
        return after.optimizer
    head = "optimizer."
    stated = {key[len(head) :]: value for key, value in changes.items() if key.startswith(head)}
    own = after.optimizer_defaults.get(after.optimizer.optimizer.value)
    usual = own.to_dict() if own else {}
    usual.pop("__version", None)
    chosen = {**usual, **given, **stated, "optimizer": after.optimizer.optimizer}
    return TrainOptimizerConfig.parse(chosen, kept=usual)


def _presets(model_type: Any) -> Mapping[str, FilterPreset]:
    try:
        return MODELS[ModelType(model_type or ModelType.STABLE_DIFFUSION_15)].filters
    except ValueError:
        return {}  # reported by the field itself


def _filter(
    data: dict[str, Any],
    presets: Mapping[str, FilterPreset],
    prefix: str,
    warnings: list[Problem],
) -> dict[str, Any]:
    """The filter that a preset's name stands for; a filter that is written out wins over a name."""
    name, text = data.get("layer_filter_preset", "full"), data.get("layer_filter")
    if not isinstance(name, str) or name == CUSTOM:
        return data
    preset = presets.get(name)
    if not text:
        if preset is None or name == "full":
            return data
        return {**data, "layer_filter": preset.layer_filter, "layer_filter_regex": preset.regex}
    if preset is not None and text == preset.layer_filter:
        regex = data.get("layer_filter_regex", preset.regex)
        name = name if regex == preset.regex else CUSTOM
        return {**data, "layer_filter_preset": name, "layer_filter_regex": regex}
    if name != "full":
        warnings.append(
            Problem(
                f"{prefix}layer_filter",
                "warning",
                f"layer_filter is {text!r}, which is not what layer_filter_preset {name!r} means.",
                'The filter is used, and the preset is now "custom".',
            )
        )
    return {**data, "layer_filter_preset": CUSTOM}


def _followed_filter(
    before: TrainConfig, after: TrainConfig, prefix: str, new_model: bool
) -> dict[str, Any]:
    old = before.quantization if prefix else before
    new = after.quantization if prefix else after
    presets = MODELS[after.model_type].filters
    name = new.layer_filter_preset
    if (new.layer_filter, new.layer_filter_regex) != (old.layer_filter, old.layer_filter_regex):
        preset = presets.get(name)
        same = preset is not None and (
            (preset.layer_filter, preset.regex) == (new.layer_filter, new.layer_filter_regex)
        )
        return {} if same or name == CUSTOM else {f"{prefix}layer_filter_preset": CUSTOM}
    if (name == old.layer_filter_preset and not new_model) or name == CUSTOM:
        return {}
    if name not in presets:
        if not new_model:
            return {}  # a name of no preset is an error of `validate`
        name = "full"
    return {
        f"{prefix}layer_filter_preset": name,
        f"{prefix}layer_filter": presets[name].layer_filter,
        f"{prefix}layer_filter_regex": presets[name].regex,
    }


def _nested(config: TrainConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values by top-level name, for `model_copy`; those below quantization in a copy of it."""
    head = "quantization."
    below = {key[len(head) :]: value for key, value in changes.items() if key.startswith(head)}
    top = {key: value for key, value in changes.items() if not key.startswith(head)}
    if below:
        top["quantization"] = config.quantization.model_copy(update=below)
    return top
