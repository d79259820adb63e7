"""Rules about files and folders: what must be there, and what must be writable."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from modules.config.case import Case, Rule, refuse, warn
from modules.config.concept_config import (
    ARCHIVES,
    FILM_SUFFIXES,
    IMAGE_SUFFIXES,
    ConceptConfig,
)
from modules.config.enums import ConceptType, TrainingMethod
from modules.config.paths import HUB_ID, backup_folder, backups, hub_revision, is_local, resolve
from modules.config.problems import ConfigError, Problem
from modules.config.section import clip

GIB = 2**30
LITTLE_DISK, NO_DISK = 2 * GIB, GIB // 4
"""Free space below which a run is warned about, and refused."""


def base_model(case: Case) -> Iterator[Problem]:
    """A model that is surely meant to be a file or folder, and is not there."""
    name = case.config.base_model_name
    if not name.strip():
        message = "base_model_name is empty, but every run starts from a model."
        yield refuse("base_model_name", message, "Give a hub id, a diffusers folder or a file.")
        return
    path, problem = _path("base_model_name", name)
    if problem:
        yield problem
    elif is_local(name) and not Path(path).exists():
        message = f"base_model_name is {name}, but nothing is there."
        yield refuse("base_model_name", message, "Check the path, or give a hub id.")


def other_models(case: Case) -> Iterator[Problem]:
    """Adapters, embeddings and networks of their own that are surely paths, and are not there."""
    config = case.config
    fields = [f"{part}.model_name" for part in case.facts.parts]
    if config.training_method is TrainingMethod.LORA:
        fields.append("lora_model_name")
    if config.training_method is TrainingMethod.EMBEDDING:
        fields.append("embedding.model_name")
    fields += [
        f"additional_embeddings.{n}.model_name" for n in range(len(config.additional_embeddings))
    ]
    for field in fields:
        name = config.get(field)
        path, problem = _path(field, name)
        if problem:
            yield problem
        elif name and is_local(name) and not Path(path).exists():
            message = f"{field} is {name}, but nothing is there."
            yield refuse(field, message, "Check the path, or leave it empty.")


def hub_model(case: Case) -> Iterator[Problem]:
    """A model of the hub that was never downloaded, where the hub may not be asked."""
    config, name = case.config, case.config.base_model_name
    path, problem = _path("base_model_name", name)
    is_id = HUB_ID.fullmatch(name)
    if problem or not config.offline_mode or not is_id or Path(path).exists():
        return
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = config.huggingface_cache_dir or os.environ.get("HF_HUB_CACHE") or f"{home}/hub"
    folder, problem = _path("huggingface_cache_dir", cache)
    if problem:
        yield problem
        return
    model, revision = hub_revision(name)
    held = Path(folder) / f"models--{model.replace('/', '--')}"
    if revision:  # a branch or tag has a file there, a commit a folder
        there = (held / "refs" / revision).is_file() or (held / "snapshots" / revision).is_dir()
    else:
        there = held.is_dir()
    if not there:
        message = f"base_model_name is {name}, which is not in {cache}, but offline_mode is true."
        yield refuse("base_model_name", message, "Set offline_mode to false for the first run.")


def overwriting(case: Case) -> Iterator[Problem]:
    """An output that would take the place of something."""
    config, field = case.config, "output_model_destination"
    path, problem = _path(field, config.output_model_destination)
    base, other = _path("base_model_name", config.base_model_name)
    if problem or other or not config.output_model_destination.strip():
        return
    if Path(base).exists() and Path(path).absolute() == Path(base).absolute():
        message = f"{field} is {path}, the very model that the run starts from."
        yield refuse(field, message, "Choose another name.")
    elif config.prevent_overwrites and Path(path).is_file():
        message = f"{field} is {path}, which exists, but prevent_overwrites is true."
        yield refuse(field, message, "Choose another name, or set prevent_overwrites to false.")


def chosen_backup(case: Case) -> Iterator[Problem]:
    """A backup to go on from that is not there, is not the newest, or that nothing asks for."""
    config, field = case.config, "ot.resume_from"
    name = config.ot.resume_from
    if not name:
        return
    _, problem = _path(field, name)
    workspace, other = _path("workspace_dir", config.workspace_dir)
    if problem or other:
        yield from filter(None, [problem])
    elif not config.continue_last_backup:
        message = f"{field} is {name}, but continue_last_backup is false: the run begins anew."
        yield warn(field, message, "Set continue_last_backup to true, or it to empty.")
    elif not (folder := backup_folder(config.workspace_dir, name)).is_dir():
        message = f"{field} is {name}, but {folder} is not there."
        yield refuse(field, message, "Check the name, or leave it empty for the newest.")
    elif newer := [path for path in backups(Path(workspace)) if path.name > folder.name]:
        there = "is a newer one" if len(newer) == 1 else f"are {len(newer)} newer ones"
        message = f"{field} is {name}, but there {there} in {newer[0].parent}: the run goes back "
        fix = f"Leave it empty to go on from the newest, {newer[0].name}."
        yield warn(field, f"{message}behind what it had reached.", fix)


def file_names(case: Case) -> Iterator[Problem]:
    """A beginning of file names that would lead elsewhere, or that no disk takes."""
    field, text = "save_filename_prefix", case.config.save_filename_prefix
    if odd := re.search(r'[\x00-\x1f<>:"/\\|?*]', text):
        message = f"{field} holds {odd[0]!r}, which file names cannot."
        yield refuse(field, message, "Use letters, digits, spaces, dots, - and _.")
    elif len(text) > 100:
        message = f"{field} is {len(text)} characters long, but may be 100."
        yield refuse(field, message, "Shorten it.")


def concepts(case: Case) -> Iterator[Problem]:
    """A training set that is not there, or has nothing to train on."""
    config = case.config
    if config.concepts is None:
        message = f"concept_file_name is {config.concept_file_name}, but there is no such file."
        fix = "Name a file of concepts, or put concepts into the config."
        yield refuse("concept_file_name", message, fix)
        return
    trained = [c for c in config.concepts if c.enabled and c.type is not ConceptType.VALIDATION]
    if not trained:
        message = "No enabled concept has images to train on."
        yield refuse("concepts", message, "Add a concept with a folder of images, or enable one.")
    kinds = IMAGE_SUFFIXES | FILM_SUFFIXES if case.facts.frames_per_second else IMAGE_SUFFIXES
    for number, concept in enumerate(config.concepts):
        if concept.enabled:
            yield from _concept_folder(f"concepts.{number}.path", concept, kinds)


def _concept_folder(field: str, concept: ConceptConfig, kinds: frozenset[str]) -> Iterator[Problem]:
    text = concept.path
    named = f"Concept {concept.name!r}: the path" if concept.name else "The path of the concept"
    if not text.strip():
        yield refuse(field, f"{named} is empty.", "Give the folder of its images.")
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
            yield warn(field, message, "Give a folder's full path if one was meant.")
        else:
            yield refuse(field, f"{named} is {text}, but there is no such folder.", "Check it.")
    elif not _holds(folder, kinds | ARCHIVES, concept.include_subdirectories):
        below = "" if concept.include_subdirectories else ", or turn include_subdirectories on"
        message = f"{named} is {text}, where there are no images."
        yield refuse(field, message, f"Put images there ({', '.join(sorted(kinds))}){below}.")


def _holds(folder: Path, kinds: frozenset[str], below: bool) -> bool:
    for _, folders, names in os.walk(folder):
        if kinds & {Path(name).suffix.lower() for name in names}:
            return True
        folders[:] = [name for name in folders if below and not name.startswith(".")]
    return False


def writable_folders(case: Case) -> Iterator[Problem]:
    """Folders that the run writes to, where it may not, or where there is little space."""
    for field in ("workspace_dir", "cache_dir", "output_model_destination"):
        text = case.config.get(field)
        if not text.strip():
            yield refuse(field, f"{field} is empty.", "Give a path.")
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
            yield refuse(field, message, "Choose a folder that this user may write to.")
            continue
        yield from _space(field, text, place)


def _space(field: str, text: str, place: Path) -> Iterator[Problem]:
    free = shutil.disk_usage(place).free
    if free >= LITTLE_DISK:
        return
    message = f"{field} is {text}, on a disk with {free / GIB:.2g} GiB left."
    fix = "Free some space, or choose a folder on another disk."
    yield refuse(field, message, fix) if free < NO_DISK else warn(field, message, fix)


def _path(field: str, text: str) -> tuple[str, Problem | None]:
    """Where a path leads, or why it leads nowhere."""
    if "\0" in text:
        return "", refuse(field, f"{field} holds a zero byte, which no path can.", "Remove it.")
    try:
        path = resolve(text)
        Path(path).exists()
    except ConfigError as failure:
        (problem,) = failure.problems
        return "", refuse(field, problem.message, problem.fix)
    except OSError as failure:  # a name too long, a folder that may not be looked into
        message = f"{field} is {clip(text)}, which cannot be looked at: {failure.strerror}."
        return "", refuse(field, message, "Choose another path.")
    return path, None


RULES: tuple[Rule, ...] = (
    base_model,
    other_models,
    hub_model,
    overwriting,
    chosen_backup,
    file_names,
    concepts,
    writable_folders,
)
