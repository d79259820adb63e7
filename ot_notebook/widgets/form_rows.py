"""How a setting looks on a page: its control, its label, its values in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args, get_origin

from modules.config import Setting, settings
from modules.config.enums import ModelType
from modules.config.models import MODELS
from modules.config.section import Section, plain

Kind = Literal["bool", "choice", "number", "text", "json", "list"]

SPELLING = {
    "dir": "folder", "dtype": "data type", "fn": "function", "lr": "learning rate",
    "num": "number of", "vae": "VAE", "unet": "UNet", "ema": "EMA", "lora": "LoRA", "snr": "SNR",
    "mse": "MSE", "mae": "MAE", "gpu": "GPU", "cpu": "CPU", "oft": "OFT", "dora": "DoRA",
    "adamw": "AdamW", "sgd": "SGD", "8bit": "8-bit", "sdp": "SDP", "id": "ID", "url": "URL",
    "cfg": "CFG", "svd": "SVD", "uuid": "UUID", "json": "JSON", "xl": "XL",
}  # fmt: skip
"""Words of code that a page writes in another way."""


class Row(TypedDict):
    """One setting as the page gets it; `items` are the rows of each item of a list."""

    path: str
    label: str
    kind: Kind
    choices: list[tuple[str, str]]
    unit: str
    help: str
    rule: str
    level: str
    applies: str
    nullable: bool
    default: str
    items: list[Row]


class Group(TypedDict):
    """Rows under one heading."""

    name: str
    rows: list[Row]


def rows(members: Sequence[Setting]) -> list[Row]:
    """The rows of one group; a label that two would share takes in the section's name."""
    tails = [setting.path.rpartition(".")[2] for setting in members]
    return [
        _row(setting, words(tail if tails.count(tail) == 1 else setting.path.replace(".", " ")))
        for setting, tail in zip(members, tails, strict=True)
    ]


def _row(setting: Setting, label: str) -> Row:
    section = section_of(setting)
    return Row(
        path=setting.path,
        label=label,
        kind=control_of(setting),
        choices=choices(setting),
        unit=setting.unit,
        help=" ".join(setting.help.split()),
        rule=rule(setting),
        level=setting.level,
        applies=setting.applies,
        nullable=setting.nullable,
        default=setting.default_text or in_words(setting.default),
        items=rows(_plain_first(settings(section))) if section else [],
    )


def _plain_first(members: Sequence[Setting]) -> list[Setting]:
    """An item's own settings, then those of its sections."""
    return sorted(members, key=lambda setting: "." in setting.path)


def control_of(setting: Setting) -> Kind:
    """The kind of control for a setting's type."""
    types = _types(setting.annotation)
    if section_of(setting):
        return "list"
    if setting.choices or (bool in types and setting.nullable):
        return "choice"
    if types == {bool}:
        return "bool"
    if types and types <= {int, float}:
        return "number"
    return "text" if types and types <= {str, Path} else "json"


def section_of(setting: Setting) -> type[Section] | None:
    """The class of the items of a list of sections, or None."""
    return _item_section(setting.annotation)


def choices(setting: Setting) -> list[tuple[str, str]]:
    """Values of a select and their labels."""
    if control_of(setting) != "choice":
        return []
    labels = [_title(member) for member in setting.choices]
    found = [
        (_word(member), label if labels.count(label) == 1 else f"{label} ({_word(member)})")
        for member, label in zip(setting.choices, labels, strict=True)
    ] or [("true", "Yes"), ("false", "No")]
    return [("", "Not set"), *found] if setting.nullable else found


def rule(setting: Setting) -> str:
    """The bounds of a number in words."""
    low, high = setting.minimum, setting.maximum
    if (
        low is not None
        and high is not None
        and not (setting.exclusive_minimum or setting.exclusive_maximum)
    ):
        return f"{low:g} to {high:g}"
    parts = []
    if low is not None:
        parts.append(f"{'above' if setting.exclusive_minimum else 'at least'} {low:g}")
    if high is not None:
        parts.append(f"{'below' if setting.exclusive_maximum else 'at most'} {high:g}")
    return " and ".join(parts)


def shown(setting: Setting, value: Any) -> Any:
    """What the control of a setting holds for `value`."""
    kind = control_of(setting)
    if kind == "bool":
        return bool(value)
    if kind == "list":
        inner = settings(section_of(setting)) if value else ()
        return [{one.path: shown(one, item.get(one.path)) for one in inner} for item in value or ()]
    if value is None:
        return ""
    if kind == "json":
        return json.dumps(plain(value))
    return _word(value)


def in_words(value: Any) -> str:
    """A value for a person: in a hint, in a list of differences."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str) and not isinstance(value, Enum):
        return value or "empty"
    if isinstance(value, (tuple, list)) and any(isinstance(item, Section) for item in value):
        return f"{len(value)} item{'s' * (len(value) != 1)}"
    if isinstance(value, (tuple, list, Mapping)):
        return json.dumps(plain(value))
    return _word(value)


def words(name: str) -> str:
    """A name of code as words of a page: "learning_rate" is "Learning rate"."""
    parts = [SPELLING.get(part.lower(), part.lower()) for part in name.split("_") if part]
    text = " ".join(" ".join(parts).split())
    return text[:1].upper() + text[1:]


def model_title(name: object) -> str:
    """A model type in words for people; of a name that is none, its words."""
    known = {member.value: facts.title for member, facts in MODELS.items()}
    return known.get(str(name)) or words(str(name))


def _title(member: Enum) -> str:
    """A choice in words for people."""
    return MODELS[member].title if isinstance(member, ModelType) else words(_word(member))


def _word(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


def _types(annotation: Any) -> set[Any]:
    """The plain types that an annotation allows, None aside."""
    inner = get_args(annotation)
    if get_origin(annotation) in (tuple, list, dict) or not inner:
        return set() if annotation is type(None) else {annotation}
    return set().union(*map(_types, inner))


def _item_section(annotation: Any) -> type[Section] | None:
    for inner in get_args(annotation):
        if get_origin(annotation) in (tuple, list) and isinstance(inner, type):
            if issubclass(inner, Section):
                return inner
        elif (found := _item_section(inner)) is not None:
            return found
    return None
