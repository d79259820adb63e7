"""Rules about what this engine can do at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modules.config.case import Case, Rule, refuse, shown, warn
from modules.config.describe import Setting, settings
from modules.config.enums import ModelType, TimeUnit
from modules.config.models import MODELS
from modules.config.problems import Problem
from modules.config.rules_model import fitting_formats
from modules.config.supported import ANY, BY_MODEL, HARMLESS, HONOURED


def honoured(model_type: ModelType) -> dict[str, tuple[Any, ...]]:
    """The tables of `supported.py` for one model type, its own parts in place of the braces."""
    facts = MODELS[model_type]
    table: dict[str, tuple[Any, ...]] = {}
    for name, values in {**HONOURED, **BY_MODEL.get(model_type, {})}.items():
        parts = facts.text_encoders if "{encoder}" in name else (facts.denoiser,)
        for part in parts:
            table[name.format(denoiser=part, encoder=part)] = values
    return table


def unsupported_values(case: Case) -> Iterator[Problem]:
    """A setting that the engine would ignore, or a value that it cannot do."""
    table = honoured(case.config.model_type)
    for setting in settings(type(case.config), collections=True):
        if setting.path.startswith("cloud.") or not setting.applies_to(case.config):
            continue
        value = case.config.get(setting.path)
        if setting.path in table:
            yield from _out_of_reach(case, setting.path, value, table[setting.path])
        elif value != setting.default:
            yield from _ignored(setting, value)


def unsupported_items(case: Case) -> Iterator[Problem]:
    """A value of a concept or a sample that the engine cannot do."""
    for name, values in honoured(case.config.model_type).items():
        root, _, inner = name.partition(".")
        if root not in ("concepts", "samples") or not inner:
            continue
        for number, item in enumerate(case.config.get(root) or ()):
            if item.enabled:
                yield from _out_of_reach(case, f"{root}.{number}.{inner}", item.get(inner), values)


def _out_of_reach(case: Case, path: str, value: Any, values: tuple[Any, ...]) -> Iterator[Problem]:
    if values == ANY or value in values:
        return
    if path == "output_model_format":
        fitting = fitting_formats(case)
        if value not in fitting:
            return  # a matter of model and method, which another rule explains
        values = tuple(word for word in values if word in fitting)
    words = ", ".join(shown(word) for word in values)
    message = f"{path} is {shown(value)}, which this engine cannot do."
    fix = f"Use {_one_of(words)}." if words else "Use another model_type or training_method."
    yield refuse(path, message, fix)


def _ignored(setting: Setting, value: Any) -> Iterator[Problem]:
    usual = shown(setting.default)
    of_any_part = "{part}." + setting.path.rpartition(".")[2]
    instead = HARMLESS.get(setting.path, HARMLESS.get(of_any_part))
    if instead is not None:
        if instead:
            message = f"{setting.path} is {shown(value)}, but {instead}."
            yield warn(setting.path, message, f"Set it to {usual} to silence this.")
        return
    message = f"{setting.path} is {shown(value)}, which this engine cannot honour."
    yield refuse(setting.path, message, f"Set it to {usual}.")


def _one_of(words: str) -> str:
    return f"one of {words}" if "," in words else words


def stops_a_part(case: Case) -> Iterator[Problem]:
    """A part that should stop training before the run ends, in an engine that would not stop it."""
    config = case.config
    for part in (case.facts.denoiser, *case.facts.text_encoders):
        section = config.get(part)
        count, unit = section.stop_training_after, section.stop_training_after_unit
        known = f"{part}.stop_training_after" in honoured(case.config.model_type)
        never = unit is TimeUnit.NEVER or count is None
        if known or never or not section.train:
            continue
        if unit is TimeUnit.EPOCH and count >= config.epochs:
            continue
        yield refuse(
            f"{part}.stop_training_after_unit",
            f"{part} should stop training after {count} {unit.value}, which this engine cannot do.",
            f"Set {part}.stop_training_after_unit to NEVER, or {part}.train to false.",
        )


def cloud(case: Case) -> Iterator[Problem]:
    """OneTrainer's remote training."""
    if case.config.cloud.enabled:
        yield refuse(
            "cloud.enabled",
            "cloud.enabled is true, but this engine trains on the machine where it is started.",
            "Start it there, and set cloud.enabled to false.",
        )


RULES: tuple[Rule, ...] = (unsupported_values, unsupported_items, stops_a_part, cloud)
