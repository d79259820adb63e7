"""Views that are one description: a pure function gives it, a module or core widgets draw it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as W
import traitlets as t

from modules.training.events import Event
from ot_notebook.widgets import markup
from ot_notebook.widgets.live import AdaptiveView, Front, Mode
from ot_notebook.widgets.texts import brief as brief
from ot_notebook.widgets.view_state import Alert

REFUSALS = (ValueError, RuntimeError, OSError, KeyError)
"""What services raise to say no: `ConfigError`, `QueueError`, `CommandRefused` and `StoreError`."""


class DescribedFront(Front):
    """A module that draws `view` and reports what is pressed."""

    _css = markup.css("ot.css", "form.css", "views.css")

    view = t.Dict(help="All that is drawn.").tag(sync=True)


class DescribedView(AdaptiveView):
    """A view whose whole state is one description, made anew for each drawing.

    A subclass gives `_describe`, `_serve` and `_make_core`; what `_serve` refuses is shown on top.

    Args:
        mode: "auto", "rich" or "core"; see `AdaptiveView`.
    """

    front: type[DescribedFront]
    """The module that draws it."""

    def __init__(self, mode: Mode) -> None:
        self._alert: Alert | None = None
        self._unseen = False
        super().__init__(mode)
        self.add_class("ot-card")

    @abstractmethod
    def _describe(self) -> Mapping[str, Any]:
        """What is drawn now; JSON, but for pictures, which are bytes."""

    @abstractmethod
    def _serve(self, content: Mapping[str, Any]) -> None:
        """Do what a message of the page asks for."""

    @abstractmethod
    def _draw_core(self, view: Mapping[str, Any]) -> None:
        """Bring the core widgets up to date."""

    def do(self, op: str, /, **given: Any) -> None:
        """What a control of the page does. A refusal is shown on the page, not raised."""
        alert = None
        try:  # without our lock: a service that holds its own may be waiting to tell us something
            self._serve({"op": op, **given})
        except REFUSALS as error:
            text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            alert = Alert(tone="hold", title="That is not possible", text=brief(text))
        with self._drawing:
            self._alert = alert
            self._draw_if_made()
            self._unseen = False  # an answer passes where unasked messages are dropped

    def refresh(self) -> None:
        """Draw what is now."""
        with self._drawing:
            self._draw_if_made()

    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        self._front = self.front(layout=W.Layout(width="100%"))
        return self._front, [self._front]

    def _draw_if_made(self) -> None:
        if self._made and not self._asleep:
            self._draw(None)

    def _draw(self, events: Sequence[Event] | None) -> None:  # noqa: ARG002 - all is drawn anew
        view = dict(self._describe())
        if self.mode == "core":
            self._draw_core(view)
        elif view != self._front.view:
            self._front.view = view
            self._unseen = True

    def _pull(self) -> None:
        """Draw what is new, and repeat what may have been lost: Colab drops unasked messages."""
        repeat = self._unseen
        self.refresh()
        if self.mode == "rich" and repeat:
            self._front.send_state(["view"])
        self._unseen = False

    def _on_request(self, content: dict[str, Any]) -> None:
        given = {name: value for name, value in content.items() if name != "op"}
        self.do(str(content.get("op")), **given)


def row_of(*widgets: W.Widget) -> W.Box:
    """Core widgets side by side, wrapped where there is no room."""
    layout = W.Layout(
        display="flex",
        flex_flow="row wrap",
        width="100%",
        align_items="center",
        grid_gap="6px",
        margin="3px 0",
    )
    return W.Box(list(widgets), layout=layout)


def core_button(label: str, hint: str, action: Any, style: str = "") -> W.Button:
    """A button of core widgets that calls `action`."""
    made = W.Button(
        description=label, tooltip=hint, button_style=style, layout=W.Layout(width="auto")
    )
    made.on_click(lambda _button: action())
    return made
