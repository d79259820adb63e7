"""Axes of a grid as people write and read them: values such as 1, 3, 7 or 1-5, and words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ot_notebook.services.inference_request import refused

if TYPE_CHECKING:
    from ot_notebook.services.inference_service import InferenceService

WHOLE = ("seed", "width", "height", "steps", "clip_skip")
TEXTS = ("prompt", "negative_prompt")
RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")
"""From one whole number to another."""

MAX_RANGE = 1000

WORDS = {"cfg_scale": "guidance", "lora": "first LoRA"}
"""Settings that a page calls otherwise than `generate` does."""


def spoken(name: str) -> str:
    """What a page calls a setting, in small letters."""
    if name.startswith("lora:"):
        return f"LoRA {name.removeprefix('lora:')}"
    return WORDS.get(name, name.replace("_", " "))


def axis_label(name: str, value: Any) -> str:
    """A setting with its value in words; prompts and saves speak for themselves."""
    plain = getattr(value, "value", value)
    text = f"{plain:g}" if isinstance(plain, float) else str(plain)
    return text if name in ("prompt", "save") else f"{spoken(name)} {text}"


def read_axis(service: InferenceService, name: str, text: str) -> dict[str, list[Any]]:
    """An axis for `grid`, from what was written.

    Args:
        service: finds the saves of a run.
        name: the setting.
        text: its values; for "save" the run, by its id or workspace, the newest where it is empty.

    Raises:
        ConfigError: for what is no number where one belongs, or a run that is not there.
    """
    if name == "save":
        return {name: list(service.saves(text.strip() or None))}
    if name in TEXTS:
        return {name: [part.strip() for part in text.split("|")]}
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if name == "scheduler":
        return {name: parts}
    kind: Callable[[str], Any] = int if name in WHOLE else float
    values: list[Any] = []
    for part in parts:
        values += _range(part) if name in WHOLE and RANGE.fullmatch(part) else [_one(part, kind)]
    return {name: values}


def _range(part: str) -> list[int]:
    first, last = (int(number) for number in RANGE.fullmatch(part).groups())  # type: ignore[union-attr]
    if not 0 <= last - first < MAX_RANGE:
        raise refused("x", f"{part} is no range.", "Write the smaller number first, such as 1-5.")
    return list(range(first, last + 1))


def _one(part: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(part)
    except ValueError:
        return part  # refused by name, as any other value would be
