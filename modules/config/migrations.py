"""From the layout of old files to today's: one small pure function a version."""

from __future__ import annotations

from typing import Any

from modules.config.problems import Problem

Data = dict[str, Any]


def migrate(data: Data, warnings: list[Problem]) -> Data:
    """A config of any version in the layout of version 11."""
    del warnings
    return data


def migrate_concept(data: Data) -> Data:
    """A concept of any version in the layout of version 2."""
    return data
