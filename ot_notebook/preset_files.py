"""The presets that ship with the package, by name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("name", "family", "model_type", "method", "vram_gib", "description", "path")


def folder() -> Path:
    """Where presets lie: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    installed = here / "presets"
    return installed if installed.is_dir() else here.parent / "presets"


def find(name: str | Path) -> Path:
    """The file of a preset.

    Args:
        name: its name in any case, "family/name", or the path of a file of your own.

    Raises:
        ValueError: if there is none; names those that come near.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix.lower() == ".json" and path.name != str(name):
        raise ValueError(f"{path} does not exist. Give the path of a config file, or a preset.")
    wanted = str(name).removesuffix(".json").casefold()
    found = {}
    for file in _files():
        found[file.stem.casefold()] = found[f"{file.parent.name}/{file.stem}".casefold()] = file
    if wanted in found:
        return found[wanted]
    names = sorted(file.stem for file in _files())
    by_case = {each.casefold(): each for each in names}
    close = [by_case[each] for each in difflib.get_close_matches(wanted, by_case, n=3, cutoff=0.4)]
    near = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ValueError(f"There is no preset {str(name)!r}. {near}Presets: {', '.join(names)}.")


def presets() -> pd.DataFrame:
    """Every preset: name, family, model type, method, the GPU memory it is made for, and words."""
    import pandas as pd

    rows = []
    for file in _files():
        preset = json.loads(file.read_text(encoding="utf-8"))
        memory = re.search(r"(\d+) ?GB", file.stem)
        rows.append(
            {
                "name": file.stem,
                "family": file.parent.name,
                "model_type": preset.get("model_type", ""),
                "method": preset.get("training_method", ""),
                "vram_gib": int(memory[1]) if memory else None,
                "description": preset.get("__description", ""),
                "path": str(file),
            }
        )
    frame: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame


def _files() -> Iterator[Path]:
    yield from sorted(folder().glob("*/*.json"))
