"""A row of names of which one is chosen: the parts of the studio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as W
import traitlets as t

from modules.training.events import Event
from ot_notebook.widgets.live import AdaptiveView, Front, Mode, esm


class TabsFront(Front):
    """Names, one of them open."""

    _esm = esm("tabs.js")

    tabs = t.List(help="[name, label] of each.").tag(sync=True)
    current = t.Unicode(help="Name of the one that is open.").tag(sync=True)


class TabBar(AdaptiveView):
    """Shows which part is open and reports which is asked for; `show` answers.

    Args:
        tabs: label of each part by its name, in order; the first is open.
        asked: called with a name.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.
    """

    def __init__(self, tabs: Mapping[str, str], asked: Callable[[str], None], mode: Mode) -> None:
        self._tabs, self._asked = dict(tabs), asked
        self._open = next(iter(tabs))
        self._unseen = False
        super().__init__(mode)
        self._use(self.mode)

    def show(self, name: str) -> None:
        """Mark a part as the one that is open."""
        with self._drawing:
            self._open, self._unseen = name, True
            self._draw(None)

    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        tabs = [list(pair) for pair in self._tabs.items()]
        self._front = TabsFront(tabs=tabs, layout=W.Layout(width="100%"))
        return self._front, [self._front]

    def _make_core(self) -> Sequence[W.Widget]:
        options = [(label, name) for name, label in self._tabs.items()]
        self._buttons = W.ToggleButtons(options=options, layout=W.Layout(width="100%"))
        self._buttons.style.button_width = "auto"
        self._buttons.add_class("ot-core-tabs")
        self._buttons.observe(self._on_button, "value")
        return [self._buttons]

    def _on_button(self, change: t.Bunch) -> None:
        if change.new != self._open:
            self._asked(change.new)

    def _draw(self, events: Sequence[Event] | None) -> None:  # noqa: ARG002 - all is drawn anew
        if self.mode == "rich":
            self._front.current = self._open
        elif self._buttons.value != self._open:
            self._buttons.value = self._open

    def _pull(self) -> None:
        """Send again what may have been lost on its way."""
        if self._unseen and self.mode == "rich":
            self._front.send_state(["current"])
        self._unseen = False

    def _on_request(self, content: dict[str, Any]) -> None:
        if content.get("op") == "open" and content.get("name") in self._tabs:
            self._asked(str(content["name"]))

    def story(self) -> str:
        """Nothing: what is open tells its own story."""
        return ""

    def plain(self) -> str:
        """The names, the open one in brackets."""
        names = (f"[{v}]" if k == self._open else v for k, v in self._tabs.items())
        return " ".join(names)
