"""Model families: one file per architecture, named here once."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from modules.config import ConfigError, ModelType, Problem
from modules.families.base import Condition, Family, Objective, Parts, TextOptions

FAMILIES: tuple[str, ...] = (
    "stable_diffusion",
    "stable_diffusion_xl",
    "stable_diffusion_3",
    "flux",
    "chroma",
    "pixart",
    "sana",
    "wuerstchen",
    "stable_cascade",
    "qwen_image",
    "z_image",
    "flux_2",
    "hidream",
    "krea_2",
    "ernie",
    "ideogram_4",
    "hunyuan_video",
    "lumina_2",
    "aura_flow",
    "wan",
    "anima",
)
"""Modules of this package, each with its `VARIANTS`. A new architecture adds its name here."""


def all_families() -> Iterator[Family]:
    """Every variant of every architecture, in the order of the table."""
    for name in FAMILIES:
        yield from importlib.import_module(f"{__name__}.{name}").VARIANTS


def family_for(model_type: ModelType) -> Family:
    """The family that trains a model type.

    Raises:
        ConfigError: if no family here knows it; names those that exist.
    """
    known: list[str] = []
    for family in all_families():
        if model_type in family.model_types:
            return family
        known += [kind.value for kind in family.model_types]
    raise ConfigError(
        [
            Problem(
                field="model_type",
                severity="error",
                message=f"model_type is {model_type.value}, which this engine cannot train.",
                fix=f"Use one of {', '.join(known)}.",
            )
        ]
    )


__all__ = [
    "FAMILIES",
    "Condition",
    "Family",
    "Objective",
    "Parts",
    "TextOptions",
    "all_families",
    "family_for",
]
