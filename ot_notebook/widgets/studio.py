"""Everything on one page, in tabs: settings, the live run, its samples, and all around it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets as t

from ot_notebook.widgets import markup
from ot_notebook.widgets.dashboard import Dashboard
from ot_notebook.widgets.live import Mode
from ot_notebook.widgets.sample_gallery import SampleGallery
from ot_notebook.widgets.story import StoryBox
from ot_notebook.widgets.tab_bar import TabBar
from ot_notebook.widgets.view_state import Alert

if TYPE_CHECKING:
    from ot_notebook.services.trainer_service import TrainerService

TABS = {
    "dashboard": "Dashboard",
    "job": "New job",
    "training": "Training",
    "concepts": "Concepts",
    "sampling": "Sampling",
    "queue": "Queue",
    "inference": "Inference",
    "runs": "Runs",
}
"""Label of each part by its name."""


class Studio(StoryBox):
    """The parts of ot_notebook in tabs; each is made when it is first opened.

    The first tab has the settings beside the live run where there is room, above it where there is
    not, and then the samples. The other tabs have each part by itself, with all of the width.

    Attributes:
        job: the settings, a `JobConfig`.
        dashboard: the live run.
        gallery: its samples.
        parts: what the tabs hold that were made by opening them, by the name of the tab.

    Example:
        >>> studio = ot.studio("emoji LoRA")
        >>> studio.show("concepts")
    """

    tab = t.Enum(list(TABS), "dashboard", help="Name of the tab that is open.")

    def __init__(self, job: Any, service: TrainerService | None, mode: Mode) -> None:
        super().__init__()
        self.service = self.follow(service)
        self.job = job
        self.dashboard = Dashboard(self.service, job, mode=mode)
        self.gallery = SampleGallery(self.service, job, mode=mode)
        self.parts: dict[str, StoryBox] = {}
        self._mode: Mode = mode
        self._turning = threading.RLock()
        self._bar = TabBar(TABS, self.show, mode)
        # in boxes of their own, so that the same job can stand alone elsewhere
        self._borrowed = [_box(job, "1 1 400px")]
        self._overview = W.Box(
            [self._borrowed[0], _box(self.dashboard, "1.3 1 520px")],
            layout=W.Layout(display="flex", flex_flow="row wrap", width="100%"),
        )
        self._overview.add_class("ot-row")
        self._pages = {name: _page() for name in TABS}
        self._filled: set[str] = set()
        header = W.HTML(markup.header(), layout=W.Layout(width="auto", margin="0"))
        self.children = (header, self._bar, *self._pages.values())
        self.add_class("ot-studio")
        self._turn()

    def show(self, name: str) -> None:
        """Show a part by the name of its tab: "concepts", "queue" and so on, see `TABS`.

        Raises:
            TraitError: for another name.
        """
        self.tab = name

    @t.observe("tab")
    def _on_tab(self, _change: t.Bunch) -> None:
        self._turn()

    def _turn(self) -> None:
        """Fill the page that is open, if it is new, and hide the others."""
        with self._turning:
            page = self._pages[self.tab]
            if self.tab not in self._filled:
                try:
                    page.children = self._fill(self.tab)
                    self._filled.add(self.tab)
                except Exception as error:  # noqa: BLE001 - shown to the person who opened the tab
                    said = Alert(tone="bad", title=f"{TABS[self.tab]} cannot be shown", text="")
                    said["text"] = f"{type(error).__name__}: {error}"
                    page.children = (W.HTML(f'<div class="ot">{markup.alert(said)}</div>'),)
            for name, other in self._pages.items():
                # not display: none, in which a chart would be drawn anew at a width of nothing
                other.remove_class("ot-away") if name == self.tab else other.add_class("ot-away")
            self._bar.show(self.tab)

    def _fill(self, name: str) -> tuple[W.Widget, ...]:
        """What belongs on a page."""
        if name == "dashboard":
            return self._overview, self.gallery
        if name == "job":
            self._borrowed.append(_box(self.job))
            return (self._borrowed[-1],)
        if name == "training":
            return (_box(self.dashboard),)
        part = self.parts[name] = self._make(name)
        part.shown()
        return (part, _box(self.gallery)) if name == "sampling" else (part,)

    def _make(self, name: str) -> StoryBox:
        """A part that only its own tab shows; what it needs is loaded only now."""
        if name == "concepts":
            from ot_notebook.widgets.concept_editor import ConceptEditor

            return ConceptEditor(self.job, mode=self._mode)
        if name == "sampling":
            from ot_notebook.widgets.sample_definitions import SampleDefinitions

            return SampleDefinitions(self.job, self.service, mode=self._mode)
        if name == "queue":
            from ot_notebook.widgets.queue_panel import QueuePanel

            return QueuePanel(job=self.job, mode=self._mode)
        if name == "inference":
            from ot_notebook.widgets.inference_panel import InferencePanel

            return InferencePanel(mode=self._mode)
        from ot_notebook.widgets.run_compare import RunCompare

        return RunCompare(mode=self._mode)

    def shown(self) -> None:
        """Tell the parts."""
        for part in (self._bar, self.job, self.dashboard, self.gallery, *self.parts.values()):
            part.shown()

    def story(self) -> str:
        """Settings, run and samples as HTML."""
        return f"{self.job.story()}{self.dashboard.story()}{self.gallery.story()}"

    def plain(self) -> str:
        """Settings, run and samples as text."""
        return f"{self.job.plain()}\n{self.dashboard.plain()}\n{self.gallery.plain()}"

    def close(self) -> None:
        """Close the parts, each of which leaves the service, and then the page; the job stays."""
        for box in self._borrowed:
            box.children = ()
        for part in (self._bar, self.dashboard, self.gallery, *self.parts.values()):
            part.close()
        super().close()


def _page() -> W.Box:
    page = W.VBox(layout=W.Layout(width="100%", overflow="visible"))
    page.add_class("ot-page")
    return page


def _box(part: W.Widget, flex: str = "1 1 100%") -> W.Box:
    """A part in a box that gives it all of the width."""
    box = W.Box([part], layout=W.Layout(flex=flex, min_width="0", overflow="visible"))
    box.add_class("ot-column")
    return box


def studio(
    job: Any = None, *, service: TrainerService | None = None, mode: Mode = "auto"
) -> Studio:
    """Everything, composed in tabs: settings, the live run, its samples, and all around it.

    Args:
        job: a `JobConfig`, or what one is made of: a preset's name, a path, a `TrainConfig`.
        service: what to show; this kernel's trainer by default.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.
    """
    from ot_notebook.widgets.job_config import JobConfig

    if not isinstance(job, JobConfig):
        job = JobConfig(mode=mode) if job is None else JobConfig(job, mode=mode)
    return Studio(job, service, mode)
