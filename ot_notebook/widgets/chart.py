"""The live loss curve."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import bqplot
import ipywidgets as W
import numpy as np

from ot_notebook.services import curve
from ot_notebook.widgets import markup
from ot_notebook.widgets.view_state import curve_caption

if TYPE_CHECKING:
    from ot_notebook.services.trainer_service import TrainerService

MAX_POINTS = 2000
"""Points of a line; more would be sent whole each time, and freeze the page at 100,000."""

MIN_SECONDS = 1.0
"""Shortest time between two drawings: each is eight messages, and takes the trainer's time."""


class LossChart(W.VBox):
    """Loss of each step, faint, and smoothed, over the optimizer step; with a caption in words."""

    def __init__(self, service: TrainerService) -> None:
        self._service = service
        self._drawn_at = 0.0
        self._late = False
        self._shown = False
        scales = {"x": bqplot.LinearScale(), "y": bqplot.LinearScale()}
        self._raw = bqplot.Lines(
            x=[], y=[], scales=scales, colors=[curve.COLOUR], opacities=[0.38], stroke_width=1
        )
        self._smooth = bqplot.Lines(
            x=[], y=[], scales=scales, colors=[curve.COLOUR], stroke_width=2
        )
        self._across = bqplot.Axis(scale=scales["x"], grid_lines="none", tick_format="~g")
        self._up = bqplot.Axis(scale=scales["y"], side="left", tick_format="~g")
        if self._up.has_trait("orientation"):  # bqplot 0.12
            self._up.orientation = "vertical"
        self._figure = bqplot.Figure(
            marks=[self._raw, self._smooth],
            axes=[self._across, self._up],
            fig_margin={"top": 10, "bottom": 26, "left": 52, "right": 12},
            padding_y=0.05,
            padding_x=0.0,
            background_style={"fill": "transparent"},
            layout=W.Layout(width="100%", height=f"{curve.HEIGHT}px", min_width="0"),
        )
        if self._figure.has_trait("display_toolbar"):
            self._figure.display_toolbar = False
        self._figure.add_class("ot-chart")
        self._empty = W.HTML(
            markup.no_curve(curve.HEIGHT),
            layout=W.Layout(width="100%"),
        )
        self._caption = W.HTML(layout=W.Layout(width="100%"))
        self._title = W.HTML(markup.curve_title(), layout=W.Layout(width="100%"))
        super().__init__([self._title, self._empty, self._caption])

    def draw(self, final: bool) -> None:
        """Follow the service, once a second at most; `final` is drawn in any case."""
        now = time.monotonic()
        if not final and now - self._drawn_at < MIN_SECONDS:
            self._late = True
            return
        self._drawn_at, self._late = now, False
        raw = self._service.history.points("loss", MAX_POINTS)
        smooth = self._service.history.points("smooth_loss", MAX_POINTS)
        for line, (steps, values) in ((self._raw, raw), (self._smooth, smooth)):
            with line.hold_sync():  # x and y travel in one message, or lengths would differ
                line.x = np.asarray(steps, float)
                line.y = np.asarray(values, float)
        self._fit(curve.finite(*raw))
        text = curve_caption(self._service)
        self._caption.value = markup.caption(text)
        if bool(len(raw[0])) != self._shown:
            self._shown = not self._shown
            body = self._figure if self._shown else self._empty
            self.children = (self._title, body, self._caption)

    def _fit(self, points: Sequence[curve.Point]) -> None:
        """Round ticks, which bqplot would put at whatever the ends of the data are."""
        if not points:
            return
        for axis, values, about in (
            (self._across, [x for x, _ in points], 8),
            (self._up, [y for _, y in points], 5),
        ):
            low, high = curve.limits(values)
            with axis.scale.hold_sync():
                axis.scale.min, axis.scale.max = low, high
            ticks = np.asarray(curve.ticks(low, high, about))
            if not np.array_equal(axis.tick_values, ticks):  # equal arrays would travel again
                axis.tick_values = ticks

    @property
    def late(self) -> bool:
        """Whether a drawing was put off."""
        return self._late
