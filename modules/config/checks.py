"""Rules across settings, model, data and machine: what would stop a run, said before it starts.

Each rule is a small function from a `Case` to problems; `RULES` names them all.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.config.describe import Setting, settings
from modules.config.enums import ConceptType, TimeUnit
from modules.config.models import MODELS, ModelFacts
from modules.config.paths import is_local, resolve
from modules.config.problems import ConfigError, Problem
from modules.config.section import clip, plain
from modules.config.supported import ANY, HARMLESS, HONOURED
from modules.config.train_config import TrainConfig

IMAGE_SUFFIXES = frozenset([".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif"])
GIB = 2**30
LITTLE_DISK, NO_DISK = 2 * GIB, GIB // 4
"""Free space below which a run is warned about, and refused."""


@dataclass(frozen=True)
class Case:
    """What the rules look at."""

    config: TrainConfig
    facts: ModelFacts
    """Of the config's model type."""


Rule = Callable[[Case], Iterator[Problem]]


def validate(config: TrainConfig, hardware: Any = None, data: Any = None) -> list[Problem]:
    """Everything that would stop a run, or make it other than the config says; errors first.

    Nothing is loaded and nothing is written. The file system is looked at, the hub is not.
    """
    del hardware, data
    case = Case(config, MODELS[config.model_type])
    found = [problem for rule in RULES for problem in rule(case)]
    return sorted(dict.fromkeys(found), key=lambda problem: problem.severity != "error")


def _error(field: str, message: str, fix: str) -> Problem:
    return Problem(field, "error", message, fix)


def _warning(field: str, message: str, fix: str) -> Problem:
    return Problem(field, "warning", message, fix)


# ---------------------------------------------------------------- what the engine honours


def honoured(facts: ModelFacts) -> dict[str, tuple[Any, ...]]:
    """The table of `supported.py` with a model's own parts in place of the braces."""
    table: dict[str, tuple[Any, ...]] = {}
    for name, values in HONOURED.items():
        parts = facts.text_encoders if "{encoder}" in name else (facts.denoiser,)
        for part in parts:
            table[name.format(denoiser=part, encoder=part)] = values
    return table


def unsupported_values(case: Case) -> Iterator[Problem]:
    """A setting that the engine would ignore, or a value that it cannot do."""
    table = honoured(case.facts)
    for setting in settings(type(case.config), collections=True):
        if setting.path.startswith("cloud.") or not setting.applies_to(case.config):
            continue
        value = case.config.get(setting.path)
        if setting.path in table:
            values = table[setting.path]
            if values != ANY and value not in values:
                words = ", ".join(str(plain(word)) for word in values)
                message = f"{setting.path} is {_shown(value)}, which this engine cannot do."
                yield _error(setting.path, message, f"Use {_one_of(words)}.")
        elif value != setting.default:
            yield from _ignored(setting, value)


def _ignored(setting: Setting, value: Any) -> Iterator[Problem]:
    usual = _shown(setting.default)
    if setting.path in HARMLESS:
        if instead := HARMLESS[setting.path]:
            message = f"{setting.path} is {_shown(value)}, but {instead}."
            yield _warning(setting.path, message, f"Set it to {usual} to silence this.")
        return
    message = f"{setting.path} is {_shown(value)}, which this engine cannot honour."
    yield _error(setting.path, message, f"Set it to {usual}.")


def _one_of(words: str) -> str:
    return f"one of {words}" if "," in words else words


def _shown(value: Any) -> str:
    value = plain(value)
    if isinstance(value, (dict, list)):
        return "not empty" if value else "empty"
    if value is None:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else clip(str(value)) or "empty"


def stops_a_part(case: Case) -> Iterator[Problem]:
    """A part that should stop training before the run ends, in an engine that would not stop it."""
    config = case.config
    for part in (case.facts.denoiser, *case.facts.text_encoders):
        section = config.get(part)
        count, unit = section.stop_training_after, section.stop_training_after_unit
        known = f"{part}.stop_training_after" in honoured(case.facts)
        never = unit is TimeUnit.NEVER or count is None
        if known or never or not section.train:
            continue
        if unit is TimeUnit.EPOCH and count >= config.epochs:
            continue
        yield _error(
            f"{part}.stop_training_after_unit",
            f"{part} should stop training after {count} {unit.value}, which this engine cannot do.",
            f"Set {part}.stop_training_after_unit to NEVER, or {part}.train to false.",
        )


def cloud(case: Case) -> Iterator[Problem]:
    """OneTrainer's remote training."""
    if case.config.cloud.enabled:
        yield _error(
            "cloud.enabled",
            "cloud.enabled is true, but this engine trains on the machine where it is started.",
            "Start it there, and set cloud.enabled to false.",
        )


