"""Texts of users and files as a page shows them: no control characters, and not without end."""

from __future__ import annotations

import re

MAX_TEXT = 600
"""Characters of a text of a user or a file that a page shows; the whole is where it came from."""

MAX_PROMPT = 2_000
"""Of a prompt, by which pictures are told apart."""

MAX_LINE = 2_000
"""Of a line of a log, and of an error with its advice."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Also those that turn the direction of what follows: they would reorder the text around them."""


def brief(text: object, limit: int = MAX_TEXT) -> str:
    """Any text without control characters, and not without end."""
    shown = CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[:limit]}…"
