"""What is wrong with the files of a training set, each kind told once and by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NAMED = 5
"""Files that a message names before it counts the rest; `paths` has them all."""

Kind = Literal[
    "missing folder",
    "empty folder",
    "unreadable file",
    "unreadable image",
    "too large",
    "changed",
    "missing caption",
    "empty caption",
    "unreadable caption",
    "long caption",
    "unused captions",
    "orphan caption",
    "orphan mask",
    "same name",
    "damaged film",
    "short film",
    "animated",
    "converted colours",
    "transparent",
    "unsupported",
]


@dataclass(frozen=True)
class DataProblem:
    """One kind of trouble and every file that has it."""

    kind: Kind
    message: str
    """The rule that is broken."""
    fix: str
    """What to do about it."""
    skipped: bool
    """Whether the files take no part in training."""
    paths: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(map(printable, self.paths[:NAMED]))
        more = len(self.paths) - NAMED
        files = f"{shown} and {more:,} more" if more > 0 else shown
        return f"{files}: {self.message} {self.fix}".rstrip()


class Findings:
    """Collects problems; files with the same trouble share one."""

    def __init__(self) -> None:
        self._found: dict[tuple[Kind, str, str, bool], list[str]] = {}

    def add(self, kind: Kind, path: str, message: str, fix: str, skipped: bool = False) -> None:
        """Note trouble with one file."""
        paths = self._found.setdefault((kind, message, fix, skipped), [])
        if path not in paths[-1:]:
            paths.append(path)

    def problems(self) -> tuple[DataProblem, ...]:
        """What was found, in the order of the first file of each kind."""
        return tuple(DataProblem(*what, tuple(paths)) for what, paths in self._found.items())


def printable(path: str) -> str:
    """A path that can be shown: file names may hold line breaks and bytes that are no text."""
    text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
