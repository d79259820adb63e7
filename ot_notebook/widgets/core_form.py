"""The settings form of core widgets, for front ends that load no modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from html import escape
from typing import Any

import ipywidgets as W

from ot_notebook.widgets import markup
from ot_notebook.widgets.core_list import ItemHead, ListHead, Request
from ot_notebook.widgets.form import Form
from ot_notebook.widgets.form_rows import Group, Row

FOUND_ROWS = 40
"""Rows that a search shows; each is made of several widgets."""

HINT = "tooltip" if W.Text.class_traits().get("tooltip") else "description_tooltip"
"""What a control calls the text that appears over it: ipywidgets 8 and 7 differ."""


class CoreForm:
    """The basic settings, and by search any other. Rows are made when they are first shown.

    Args:
        form: the settings.
        presets: their names by family.
        request: receives edits, as the form's module sends them.
    """

    def __init__(self, form: Form, presets: Mapping[str, Sequence[str]], request: Request) -> None:
        self._form, self._request = form, request
        self._groups: list[Group] = form.groups()
        self._loading = False
        self._lines: dict[str, Line] = {}
        self._lists: dict[str, ListHead] = {}
        self._items: dict[str, ItemHead] = {}
        self._problems: Sequence[Mapping[str, str]] = ()
        names = [name for of in presets.values() for name in of]
        self._preset = W.Dropdown(
            options=[("Choose a preset", ""), *((name, name) for name in names)],
            description="Preset",
            layout=W.Layout(width="auto", flex="1 1 240px"),
        )
        self._preset.observe(self._choose, "value")
        self._undo, self._redo = self._button("Undo", "undo"), self._button("Redo", "redo")
        self._search = W.Text(
            placeholder="Search all settings",
            description="Search",
            layout=W.Layout(width="auto", flex="1 1 240px"),
        )
        self._search.observe(lambda _change: self._show_rows(), "value")
        self._path = W.Text(
            placeholder="config.json", description="File", layout=W.Layout(flex="1 1 240px")
        )
        self._save = W.Button(description="Save", layout=W.Layout(width="auto"))
        self._save.on_click(lambda _b: request({"op": "save", "path": self._path.value}))
        self._load = W.Button(description="Load", layout=W.Layout(width="auto"))
        self._load.on_click(lambda _b: request({"op": "load", "source": self._path.value}))
        self._notice = W.HTML(layout=W.Layout(width="100%"))
        self._body = W.VBox(layout=W.Layout(width="100%", height="460px", overflow="auto"))
        heading = W.HTML(
            f'{markup.style("ot.css", "form.css")}<div class="ot ot-title"><h3>Settings</h3></div>'
        )
        self.children = [
            heading,
            _wrapped(self._preset, self._undo, self._redo),
            _wrapped(self._search),
            self._notice,
            self._body,
            _wrapped(self._path, self._load, self._save),
        ]

    def draw(self, problems: Sequence[Mapping[str, str]], head: Mapping[str, Any]) -> None:
        """Bring every widget up to date."""
        self._loading = True
        try:
            names = [value for _, value in self._preset.options]
            self._preset.value = head["preset"] if head["preset"] in names else ""
            self._undo.disabled, self._redo.disabled = not head["undo"], not head["redo"]
            if head["file"]:
                self._path.value = head["file"]
            self._notice.value = _notice(head["notice"], problems)
        finally:
            self._loading = False
        self._problems = problems
        self._show_rows()

    def _show_rows(self) -> None:
        """Show the rows that are searched for, or the basic ones, with what they hold now."""
        values, changed = self._form.values(), self._form.changed()
        texts = {problem["path"]: problem["text"] for problem in self._problems}
        self._list(values)
        self._loading = True
        try:
            for path, line in self._lines.items():
                line.draw(_value_at(values, path), changed.get(path), texts.get(path, ""))
            for path, head in self._lists.items():
                head.draw(changed.get(path), texts.get(path, ""))
            for path, item in self._items.items():
                outer, _, index = path.rpartition(".")
                if int(index) < len(values[outer]):
                    item.draw(values[outer][int(index)])
        finally:
            self._loading = False

    def _list(self, values: Mapping[str, Any]) -> None:
        visible, asked = set(self._form.visible()), self._search.value.lower().split()
        children: list[W.Widget] = []
        for group in self._groups:
            found = [row for row in group["rows"] if row["path"] in visible and _fits(row, asked)]
            lines = [line for row in found for line in self._row(row, values, visible, asked)]
            if lines and (not asked or len(children) < FOUND_ROWS):
                children.append(_heading(group["name"]))
                children += lines
        for title in self._body.children:
            if isinstance(title, W.HTML):
                title.close()
        self._body.children = children

    def _row(
        self, row: Row, values: Mapping[str, Any], visible: Set[str], asked: Sequence[str]
    ) -> list[W.Widget]:
        """A setting; of a list its head, and each item with its basic settings and those found."""
        name = row["path"]
        if row["kind"] != "list":
            return [self._line(row)]
        if name not in self._lists:
            self._lists[name] = ListHead(row, self._edited)
        lines: list[W.Widget] = [self._lists[name].box]
        for index in range(len(values[name])):
            place = f"{name}.{index}"
            if place not in self._items:
                self._items[place] = ItemHead(row, index, self._edited)
            lines.append(self._items[place].box)
            for inner in row["items"]:
                path = f"{place}.{inner['path']}"
                if path in visible and (_fits(inner, ()) or (asked and _fits(inner, asked))):
                    label = f"{index + 1}. {inner['label']}"
                    lines.append(self._line({**inner, "path": path, "label": label}))
        return lines

    def _line(self, row: Row) -> W.Widget:
        path = row["path"]
        if path not in self._lines:
            self._lines[path] = Line(row, self._edited)
        return self._lines[path].box

    def _edited(self, content: Mapping[str, Any]) -> None:
        if not self._loading:
            self._request(content)

    def _choose(self, change: Any) -> None:
        if change.new and not self._loading:
            self._request({"op": "load", "source": change.new})

    def _button(self, label: str, op: str) -> W.Button:
        button = W.Button(description=label, layout=W.Layout(width="auto"))
        button.on_click(lambda _button: self._request({"op": op}))
        return button


class Line:
    """One setting: its control, a reset, and what is wrong with it."""

    def __init__(self, row: Row, edited: Request) -> None:
        self._row = row
        self._control = _control(row)
        self._control.observe(
            lambda change: edited({"op": "edit", "path": row["path"], "value": change.new}), "value"
        )
        self._reset = W.Button(
            description="Reset", layout=W.Layout(width="auto", visibility="hidden")
        )
        self._reset.on_click(lambda _button: edited({"op": "reset", "path": row["path"]}))
        self._words = W.HTML(layout=W.Layout(width="100%"))
        self.box = W.VBox(
            [_wrapped(self._control, self._reset), self._words],
            layout=W.Layout(width="100%", flex="0 0 auto"),
        )

    def draw(self, value: Any, there: str | None, problem: str) -> None:
        """Show a value, what a reset would bring (None for nothing), and what is wrong."""
        if value is not None and self._control.value != value:
            self._control.value = value
        self._reset.layout.visibility = "hidden" if there is None else "visible"
        self._reset.tooltip = f"Back to {there}"
        text = f'<span class="ot-field-error" role="alert">{escape(problem)}</span>'
        self._words.value = f'<div class="ot">{text}</div>' if problem else ""


def _control(row: Row) -> W.Widget:
    label = row["label"] + (f" ({row['unit']})" if row["unit"] else "")
    common = {
        "description": label,
        HINT: row["help"],
        "style": {"description_width": "200px"},
        "layout": W.Layout(width="auto", flex="1 1 320px", min_width="0"),
    }
    if row["kind"] == "bool":
        return W.Checkbox(**{**common, "indent": True})
    if row["kind"] == "choice":
        options = [(name, value) for value, name in row["choices"]]
        return W.Dropdown(options=options, **common)
    kind = W.Textarea if row["kind"] == "json" else W.Text
    return kind(continuous_update=False, **common)


def _heading(name: str) -> W.HTML:
    text = f'<div class="ot ot-title"><h3>{escape(name)}</h3></div>'
    return W.HTML(text, layout=W.Layout(flex="0 0 auto"))


def _wrapped(*children: W.Widget) -> W.Box:
    layout = W.Layout(display="flex", flex_flow="row wrap", width="100%")
    return W.Box(list(children), layout=layout)


def _fits(row: Row, asked: Sequence[str]) -> bool:
    if not asked:
        return row["level"] == "basic"
    text = f"{row['label']} {row['path']} {row['help']}".lower()
    return all(word in text for word in asked) or any(_fits(one, asked) for one in row["items"])


def _value_at(values: Mapping[str, Any], path: str) -> Any:
    """What a row holds, also inside an item of a list; None for an item that is gone."""
    if path in values:
        return values[path]
    for outer, items in values.items():
        if isinstance(items, list) and path.startswith(f"{outer}."):
            index, _, inner = path.removeprefix(f"{outer}.").partition(".")
            return items[int(index)].get(inner) if int(index) < len(items) else None
    return None


def _notice(notice: Mapping[str, str] | None, problems: Sequence[Mapping[str, str]]) -> str:
    lines = [(notice["tone"], notice["text"])] if notice else []
    tones = {"error": "bad", "warning": "hold"}
    lines += [(tones[p["severity"]], f"{p['path']}: {p['text']}") for p in problems]
    return "".join(
        f'<div class="ot ot-tone-{tone}"><div class="ot-alert">{escape(text)}</div></div>'
        for tone, text in lines
    )
