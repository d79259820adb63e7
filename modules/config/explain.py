"""pydantic's validation errors, in our words: value, rule, fix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from enum import Enum
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from modules.config.problems import Problem

_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}
_KINDS = {
    "int": ("a whole number", "Give a number without a fraction."),
    "float": ("a number", "Give a number."),
    "bool": ("true or false", "Give true or false."),
    "string": ("text", "Give text in quotes."),
    "dict": ("an object of names and values", "Give an object in braces."),
    "mapping": ("an object of names and values", "Give an object in braces."),
    "model": ("an object of names and values", "Give an object in braces."),
    "tuple": ("a list", "Give a list in brackets."),
    "list": ("a list", "Give a list in brackets."),
}


def explain(failure: ValidationError, section: type[BaseModel]) -> list[Problem]:
    """A problem for each error, its field dotted."""
    problems = []
    for found in failure.errors(include_url=False):
        field = ".".join(map(str, found["loc"]))
        message, fix = _words(field, found, section)
        problems.append(Problem(field, "error", message, fix))
    return list(dict.fromkeys(problems))


def _words(field: str, found: Any, section: type[BaseModel]) -> tuple[str, str]:
    kind, context = found["type"], found.get("ctx", {})
    value = _shown(found["input"])
    subject = f"{field or 'The config'} is {value}"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        limit = context[key]
        return f"{subject}, but must be {words} {limit:g}.", f"Use a value {words} {limit:g}."
    if kind == "enum":
        return _enum_words(subject, found["input"], found["loc"], section)
    if kind == "literal_error":
        return f"{subject}, but must be one of {context['expected']}.", "Use one of these."
    if kind == "finite_number":
        return f"{subject}, but must be a finite number.", "Give a number."
    if kind == "value_error":
        text = str(context["error"])
        if text == "must be a number":
            return f"{subject}, but must be a number.", "Give a number."
        return text, ""
    if kind == "string_unicode":
        return f"{field} holds characters that no file can hold.", "Remove them."
    name = kind.partition("_")[0]
    if name in _KINDS:
        rule, fix = _KINDS[name]
        return f"{subject}, but must be {rule}.", fix
    return f"{subject}: {found['msg']}.", "Give a value of the kind that docs/options.md names."


def _enum_words(
    subject: str, value: Any, location: tuple[Any, ...], section: type[BaseModel]
) -> tuple[str, str]:
    words = [str(member.value) for member in _enum_at(location, section) or ()]
    close = difflib.get_close_matches(str(value).upper(), words, 1, 0.5)
    fix = f"Did you mean {close[0]}?" if close else f"Use {words[0]}, for instance."
    return f"{subject}, but must be one of {', '.join(words)}.", fix


def _enum_at(location: tuple[Any, ...], section: type[BaseModel]) -> type[Enum] | None:
    """The enumeration of the field at a location, through sections, lists and optional types."""
    kind: Any = section
    for key in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields:
            kind = kind.model_fields[key].annotation
        kind = _meant(kind)
    return kind if isinstance(kind, type) and issubclass(kind, Enum) else None


def _meant(kind: Any) -> Any:
    """The section or enumeration inside an annotation such as `tuple[X, ...] | None`."""
    if isinstance(kind, type) and issubclass(kind, (BaseModel, Enum)):
        return kind
    for inner in get_args(kind):
        if (found := _meant(inner)) is not None:
            return found
    return None


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"
    text = repr(value.value if isinstance(value, Enum) else value)
    return text if len(text) <= 80 else f"{text[:79]}…"