# ---------------------------------------------------------------- files and folders


def base_model(case: Case) -> Iterator[Problem]:
    """A model that is surely meant to be a file or folder, and is not there."""
    name = case.config.base_model_name
    if not name.strip():
        message = "base_model_name is empty, but every run starts from a model."
        yield _error("base_model_name", message, "Give a hub id, a diffusers folder or a file.")
        return
    path, problem = _path("base_model_name", name)
    if problem:
        yield problem
    elif is_local(name) and not Path(path).exists():
        message = f"base_model_name is {name}, but nothing is there."
        yield _error("base_model_name", message, "Check the path, or give a hub id.")


def concepts(case: Case) -> Iterator[Problem]:
    """A training set that is not there, or has nothing to train on."""
    config = case.config
    if config.concepts is None:
        message = f"concept_file_name is {config.concept_file_name}, but there is no such file."
        fix = "Name a file of concepts, or put concepts into the config."
        yield _error("concept_file_name", message, fix)
        return
    trained = [c for c in config.concepts if c.enabled and c.type is not ConceptType.VALIDATION]
    if not trained:
        message = "No enabled concept has images to train on."
        yield _error("concepts", message, "Add a concept with a folder of images, or enable one.")
    for number, concept in enumerate(config.concepts):
        if concept.enabled:
            yield from _concept_folder(f"concepts.{number}.path", concept)


def _concept_folder(field: str, concept: Any) -> Iterator[Problem]:
    text = concept.path
    named = f"Concept {concept.name!r}: the path" if concept.name else "The path of the concept"
    if not text.strip():
        yield _error(field, f"{named} is empty.", "Give the folder of its images.")
        return
    resolved, problem = _path(field, text)
    if problem:
        yield problem
        return
    folder = Path(resolved)
    if folder.is_file():
        return  # a packed data set: the reader says whether it can be read
    if not folder.exists():
        hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not folder.parent.is_dir()
        if hub_id:
            message = f"{named} is {text}, which is no folder here; it is taken for a hub data set."
            yield _warning(field, message, "Give a folder's full path if one was meant.")
        else:
            yield _error(field, f"{named} is {text}, but there is no such folder.", "Check it.")
    elif not _has_image(folder, concept.include_subdirectories):
        below = "" if concept.include_subdirectories else ", or turn include_subdirectories on"
        message = f"{named} is {text}, where there are no images."
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        yield _error(field, message, f"Put images there ({kinds}){below}.")


def _has_image(folder: Path, below: bool) -> bool:
    for _, folders, names in os.walk(folder):
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
            return True
        if any(Path(name).suffix.lower() in (".parquet", ".arrow", ".tar") for name in names):
            return True
        folders[:] = [name for name in folders if below and not name.startswith(".")]
    return False


def writable_folders(case: Case) -> Iterator[Problem]:
    """Folders that the run writes to, where it may not, or where there is little space."""
    for field in ("workspace_dir", "cache_dir", "output_model_destination"):
        text = case.config.get(field)
        if not text.strip():
            yield _error(field, f"{field} is empty.", "Give a path.")
            continue
        path, problem = _path(field, text)
        if problem:
            yield problem
            continue
        target = Path(path).absolute()
        place = next(p for p in (target, *target.parents) if p.exists())
        folder_needed = field != "output_model_destination" or place != target
        if (folder_needed and not place.is_dir()) or not os.access(place, os.W_OK):
            message = f"{field} is {text}, but {place} cannot be written to."
            yield _error(field, message, "Choose a folder that this user may write to.")
            continue
        yield from _space(field, text, place)


def _space(field: str, text: str, place: Path) -> Iterator[Problem]:
    free = shutil.disk_usage(place).free
    if free >= LITTLE_DISK:
        return
    message = f"{field} is {text}, on a disk with {free / GIB:.2g} GiB left."
    fix = "Free some space, or choose a folder on another disk."
    yield _error(field, message, fix) if free < NO_DISK else _warning(field, message, fix)


def _path(field: str, text: str) -> tuple[str, Problem | None]:
    """Where a path leads, or why it leads nowhere."""
    if "\0" in text:
        return "", _error(field, f"{field} holds a zero byte, which no path can.", "Remove it.")
    try:
        return resolve(text), None
    except ConfigError as failure:
        (problem,) = failure.problems
        return "", _error(field, problem.message, problem.fix)


RULES: tuple[Rule, ...] = (
    unsupported_values,
    stops_a_part,
    cloud,
    base_model,
    concepts,
    writable_folders,
)
