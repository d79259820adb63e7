"""A list of settings in core widgets, such as samples or embeddings: its head, and its items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets as W

from ot_notebook.widgets.described import core_button, row_of
from ot_notebook.widgets.form_rows import Row
from ot_notebook.widgets.texts import brief

Request = Callable[[Mapping[str, Any]], None]

TOOLS = {"up": "Up", "down": "Down", "copy": "Copy", "remove": "Remove"}
"""What can be done with an item; `Form.change_items` does it."""


class ListHead:
    """Name of a list, and buttons that add an item and bring all back to the preset's.

    Args:
        row: the list.
        request: receives what is pressed.
    """

    def __init__(self, row: Row, request: Request) -> None:
        self._row = row
        self._words = W.HTML(layout=W.Layout(flex="1 1 120px", width="auto"))
        act = {"op": "items", "path": row["path"], "action": "add", "index": 0}
        label = f"Add to {row['label'].lower()}"
        self.add = core_button(label, row["help"], lambda: request(act))
        self.reset = core_button("Reset", "", lambda: request({"op": "reset", "path": row["path"]}))
        self.box = row_of(self._words, self.add, self.reset)
        self.box.layout.flex = "0 0 auto"

    def draw(self, there: str | None, problem: str) -> None:
        """Show what a reset would bring (None for nothing), and what is wrong."""
        wrong = f'<div class="ot-field-error" role="alert">{escape(problem)}</div>'
        self._words.value = (
            f'<div class="ot"><b>{escape(self._row["label"])}</b>{wrong if problem else ""}</div>'
        )
        self.reset.layout.display = "none" if there is None else ""
        self.reset.tooltip = f"Back to {there}"


class ItemHead:
    """Number and name of an item, and its tools.

    Args:
        row: the list.
        index: place of the item.
        request: receives what is pressed.
    """

    def __init__(self, row: Row, index: int, request: Request) -> None:
        self._row, self._index = row, index
        self._words = W.HTML(layout=W.Layout(flex="1 1 120px", width="auto"))

        def button(action: str, label: str) -> W.Button:
            act = {"op": "items", "path": row["path"], "action": action, "index": index}
            return core_button(label, f"{label}: {index + 1}", lambda: request(act))

        self.tools = {action: button(action, label) for action, label in TOOLS.items()}
        self.box = row_of(self._words, *self.tools.values())
        self.box.layout.flex = "0 0 auto"

    def draw(self, values: Mapping[str, Any]) -> None:
        """Show the item's name: the first of its basic texts that says something."""
        texts = (r for r in self._row["items"] if r["kind"] == "text" and r["level"] == "basic")
        name = next((values[row["path"]] for row in texts if values[row["path"]]), "new")
        words = f"{self._index + 1}. {brief(name, 60)}"
        self._words.value = f'<div class="ot"><b>{escape(words)}</b></div>'
