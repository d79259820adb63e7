"""A widget that also tells its story where no kernel runs: in a saved notebook, on GitHub."""

from __future__ import annotations

import secrets
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as W
from IPython.display import publish_display_data
from traitlets import MetaHasTraits

from modules.training.events import ENDED, Event, TrainingState
from ot_notebook.widgets import markup

if TYPE_CHECKING:
    from ot_notebook.services.trainer_service import TrainerService

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"

RENEWED_DISPLAYS = 8
"""Places of one widget whose saved output is renewed; older ones were mostly run over."""


class _AbstractWidget(ABCMeta, MetaHasTraits):
    """Widgets with abstract methods."""


class StoryBox(W.VBox, metaclass=_AbstractWidget):
    """A box whose saved output says what it showed."""

    # on the class: a constructor that refuses its arguments is followed by `close` all the same
    _unsubscribe: Callable[[], None] | None = None

    def __init__(self) -> None:
        self._displays: list[str] = []
        super().__init__()
        self.add_class("ot")
        self.layout.width = "100%"

    @abstractmethod
    def story(self) -> str:
        """The widget as HTML that needs no kernel; the style sheet comes with the bundle."""

    @abstractmethod
    def plain(self) -> str:
        """The widget as text."""

    def shown(self) -> None:
        """The widget is being put on a page. Display tells it; a box around it must, too."""

    def renew(self) -> None:
        """Bring the output that a notebook saves up to date, wherever the widget is displayed."""
        for name in self._displays:
            self._publish(name, update=True)

    def follow(self, service: TrainerService | None) -> TrainerService:
        """Hear a service's events from now on; without one, those of this kernel's trainer."""
        if service is None:
            from ot_notebook.services.trainer_service import trainer

            service = trainer()
        self._unsubscribe = service.subscribe(self._on_events)
        return service

    def _on_events(self, events: Sequence[Event]) -> None:
        if any(isinstance(event, TrainingState) and event.state in ENDED for event in events):
            self.renew()

    def _publish(self, name: str, update: bool) -> None:
        data, metadata = self._repr_mimebundle_()
        publish_display_data(data, metadata, transient={"display_id": name}, update=update)

    def _repr_mimebundle_(self, **_kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        html = f'{markup.style()}<div class="ot ot-card">{self.story()}</div>'
        return {"text/plain": self.plain(), "text/html": html, WIDGET_MIME: view}, {}

    def _ipython_display_(self, **_kwargs: Any) -> None:
        """Display under a name, by which the output is renewed later."""
        name = secrets.token_hex(8)
        self._displays = [*self._displays[1 - RENEWED_DISPLAYS :], name]
        self._publish(name, update=False)
        self.shown()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.plain().splitlines()[0]}>"

    def close(self) -> None:
        """Leave the service, and free everything on the page, also what the box holds."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        self._displays = []
        for child in self.children:
            close_tree(child)
        super().close()


def close_tree(widget: W.Widget) -> None:
    """Close a widget and all that it contains."""
    for child in getattr(widget, "children", ()):
        close_tree(child)
    widget.close()
