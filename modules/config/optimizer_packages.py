"""Which package an optimizer comes from, and what to do where that is missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from modules.config.enums import Optimizer
from modules.config.problems import Problem

PIP: Mapping[str, str] = MappingProxyType(
    {
        "lion_pytorch": "lion-pytorch",
        "schedulefree": "schedulefree",
        "dadaptation": "dadaptation",
        "prodigyopt": "prodigyopt",
        "prodigyplus": "prodigy-plus-schedule-free",
        "came_pytorch": "came-pytorch",
        "adv_optm": "adv_optm",
        "pytorch_optimizer": "pytorch_optimizer",
        "bitsandbytes": "bitsandbytes",
    }
)
"""What to install for each optional package, by its import name."""

_NAMES = {
    "lion_pytorch": "LION",
    "schedulefree": "SCHEDULE_FREE_ADAMW SCHEDULE_FREE_SGD",
    "dadaptation": "DADAPT_ADAM DADAPT_ADAN DADAPT_ADA_GRAD DADAPT_LION DADAPT_SGD",
    "prodigyopt": "PRODIGY",
    "prodigyplus": "PRODIGY_PLUS_SCHEDULE_FREE",
    "came_pytorch": "CAME",
    "adv_optm": ("ADAMW_ADV ADOPT_ADV PRODIGY_ADV LION_ADV SIGNSGD_ADV MUON_ADV ADAMUON_ADV"),
    "pytorch_optimizer": "MUON ADABELIEF TIGER AIDA ADOPT YOGI",
    "bitsandbytes": (
        "ADAGRAD ADAGRAD_8BIT RMSPROP RMSPROP_8BIT LARS LARS_8BIT LAMB LAMB_8BIT LION_8BIT "
        "ADAM_8BIT ADAMW_8BIT SGD_8BIT AdEMAMix AdEMAMix_8BIT"
    ),
}
PACKAGE_OF: Mapping[Optimizer, str] = MappingProxyType(
    {Optimizer(name): package for package, names in _NAMES.items() for name in names.split()}
)
"""Import name of the package, by optimizer; the others come with torch and transformers."""

NOWHERE = frozenset({Optimizer.CAME_8BIT})
"""Optimizers that no package offers."""


def not_here(optimizer: Optimizer) -> Problem | None:
    """Why an optimizer cannot be built on this machine; None if it can."""
    field, name = "optimizer.optimizer", optimizer.value
    if optimizer in NOWHERE:
        message = f"optimizer is {name}, which no package offers."
        fix = "Use CAME or ADAFACTOR, which keep little, or ADAMW_8BIT."
        return Problem(field, "error", message, fix)
    package = PACKAGE_OF.get(optimizer)
    if package is None or find_spec(package) is not None:
        return None
    message = f"{name} is part of the package {package}, which is not installed."
    return Problem(
        field, "error", message, f"Install it (pip install {PIP[package]}), or use ADAMW."
    )
