"""Settings that change while a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modules.config import MODELS, ConfigError, TrainConfig, settings
from modules.config.case import shown
from modules.config.describe import Setting
from modules.config.problems import error
from modules.config.section import plain
from modules.training.preflight import problems_of
from modules.training.schedules import preview


def change(config: TrainConfig, setting: str, value: Any) -> TrainConfig:
    """The config with one setting changed, where a running run can take that up.

    Raises:
        ConfigError: for an unknown setting, a value that it cannot have or that does not go with
            the others, one that is fixed when a run starts, and one that changes nothing there.
    """
    changed = config.update(**{setting: value})
    known = {one.path: one for one in settings(TrainConfig, collections=True)}
    one = known.get(setting) or known.get(setting.partition(".")[0])  # of an item: its list
    if one is None or one.applies != "now":
        fix = "Stop, change it, and start again (continue_last_backup goes on from here)."
        raise error(setting, f"{setting} is fixed when a run starts.", fix)
    if changed == config:
        return config
    if why := _why_in_vain(one, config, changed):
        raise error(setting, f"{setting} has no effect in this run: {why}.", "Leave it as it is.")
    before = problems_of(config)
    new = [problem for problem in problems_of(changed) if problem not in before]
    if refused := [problem for problem in new if problem.severity == "error"]:
        raise ConfigError(refused)
    return changed


def record(given: TrainConfig, changed: TrainConfig, setting: str, step: int) -> dict[str, Any]:
    """What a backup notes of a change, in plain values; `old` is what the run was given."""
    return {
        "setting": setting,
        "old": _at(given, setting),
        "value": _at(changed, setting),
        "step": step,
    }


def still_meant(
    config: TrainConfig, changes: Sequence[Mapping[str, Any]], warn: Callable[[str], None]
) -> list[Mapping[str, Any]]:
    """The changes of a run that hold when it goes on: all but of what its settings now say anew.

    Args:
        config: with which it goes on.
        changes: as `record` noted them, in order.
        warn: is told of each setting whose change counts no more.
    """
    first = {change["setting"]: change for change in reversed(changes)}
    last = {change["setting"]: change for change in changes}
    dropped = set()
    for setting, began in first.items():
        now, then = _at(config, setting), last[setting]["value"]
        if "old" in began and now != began["old"]:  # older backups do not say
            dropped.add(setting)
            if now != then:
                warn(f"{setting} is {shown(now)}, as its settings now say; it was {shown(then)}.")
    return [change for change in changes if change["setting"] not in dropped]


def _at(config: TrainConfig, setting: str) -> Any:
    try:
        return plain(config.get(setting))
    except ConfigError:  # of an item that is no longer there
        return None


def _why_in_vain(setting: Setting, config: TrainConfig, changed: TrainConfig) -> str:
    """Why nothing in the run would follow a setting; empty if something does."""
    if not setting.fits_model(changed):
        return f"{MODELS[config.model_type].title} does not use it"
    for name, values in setting.when.items():
        if changed.get(name) not in values:
            return f"{name} is {shown(changed.get(name))}"
    if not setting.is_reached(changed):
        return f"training_method is {config.training_method.value}"
    rates = setting.path.rpartition(".")[2] in ("learning_rate", "embedding_learning_rate")
    if rates and preview(config, 1) == preview(changed, 1):
        return "what trains has other learning rates"
    return ""
