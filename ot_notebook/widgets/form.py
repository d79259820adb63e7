"""The settings form without a screen: what it shows, what an edit does, undo.

It is made from the settings that a config class declares and knows none of their names.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.config import ConfigError, Problem, Setting, TrainConfig, settings, validate
from modules.config.section import Section, plain
from ot_notebook.widgets.form_rows import Group, control_of, in_words, rows, section_of, shown

SAME_EDIT_SECONDS = 1.5
"""Edits of one field within this time are one step of undo: a number is typed digit by digit."""

UNDO_STEPS = 200


@dataclass(frozen=True)
class Draft:
    """What was typed where it is not a value that the setting can take."""

    text: Any
    problem: Problem


@dataclass(frozen=True)
class Snapshot:
    """All that undo brings back."""

    config: TrainConfig
    """The last valid values."""
    start: TrainConfig
    """Values before any edit: those of the preset or file."""
    preset: str = ""
    """Name of the preset, or the path, that `start` came from; empty for values from code."""
    file: Path | None = None
    """Where `save` writes."""


class Form:
    """The settings being edited, safe to use from any thread.

    An edit that a setting cannot take stays as a draft, beside the last valid config, until it is
    mended, reset or undone.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.lock = threading.RLock()
        self.settings: tuple[Setting, ...] = settings(type(snapshot.config), collections=True)
        self._by_path = {setting.path: setting for setting in self.settings}
        self._now = snapshot
        self._drafts: dict[str, Draft] = {}
        self._undo: list[Snapshot] = []
        self._redo: list[Snapshot] = []
        self._last_edit = ("", 0.0)

    @property
    def now(self) -> Snapshot:
        """The current values and where they came from."""
        return self._now

    # edits -------------------------------------------------------------------------------------

    def edit(self, path: str, shown: Any) -> None:
        """Take what a control of the page holds for the setting at `path`, valid or not."""
        with self.lock:
            try:
                config = self._now.config.update(**{path: self._value(path, shown)})
                if following := self._following(path, config):
                    config = config.update(**following)
            except ConfigError as error:
                self._drafts[path] = Draft(shown, _first(error, path))
                return
            self._drafts.pop(path, None)
            self._go(replace(self._now, config=config), path)

    def reset(self, path: str | None = None) -> None:
        """Bring a setting back to what preset or file say; all settings without a path."""
        with self.lock:
            if path is None:
                self._drafts.clear()
                self._go(replace(self._now, config=self._now.start))
                return
            self._drop_drafts(path)
            self._set(path, self._now.start.get(path))

    def change_items(self, path: str, action: str, index: int) -> None:
        """Add, remove, copy or move an item of the list at `path`.

        Raises:
            ValueError: for another action.
        """
        with self.lock:
            items = list(self._now.config.get(path) or ())
            if action == "add":
                items.append({})
            elif not 0 <= index < len(items):
                return  # two pages pressed one button
            elif action == "remove":
                del items[index]
            elif action == "copy":
                items.insert(index + 1, items[index])
            elif action in ("up", "down"):
                to = index - 1 if action == "up" else index + 1
                if 0 <= to < len(items):
                    items[index], items[to] = items[to], items[index]
            else:
                raise ValueError(f"{action!r} is no action. Use add, remove, copy, up or down.")
            self._drop_drafts(path)
            self._set(path, items)

    def set(self, config: TrainConfig) -> None:
        """Take values that came from code. Drafts stay where these leave the setting alone."""
        with self.lock:
            old = self._now.config
            for path in [p for p in self._drafts if _get(old, p) != _get(config, p)]:
                del self._drafts[path]
            self._go(replace(self._now, config=config))

    def replace(self, snapshot: Snapshot) -> None:
        """Turn to other values as one step of undo; drafts belong to the old ones and go."""
        with self.lock:
            self._drafts.clear()
            self._go(snapshot)

    def saved(self, file: Path) -> None:
        """Note where the values were written. Nothing to undo."""
        with self.lock:
            self._now = replace(self._now, file=file)

    def undo(self) -> bool:
        """Go one step back; whether there was one. A draft is a step of its own."""
        with self.lock:
            if self._drafts:
                self._drafts.clear()
                return True
            return self._travel(self._undo, self._redo)

    def redo(self) -> bool:
        """Go forward again; whether there was a step."""
        with self.lock:
            return self._travel(self._redo, self._undo)

    def can(self) -> tuple[bool, bool]:
        """Whether there is something to undo, and to redo."""
        return bool(self._undo or self._drafts), bool(self._redo)

    # what the page shows -----------------------------------------------------------------------

    def groups(self) -> list[Group]:
        """Every setting by heading: fixed for a class of config."""
        found: dict[str, list[Setting]] = {}
        for setting in self.settings:
            found.setdefault(setting.group, []).append(setting)
        return [Group(name=name, rows=rows(members)) for name, members in found.items()]

    def offered(self) -> dict[str, list[str]]:
        """Names that the model type has, by the setting; it may hold others too."""
        config = self._now.config
        found = {setting.path: setting.offered(config) for setting in self.settings}
        return {path: list(names) for path, names in found.items() if names}

    def values(self) -> dict[str, Any]:
        """What each control holds; a draft where there is one."""
        with self.lock:
            config, drafts = self._now.config, dict(self._drafts)
        found = {s.path: shown(s, config.get(s.path)) for s in self.settings}
        for path, draft in drafts.items():
            _put(found, path, draft.text)
        return found

    def changed(self) -> dict[str, str]:
        """Settings that differ from preset or file, with the value there in words."""
        with self.lock:
            config, start = self._now.config, self._now.start
        return {s.path: in_words(theirs) for s, _, theirs in self._differences(config, start)}

    def visible(self) -> list[str]:
        """Settings that count for the family and method chosen, those of items of lists too."""
        config = self._now.config
        found = [setting for setting in self.settings if setting.applies_to(config)]
        return [s.path for s in found] + [
            f"{s.path}.{index}.{inner.path}"
            for s in found
            if (section := section_of(s)) is not None
            for index, item in enumerate(config.get(s.path) or ())
            for inner in settings(section)
            if inner.applies_to(item)
        ]

    def problems(self) -> list[Problem]:
        """Drafts first, then what is wrong between settings."""
        with self.lock:
            config, drafts = self._now.config, list(self._drafts.values())
        return [draft.problem for draft in drafts] + validate(config)

    def differences(self, other: TrainConfig) -> list[dict[str, str]]:
        """Settings that differ from `other`: name, both values in words."""
        return [
            {"path": s.path, "here": in_words(ours), "there": in_words(theirs)}
            for s, ours, theirs in self._differences(self._now.config, other)
        ]

    def changes(self, other: TrainConfig) -> dict[str, Any]:
        """Settings that differ from `other`, with their plain values: input of `update`."""
        found = self._differences(self._now.config, other)
        return {setting.path: _given(ours) for setting, ours, _ in found}

    # inside ------------------------------------------------------------------------------------

    def _differences(
        self, config: TrainConfig, other: TrainConfig
    ) -> Iterable[tuple[Setting, Any, Any]]:
        for setting in self.settings:
            ours, theirs = config.get(setting.path), other.get(setting.path)
            if ours != theirs:
                yield setting, ours, theirs

    def _value(self, path: str, value: Any) -> Any:
        """The plain value that a control's content stands for; conversion is the config's work."""
        setting = self._setting(path)
        kind = control_of(setting)
        if isinstance(value, str):
            value = value.strip() if kind == "number" else value
            if value == "" and setting.nullable:
                return None
            if kind == "json":
                try:
                    return json.loads(value)
                except ValueError as error:
                    raise ConfigError([_no_json(path, value, error)]) from None
        return value

    def _following(self, path: str, edited: TrainConfig) -> dict[str, Any]:
        """Settings beside an edited one that a section works out of it, and that nobody has set."""
        place, _, name = path.rpartition(".")
        inside = self._now.config.get(place) if place else None
        if not isinstance(inside, Section):
            return {}
        fields = type(inside).model_fields.items()
        worked_out = {n for n, f in fields if n != name and f.default_factory_takes_validated_data}
        if not worked_out:
            return {}
        given = [n for n, _ in fields if n not in worked_out]
        before, after = (
            type(inside)(**{n: plain(getattr(one, n)) for n in given})
            for one in (inside, edited.get(place))
        )
        free = [n for n in worked_out if getattr(inside, n) == getattr(before, n)]
        return {f"{place}.{n}": getattr(after, n) for n in free}

    def _setting(self, path: str) -> Setting:
        if path in self._by_path:
            return self._by_path[path]
        for outer, setting in self._by_path.items():  # "concepts.0.path" lies in "concepts"
            if path.startswith(f"{outer}.") and (section := section_of(setting)):
                inner = path.removeprefix(f"{outer}.").partition(".")[2]
                for one in settings(section):
                    if one.path == inner:
                        return one
        raise KeyError(f"{path!r} is no setting of {type(self._now.config).__name__}.")

    def _set(self, path: str, value: Any) -> None:
        self._go(replace(self._now, config=self._now.config.update(**{path: value})))

    def _go(self, snapshot: Snapshot, edited: str = "") -> None:
        if snapshot == self._now:
            return
        last, at = self._last_edit
        same = bool(edited) and edited == last and time.monotonic() - at < SAME_EDIT_SECONDS
        if not same:
            self._undo = [*self._undo[1 - UNDO_STEPS :], self._now]
        self._redo.clear()
        self._last_edit = (edited, time.monotonic())
        self._now = snapshot

    def _travel(self, source: list[Snapshot], target: list[Snapshot]) -> bool:
        if not source:
            return False
        target.append(self._now)
        self._now = source.pop()
        self._drafts.clear()
        self._last_edit = ("", 0.0)
        return True

    def _drop_drafts(self, path: str) -> None:
        for name in [n for n in self._drafts if n == path or n.startswith(f"{path}.")]:
            del self._drafts[name]


