"""What ships with the package: a miniature pretrained model and small image sets."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def model(name: str = "emoji") -> Path:
    """Folder of an embedded model, in the layout of diffusers.

    Raises:
        ValueError: for another name; lists those that exist.
    """
    return _folder("model", name, {path.parent for path in _HERE.glob("*/model_index.json")})


def dataset(name: str) -> Path:
    """Folder of an embedded image set: pictures, each with a `.txt` caption of the same name.

    Args:
        name: for instance "line art".

    Raises:
        ValueError: for another name; lists those that exist.
    """
    return _folder("data set", name, {path for path in _HERE.glob("datasets/*") if path.is_dir()})


def _folder(kind: str, name: str, folders: set[Path]) -> Path:
    found = {path.name.replace("_", " "): path for path in folders if path.name[0] not in "._"}
    wanted = name.strip().casefold().replace("_", " ")
    if wanted not in found:
        names = ", ".join(repr(each) for each in sorted(found)) or "none is installed"
        raise ValueError(f"There is no embedded {kind} {name!r}. Use one of: {names}.")
    return found[wanted]
