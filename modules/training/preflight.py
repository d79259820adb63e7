"""What is checked before a run spends time: its config first, then its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modules.config import ConfigError, DataFacts, Problem, TrainConfig, validate
from modules.training.optimizers import optimizer_problems, rate_problems
from modules.training.schedules import preview


def check(config: TrainConfig, warn: Callable[[str], None]) -> None:
    """Refuse a config that cannot run, before anything is loaded; warn of what will be otherwise.

    Raises:
        ConfigError: says everything that keeps the run from starting.
    """
    _heed(problems_of(config), warn)


def problems_of(config: TrainConfig) -> list[Problem]:
    """All that can be said of a config before its model and its images are known."""
    found = [*validate(config), *optimizer_problems(config.optimizer)]
    if not any(problem.severity == "error" for problem in found):
        try:  # a scheduler that is not there is known before the model loads
            rates = preview(config, 1)
        except ConfigError as error:
            found += error.problems
        else:
            found += rate_problems(config.optimizer, {name: rate for name, [rate] in rates.items()})
    return list(dict.fromkeys(found))


def check_data(config: TrainConfig, images: int, warn: Callable[[str], None]) -> None:
    """The same for what can only be known of the images that were found.

    Args:
        config: what runs.
        images: those of one epoch, repeats counted.
        warn: is told what will be otherwise.

    Raises:
        ConfigError: if the run cannot work with them.
    """
    before, now = validate(config), validate(config, data=DataFacts(images))
    _heed([problem for problem in now if problem not in before], warn)


def _heed(problems: Sequence[Problem], warn: Callable[[str], None]) -> None:
    if blocking := [problem for problem in problems if problem.severity == "error"]:
        raise ConfigError(blocking)
    for problem in problems:
        warn(f"{problem.message} {problem.fix}")