def _given(value: Any) -> Any:
    """A value as `update` takes it; of a section what is not its default."""
    if isinstance(value, Section):
        default, names = type(value)(), type(value).model_fields
        pairs = ((name, getattr(value, name), getattr(default, name)) for name in names)
        return {name: _given(ours) for name, ours, theirs in pairs if ours != theirs}
    return [_given(item) for item in value] if isinstance(value, tuple) else plain(value)


def _get(config: TrainConfig, path: str) -> Any:
    """The value at a path, None where an item of a list is gone."""
    try:
        return config.get(path)
    except ConfigError:
        return None


def _first(error: ConfigError, path: str) -> Problem:
    """The problem to show under the field that was edited."""
    return replace(error.problems[0], field=path)


def _no_json(path: str, text: str, error: ValueError) -> Problem:
    return Problem(path, "error", f"{text[:80]!r} is no JSON: {error}.", 'Write it as in ["a", 1].')


def _put(values: dict[str, Any], path: str, text: Any) -> None:
    """Put a draft over the value at `path`, also inside an item of a list."""
    if path in values:
        values[path] = text
        return
    for outer, items in values.items():
        if isinstance(items, list) and path.startswith(f"{outer}."):
            index, _, inner = path.removeprefix(f"{outer}.").partition(".")
            if int(index) < len(items):
                items[int(index)][inner] = text
