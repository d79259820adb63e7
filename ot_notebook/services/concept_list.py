"""Changes of a list of concepts as values: the list as it was stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modules.config import ConceptConfig
from modules.config.paths import resolve
from modules.data.findings import printable
from ot_notebook.services.concept_items import roots_of

Concepts = tuple[ConceptConfig, ...]


def added(concepts: Concepts, path: str | Path, settings: dict[str, Any]) -> Concepts:
    """With a folder as one more concept, named like the folder.

    Raises:
        ValueError: if it is no folder, or a concept already.
        ConfigError: for a bad setting.
    """
    text = str(path).strip()
    folder = Path(resolve(text)) if text else Path()
    if not text:
        raise ValueError("There is no folder. Type its path, or choose one.")
    if not folder.exists():
        raise ValueError(f"{printable(text)} does not exist. Check the path.")
    if folder.is_dir() and folder in roots_of(concepts):
        raise ValueError(f"{printable(text)} is a concept already. Duplicate it for a variant.")
    return (*concepts, ConceptConfig(name=printable(folder.name), path=text).update(**settings))


def changed(concepts: Concepts, index: int, settings: dict[str, Any]) -> Concepts:
    """With other settings of one.

    Raises:
        ConfigError: for an unknown name or bad value.
    """
    return (*concepts[:index], at(concepts, index).update(**settings), *concepts[index + 1 :])


def removed(concepts: Concepts, index: int) -> Concepts:
    """Without one."""
    at(concepts, index)
    return (*concepts[:index], *concepts[index + 1 :])


def duplicated(concepts: Concepts, index: int) -> Concepts:
    """With a copy of one behind it."""
    concept = at(concepts, index)
    copy = concept.update(name=f"{concept.name} copy", seed=concept.seed + 1)
    return (*concepts[: index + 1], copy, *concepts[index + 1 :])


def moved(concepts: Concepts, index: int, to: int) -> Concepts:
    """With one at another place."""
    concept = at(concepts, index)
    at(concepts, to)
    rest = removed(concepts, index)
    return (*rest[:to], concept, *rest[to:])


def at(concepts: Sequence[ConceptConfig], index: int) -> ConceptConfig:
    """The concept of that index.

    Raises:
        ValueError: if there is none.
    """
    if not 0 <= index < len(concepts):
        raise ValueError(f"There is no concept {index}. There are {len(concepts)}.")
    return concepts[index]


def files_of(concepts: Sequence[ConceptConfig]) -> list[tuple[object, ...]]:
    """What decides which files are read."""
    return [
        (one.path, one.include_subdirectories, one.text.prompt_source, one.text.prompt_path)
        for one in concepts
    ]
