"""Everything on one page: settings, the live run, its samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets as W

from ot_notebook.widgets import markup
from ot_notebook.widgets.dashboard import Dashboard
from ot_notebook.widgets.live import Mode
from ot_notebook.widgets.sample_gallery import SampleGallery
from ot_notebook.widgets.story import StoryBox

if TYPE_CHECKING:
    from ot_notebook.services.trainer_service import TrainerService


class Studio(StoryBox):
    """Settings beside the live run where there is room, above it where there is not; then samples.

    Attributes:
        job: the settings, a `JobConfig`.
        dashboard: the live run.
        gallery: its samples.
    """

    def __init__(self, job: Any, service: TrainerService | None, mode: Mode) -> None:
        super().__init__()
        self.service = self.follow(service)
        self.job = job
        self.dashboard = Dashboard(self.service, job, mode=mode)
        self.gallery = SampleGallery(self.service, mode=mode)
        # in boxes of their own, so that the same job can stand alone elsewhere
        self._beside = _column(job, "1 1 400px")
        row = W.Box(
            [self._beside, _column(self.dashboard, "1.3 1 520px")],
            layout=W.Layout(display="flex", flex_flow="row wrap", width="100%"),
        )
        row.add_class("ot-row")
        header = W.HTML(markup.header(), layout=W.Layout(width="auto", margin="0"))
        self.children = (header, row, self.gallery)
        self.add_class("ot-studio")

    def shown(self) -> None:
        """Tell the parts."""
        self.job.shown()
        self.dashboard.shown()
        self.gallery.shown()

    def story(self) -> str:
        """Settings, run and samples as HTML."""
        return f"{self.job.story()}{self.dashboard.story()}{self.gallery.story()}"

    def plain(self) -> str:
        """Settings, run and samples as text."""
        return f"{self.job.plain()}\n{self.dashboard.plain()}\n{self.gallery.plain()}"

    def close(self) -> None:
        """Close the parts, each of which leaves the service, and then the page; the job stays."""
        self._beside.children = ()
        self.dashboard.close()
        self.gallery.close()
        super().close()


def _column(part: W.Widget, flex: str) -> W.Box:
    box = W.Box([part], layout=W.Layout(flex=flex, min_width="0", overflow="visible"))
    box.add_class("ot-column")
    return box


def studio(
    job: Any = None, *, service: TrainerService | None = None, mode: Mode = "auto"
) -> Studio:
    """Everything, composed: settings, the live run and its samples.

    Args:
        job: a `JobConfig`, or what one is made of: a preset's name, a path, a `TrainConfig`.
        service: what to show; this kernel's trainer by default.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.
    """
    from ot_notebook.widgets.job_config import JobConfig

    if not isinstance(job, JobConfig):
        job = JobConfig(mode=mode) if job is None else JobConfig(job, mode=mode)
    return Studio(job, service, mode)
