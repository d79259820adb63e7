"""The settings for people and programs: a page of docs, help on a terminal, a JSON schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

from modules.config.describe import Setting, settings
from modules.config.enums import ModelType, TrainingMethod
from modules.config.models import MODELS
from modules.config.section import Section, plain
from modules.config.supported import HONOURED

_APPLIES = {"now": "at once", "epoch": "at the next epoch", "restart": "at the next start"}


def options_markdown(cls: type[Section], title: str, level: int = 1) -> str:
    """A page with a table of settings under each heading."""
    lines = [f"{'#' * level} {title}", ""]
    for group, members in _grouped(settings(cls, collections=True)):
        lines += [
            f"{'#' * (level + 1)} {group}",
            "",
            "| setting | type | default | what it does | counts for | a change takes effect |",
            "|---|---|---|---|---|---|",
            *(_row(setting) for setting in members),
            "",
        ]
    return "\n".join(lines)


def options_text(cls: type[Section], words: Iterable[str] = ()) -> str:
    """Help on the settings whose name or description has every word; on all without words."""
    wanted = [word.casefold() for word in words]
    found = []
    for setting in settings(cls, collections=True):
        text = f"{setting.path} {setting.help} {setting.group}".casefold()
        if all(word in text for word in wanted):
            facts = [_kind(setting), f"default {_default(setting)}", *_conditions(setting)]
            found.append(f"{setting.path}  ({'; '.join(facts)})\n    {setting.help}")
    return "\n".join(found)


def models_markdown() -> str:
    """A table of every model type: how it trains, and the files that it is written as."""
    rows: dict[tuple[str, ...], list[ModelType]] = {}
    for kind, facts in MODELS.items():
        if kind in HONOURED["model_type"]:
            methods = [m.value for m in facts.methods if m in HONOURED["training_method"]]
            formats = [f.value for f in facts.formats if f in HONOURED["output_model_format"]]
            adapters = [name.removesuffix("_LORA") for name in formats if name.endswith("_LORA")]
            whole = [name for name in formats if not name.endswith("_LORA")]
            cells = tuple(", ".join(words) for words in (methods, adapters, whole))
            rows.setdefault(cells, []).append(kind)
    return "\n".join(
        [
            "| model types | methods | adapters (`…_LORA`) | embeddings and whole models |",
            "|---|---|---|---|",
            *(
                f"| {', '.join(kind.value for kind in kinds)} | {' | '.join(cells)} |"
                for cells, kinds in rows.items()
            ),
        ]
    )


def schema(cls: type[Section]) -> dict[str, Any]:
    """A JSON schema of the file: what editors complete and check it by."""
    made = cls.model_json_schema()
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    _annotate(made, made, cls)
    for setting in settings(cls, collections=True):
        for item in get_args(setting.annotation):
            if isinstance(item, type) and issubclass(item, Section):
                _annotate(made, made["$defs"][item.__name__], item)
    return made


def _annotate(made: dict[str, Any], here: dict[str, Any], cls: type[Section]) -> None:
    """Add to a section's schema what pydantic cannot know or does not say."""
    for setting in settings(cls, collections=True):
        place = _place(made, here, setting.path.split("."))
        place["x-level"], place["x-applies"] = setting.level, setting.applies
        if not setting.default_text:
            place["default"] = plain(setting.default)
        if setting.unit:
            place["x-unit"] = setting.unit
        if setting.minimum is not None:
            place["exclusiveMinimum" if setting.exclusive_minimum else "minimum"] = setting.minimum
        if setting.maximum is not None:
            place["exclusiveMaximum" if setting.exclusive_maximum else "maximum"] = setting.maximum


def _place(made: dict[str, Any], here: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The schema of one setting; a section is written out where it stands, as defaults differ."""
    for key in keys[:-1]:
        section: dict[str, Any] = here["properties"][key]
        if "properties" not in section:
            shared = made["$defs"][section.pop("$ref").rpartition("/")[2]]
            section.pop("default", None)
            section["type"] = "object"
            section["properties"] = {
                name: dict(value) for name, value in shared["properties"].items()
            }
        here = section
    place: dict[str, Any] = here["properties"][keys[-1]]
    return place


def _grouped(found: Iterable[Setting]) -> Iterator[tuple[str, list[Setting]]]:
    groups: dict[str, list[Setting]] = {}
    for setting in found:
        groups.setdefault(setting.group, []).append(setting)
    yield from groups.items()


def _row(setting: Setting) -> str:
    cells = (
        f"`{setting.path}`",
        _kind(setting),
        _default(setting, code=True),
        setting.help,
        "; ".join(_conditions(setting)),
        _APPLIES[setting.applies],
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _kind(setting: Setting) -> str:
    if setting.choices:
        kind = f"one of {', '.join(str(choice) for choice in setting.choices)}"
    else:
        kind = {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(
            setting.annotation, "list or object"
        )
    bounds = []
    if setting.minimum is not None:
        bounds.append(f"{'above' if setting.exclusive_minimum else 'from'} {setting.minimum:g}")
    if setting.maximum is not None:
        bounds.append(f"{'below' if setting.exclusive_maximum else 'to'} {setting.maximum:g}")
    parts = [" ".join([kind, *bounds]), setting.unit, "or empty" if setting.nullable else ""]
    return ", ".join(part for part in parts if part)


def _default(setting: Setting, code: bool = False) -> str:
    if setting.default_text:
        return setting.default_text
    value = plain(setting.default)
    if value is None or value in ("", [], {}):
        return "empty"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if code else text


def _conditions(setting: Setting) -> list[str]:
    """For which models, methods and other settings it counts; nothing if for all."""
    found = []
    if setting.families is not None and len(setting.families) < len(ModelType):
        found.append(_listed(setting.families, ModelType))
    if setting.methods is not None:
        found.append(_listed(setting.methods, TrainingMethod))
    for name, values in setting.when.items():
        words = " or ".join(
            str(plain(value)).lower() if value is True else str(value) for value in values
        )
        found.append(f"{name} is {words}" if len(values) < 12 else f"{name} uses it")
    return found


def _listed(members: Iterable[Any], everything: Iterable[Any]) -> str:
    """Names in their usual order; what all but a few have is said by those few."""
    chosen = set(members)
    names = [member.value for member in everything if member in chosen]
    rest = [member.value for member in everything if member not in chosen]
    return f"all but {', '.join(rest)}" if len(rest) < 4 < len(names) else ", ".join(names)
