"""Time that a session has left, and how much of it a run may train."""

from __future__ import annotations

import re

SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}

SHORTEST = 60.0
"""Seconds that are kept for the last backup and the model, at least."""

LONGEST = 600.0
"""And at most; in between it is a twentieth of the budget."""


def training_seconds(budget: str | float) -> float:
    """How long a run may train so that it has saved when `budget` is over.

    Args:
        budget: seconds, or a text such as "3h40m", "90 min" or "2 h".

    Raises:
        ValueError: if it is no time span, or leaves no time to train.
    """
    seconds = float(budget) if isinstance(budget, (int, float)) else _parse(budget)
    kept = min(LONGEST, max(SHORTEST, seconds / 20))
    if not kept < seconds < float("inf"):
        raise ValueError(
            f"budget is {budget!r}, but a run needs {SHORTEST:.0f} s to save and more to train. "
            f'Give more time, for instance "3h40m".'
        )
    return seconds - kept


def _parse(text: str) -> float:
    pattern = r"\s*(?:(\d+(?:\.\d+)?)\s*(d|h|m|s)(?:ays?|ours?|in|inutes?|ec|econds?)?\s*)+"
    if not re.fullmatch(pattern, text):
        raise ValueError(f'budget is {text!r}, which is no time span. Write it as in "3h40m".')
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", text)
    return sum(float(number) * SECONDS[unit] for number, unit in parts)
