"""What a diffusers model says of itself: the index of its folder, wherever that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

INDEXES = ("model_index.json", "modular_model_index.json")
"""The files that name a model's pipeline and parts. The second is that of models which have no
pipeline of the usual kind, but blocks to build one from."""


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a model's folder; None if it is no such folder.

    Raises:
        ValueError: if it is no JSON.
    """
    for name in INDEXES:
        file = folder / name
        if file.is_file():
            index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return index
    return None


def load_index(source: str, **options: Any) -> dict[str, Any]:
    """The index of a folder, or of a model of the hub.

    Args:
        source: the folder or hub id.
        options: `cache_dir`, `local_files_only` and `revision`, for the hub.

    Raises:
        OSError: if there is none.
        ValueError: if it is no JSON.
    """
    import diffusers

    if Path(source).is_dir():
        index = read_index(Path(source))
        if index is None:
            raise OSError(f"{source} has no {INDEXES[0]}, so it is no diffusers folder")
        return index
    try:
        return dict(diffusers.DiffusionPipeline.load_config(source, **options))
    except OSError:
        try:
            return dict(diffusers.ModularPipeline.load_config(source, **options))
        except OSError:
            pass
        raise


def parts_of(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """By part: the library and the class that an index names for it."""
    # a list of numbers is a setting of the pipeline; a part is [library, class], and sometimes more
    lists = {name: held for name, held in index.items() if isinstance(held, list)}
    return {
        name: (held[0], held[1])
        for name, held in lists.items()
        if len(held) > 1 and isinstance(held[0], str) and isinstance(held[1], str)
    }
