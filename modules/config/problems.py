"""What is wrong with a config, in words for the person who wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """One setting that will not work, or not as written."""

    field: str
    """Dotted name of the setting, such as "unet.learning_rate"; empty for the whole config."""
    severity: Literal["error", "warning"]
    """Whether a run is refused, or starts and says so."""
    message: str
    """The value and the rule that it breaks."""
    fix: str
    """What to do about it."""

    def __str__(self) -> str:
        text = f"{self.message} {self.fix}".rstrip()
        return f"{self.field}: {text}" if self.field else text


class ConfigError(ValueError):
    """A config that cannot be read or cannot run; `problems` says why, its text a line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


def error(field: str, message: str, fix: str) -> ConfigError:
    """A `ConfigError` with one problem."""
    return ConfigError([Problem(field, "error", message, fix)])
