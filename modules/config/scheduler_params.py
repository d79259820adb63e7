"""Arguments of a CUSTOM learning-rate scheduler, as configs write them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

PLACEHOLDERS = ("%LR%", "%EPOCHS%", "%STEPS_PER_EPOCH%", "%TOTAL_STEPS%", "%SCHEDULER_STEPS%")
"""Values that only a run knows: rate, epochs, batches of an epoch, optimizer steps, and those of
them that come after the warm-up."""


def scheduler_arguments(
    params: Iterable[Mapping[str, Any]], run: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments from `scheduler_params`.

    Args:
        params: objects with `key` and `value`; a value is a Python literal or a placeholder.
        run: what each placeholder stands for.

    Raises:
        ValueError: says which object cannot be read, and what to write.
    """
    arguments: dict[str, Any] = {}
    for number, param in enumerate(params):
        key, value = param.get("key"), param.get("value")
        if not isinstance(key, str) or not key.isidentifier():
            raise ValueError(f"object {number} has the key {key!r}. Name an argument in it.")
        if key in arguments or key in ("optimizer", "last_epoch"):
            why = "stands twice" if key in arguments else "is set by the run"
            raise ValueError(f"{key} {why}. Take it out.")
        if isinstance(value, str) and value.startswith("%"):
            if value not in run:
                raise ValueError(f"{key} is {value}. Use one of {', '.join(PLACEHOLDERS)}.")
            arguments[key] = run[value]
            continue
        try:
            arguments[key] = ast.literal_eval(value) if isinstance(value, str) else value
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(
                f"{key} is {value}, which is no Python literal. Write a number, True, None, a "
                f"list, or text in quotes."
            ) from None
    return arguments
