"""Where a config's paths lead."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from modules.config.problems import error

PACKAGE = "package://"
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
"""A model of the hub, and the revision of it that is wanted."""


def resolve(text: str) -> str:
    """A path as the file system knows it; hub ids, URLs and plain paths come back as they are.

    `~` becomes the home folder, and `package://<package>/<path>` a file that ships inside an
    installed Python package.

    Raises:
        ConfigError: if no such package is installed, or the path leaves it.
    """
    if text.startswith("~"):
        try:
            return str(Path(text).expanduser())
        except RuntimeError:  # ~nobody
            return text
    if not text.startswith(PACKAGE):
        return text
    package, _, inside = text[len(PACKAGE) :].partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise error(
            "",
            f"{text} names the package {package!r}, which is not installed.",
            f"Install {package}, or give the path of a folder or file.",
        )
    root = Path(spec.submodule_search_locations[0]).resolve()
    path = (root / inside).resolve()
    if path != root and root not in path.parents:
        raise error(
            "",
            f"{text} leads outside the package {package!r}.",
            "Give a path below the package, without '..'.",
        )
    return str(path)


def backup_folder(workspace: str, name: str) -> Path:
    """Where a backup is: a name is a folder in a workspace, anything longer a path of its own.

    Raises:
        ConfigError: as `resolve`.
    """
    path = Path(resolve(name))
    return path if path.parts[1:] else Path(resolve(workspace)) / "backup" / path


def backups(workspace: Path) -> list[Path]:
    """Backup folders of a workspace, newest first."""
    folder = workspace / "backup"
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir() and "-backup-" in path.name)
    return sorted((path for path in found if not path.name.startswith(".")), reverse=True)


def hub_revision(text: str) -> tuple[str, str | None]:
    """A model's name without, and with what stands behind its `@`: a branch, tag or commit.

    Only hub ids have one, as in `owner/model@v1.0` or `owner/model@refs/pr/3`; a file or folder of
    that name comes first.
    """
    found = HUB_ID.fullmatch(text)
    if found is None or found[2] is None or Path(text).exists():
        return text, None
    return found[1], found[2]


def is_local(text: str) -> bool:
    """Whether a model's name is surely a path: what is neither that nor there may be a hub id."""
    text, _ = hub_revision(text)
    starts = ("/", ".", "~", "\\", PACKAGE)
    suffixes = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
    if "://" in text and not text.startswith(PACKAGE):
        return False
    drive = len(text) > 2 and text[1] == ":" and text[0].isalpha()
    return text.startswith(starts) or drive or text.endswith(suffixes) or text.count("/") > 1
