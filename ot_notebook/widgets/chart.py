"""The live chart of the dashboard: curves over optimizer steps, with what happened beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import numpy as np
import traitlets as t

from ot_notebook.services import curve
from ot_notebook.widgets import markup
from ot_notebook.widgets.chart_view import (
    RANGES,
    SERIES,
    ChartChoice,
    Line,
    lines,
    marks,
    tools_view,
)
from ot_notebook.widgets.live import Front, esm
from ot_notebook.widgets.overlay import COLOURS
from ot_notebook.widgets.story import close_tree

if TYPE_CHECKING:
    import bqplot

    from ot_notebook.services.trainer_service import TrainerService

MAX_POINTS = 2000
"""Points of a line; more would be sent whole each time, and freeze the page at 100,000."""

MIN_SECONDS = 1.0
"""Shortest time between two drawings: each is a few messages, and takes the trainer's time."""


class ChartTools(Front):
    """What is drawn, in words and colours, and the controls that change it."""

    _esm = esm("chart_tools.js")
    _css = markup.css("ot.css", "form.css", "chart.css")

    view = t.Dict(help="A `ToolsView`.").tag(sync=True)


class LossChart(W.VBox):
    """Curves of the run and of others, over the optimizer step.

    Args:
        service: whose run is shown.
    """

    def __init__(self, service: TrainerService) -> None:
        self._service = service
        self.choice = ChartChoice()
        self._drawn_at = 0.0
        self._late = False
        self._shape: Any = None
        self._lines: list[bqplot.Lines] = []
        self._figure: bqplot.Figure | None = None
        wide = {"layout": W.Layout(width="100%")}
        self.tools = ChartTools(**wide)
        self._empty = W.HTML(markup.no_curve(curve.HEIGHT), **wide)
        super().__init__([self.tools, self._empty], **wide)

    def choose(self, content: Mapping[str, Any]) -> None:
        """What a control of the page does."""
        choice = self.choice
        match content:
            case {"op": "series", "name": name} if name in SERIES:
                choice.series = str(name)
            case {"op": "range", "name": name} if name in RANGES:
                choice.range = str(name)
            case {"op": "log", "on": bool(on)}:
                choice.log = on
            case {"op": "zoom", "on": bool(on)}:
                choice.zoom = on
            case {"op": "others"}:
                choice.look(self._service)
            case {"op": "other", "key": str(key), "on": bool(on)}:
                choice.toggle(key, on)
        self.draw(final=True)

    def draw(self, final: bool) -> None:
        """Follow the service, once a second at most; `final` is drawn in any case."""
        now = time.monotonic()
        if not final and now - self._drawn_at < MIN_SECONDS:
            self._late = True
            return
        self._drawn_at, self._late = now, False
        drawn = lines(self._service, self.choice, MAX_POINTS)
        self.tools.view = dict(tools_view(self._service, self.choice, drawn))
        shape = (self.choice.log, self.choice.zoom, [(x.name, x.colour) for x in drawn])
        if not any(len(line.steps) for line in drawn):
            self._close_figure()
        elif shape != self._shape or self._figure is None:
            self._close_figure()
            self._build(drawn)
            self._shape = shape
        for mark, line in zip(self._lines, drawn, strict=False):
            _put(mark, line.steps, line.values)
        if self._figure is not None:
            self._fit(drawn)
            self._put_marks()
        self.children = (self.tools, self._figure or self._empty)

    def _build(self, drawn: Sequence[Line]) -> None:
        """A figure for these curves; another kind of scale or other curves need another one."""
        import bqplot  # a third of a second, with pandas: a page without a curve need not wait

        up = bqplot.LogScale() if self.choice.log else bqplot.LinearScale()
        scales = {"x": bqplot.LinearScale(), "y": up}
        self._lines = [
            bqplot.Lines(
                x=[],
                y=[],
                scales=scales,
                colors=[COLOURS[line.colour]],
                opacities=[0.38 if line.faint else 1.0],
                stroke_width=1 if line.faint else 2,
                line_style="dashed" if line.dashed else "solid",
            )
            for line in drawn
        ]
        self._dots = bqplot.Scatter(
            x=[],
            y=[],
            names=[],
            display_names=False,
            scales={"x": scales["x"], "y": bqplot.LinearScale(min=0.0, max=1.0)},
            default_size=34,
            tooltip=bqplot.Tooltip(fields=["name"], show_labels=False),
        )
        self._across = bqplot.Axis(scale=scales["x"], grid_lines="none", tick_format="~g")
        self._up = bqplot.Axis(scale=up, side="left", tick_format="~g")
        if self._up.has_trait("orientation"):  # bqplot 0.12
            self._up.orientation = "vertical"
        self._figure = bqplot.Figure(
            marks=[*self._lines, self._dots],
            axes=[self._across, self._up],
            fig_margin={"top": 10, "bottom": 26, "left": 52, "right": 12},
            padding_y=0.05,
            padding_x=0.0,
            background_style={"fill": "transparent"},
            layout=W.Layout(width="100%", height=f"{curve.HEIGHT}px", min_width="0"),
        )
        if self.choice.zoom:
            self._figure.interaction = bqplot.PanZoom(scales={"x": [scales["x"]], "y": [up]})
        if self._figure.has_trait("display_toolbar"):
            self._figure.display_toolbar = False
        self._figure.add_class("ot-chart")

    def _close_figure(self) -> None:
        figure, self._figure, self._shape, self._lines = self._figure, None, None, []
        if figure is None:
            return
        self.children = (self.tools, self._empty)
        for widget in (*figure.marks, *figure.axes, figure.interaction, figure):
            if widget is not None:
                close_tree(widget)

    def _fit(self, drawn: Sequence[Line]) -> None:
        """Round ticks, which bqplot would put at whatever the ends of the data are."""
        if self.choice.zoom:
            return  # its own ticks go with each move
        across = np.concatenate([line.steps for line in drawn])
        values = np.concatenate([line.values for line in drawn])
        values = values[np.isfinite(values)]
        for axis, along, about in ((self._across, across, 8), (self._up, values, 5)):
            if not len(along):
                continue
            powers = axis is self._up and self.choice.log
            low, high = curve.limits([float(along.min()), float(along.max())])
            flat = along.min() == along.max()  # else the page finds the ends: that is no message
            with axis.scale.hold_sync():
                axis.scale.min, axis.scale.max = (low, high) if flat else (None, None)
            round_values = curve.log_ticks if powers else curve.ticks
            ticks = np.asarray(round_values(low, high, about))
            if not np.array_equal(axis.tick_values, ticks):  # equal arrays would travel again
                axis.tick_values = ticks

    def _put_marks(self) -> None:
        found = marks(self._service)
        steps = np.array([step for step, _, _ in found], float)
        if np.array_equal(self._dots.x, steps):
            return
        with self._dots.hold_sync():
            self._dots.x, self._dots.y = steps, np.full(len(found), 0.01)
            self._dots.colors = [colour for _, colour, _ in found] or ["#888888"]
            self._dots.names = np.array([text for _, _, text in found], dtype=str)

    @property
    def late(self) -> bool:
        """Whether a drawing was put off."""
        return self._late


def _put(mark: bqplot.Lines, steps: Any, values: Any) -> None:
    """Points of a line, if they are other ones: equal arrays would travel again."""
    if np.array_equal(mark.x, steps) and np.array_equal(mark.y, values, equal_nan=True):
        return
    with mark.hold_sync():  # x and y travel in one message, or lengths would differ
        mark.x, mark.y = np.asarray(steps, float), np.asarray(values, float)
