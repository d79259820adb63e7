"""The live dashboard of a run: what it does, how far it is, how well it learns; its controls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import anywidget
import ipywidgets as W
import traitlets as t

from modules.config import ConfigError, Problem
from modules.training.events import ENDED, Event, LossUpdate
from ot_notebook.services import curve
from ot_notebook.services.refusals import CommandRefused
from ot_notebook.services.system_monitor import vram_of
from ot_notebook.widgets import markup
from ot_notebook.widgets.chart import LossChart
from ot_notebook.widgets.chart_view import ALONE, ChartChoice, as_overlay
from ot_notebook.widgets.described import row_of
from ot_notebook.widgets.live import Front, LiveView, Mode, esm
from ot_notebook.widgets.machine_strip import MachineStrip
from ot_notebook.widgets.overlay import overlay_svg
from ot_notebook.widgets.questions import (
    edits,
    edits_question,
    must_ask,
    stop_question,
    too_soon,
)
from ot_notebook.widgets.view_state import (
    LEVELS,
    Alert,
    Answer,
    Command,
    Control,
    Question,
    curve_caption,
    log_lines,
    panel_view,
    plain,
)

if TYPE_CHECKING:
    from modules.config import TrainConfig
    from modules.config.describe import Setting
    from ot_notebook.services.history import History
    from ot_notebook.services.trainer_service import TrainerService

LOG_LINES = 200
"""Lines of the log that a page holds; all of them are in the run's store."""

SNAPSHOT_POINTS = 300
"""Points of a line in a saved notebook."""

CORE_POINTS = 600
"""Points of a line that is sent as SVG a few times a second."""


class Panel(Front):
    """Badge, buttons, bars and figures. The buttons share the heartbeat's comm on purpose.

    Recent kernels answer a comm on a thread of its own once it has replied, so that Stop and Pause
    work while a cell blocks the main thread.
    """

    _esm = esm("panel.js")

    view = t.Dict(help="A `PanelView`.").tag(sync=True)


class LogView(anywidget.AnyWidget):
    """The last lines of the log."""

    _esm = esm("log.js")
    _css = markup.css("ot.css", "form.css")

    lines = t.List(help="`LogLine`s, oldest first.").tag(sync=True)


class Dashboard(LiveView):
    """Live view of a run, with its controls.

    Any number of dashboards show one service and stay in step; a new one replays all of it.

    Args:
        service: what to show; this kernel's trainer by default.
        job: settings that Start trains with: anything with a `config`, for instance a `JobConfig`.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.

    Example:
        >>> job = ot.JobConfig("emoji LoRA")
        >>> ot.Dashboard(job=job)
    """

    # on the class: a constructor that refuses its arguments is followed by `close` all the same
    _listens = False

    def __init__(
        self, service: TrainerService | None = None, job: Any = None, *, mode: Mode = "auto"
    ) -> None:
        self.job = job
        self._config: TrainConfig | None = None
        self._alert: Alert | None = None
        self._asks = False
        self._asked_at = 0.0
        self._edited = False
        self._history: History | None = None
        self._strip = MachineStrip(held=lambda: vram_of(self.service.trainer), kept=self._workspace)
        super().__init__(service, mode)
        self.add_class("ot-card")
        if isinstance(job, t.HasTraits):
            job.observe(self._on_job, "config")
            self._listens = True

    def start_with(self, config: TrainConfig) -> Any:
        """Start training `config` and give the run; Start uses it again from now on."""
        self._config = config
        return self.service.start(config)

    def do(self, command: str) -> None:
        """What the button `command` does: ask the service, and show the reason if it refuses.

        The first "stop" of a run that takes steps asks, in the panel; a second one stops it,
        unless it follows as fast as in a double click.
        """
        service = self.service
        if command == "stop" and self._asks and too_soon(self._asked_at):
            return
        self._asks = command == "stop" and not self._asks and must_ask(service)
        if self._asks:
            self._asked_at = time.monotonic()
            self._redraw()
            return
        actions: dict[str, Callable[[], Any]] = {
            "start": lambda: service.start(self._ready()),
            "preflight": lambda: self._preflight(self._ready()),
            "pause": service.pause,
            "resume": service.resume,
            "stop": service.stop,
            "sample": service.sample_default,
            "backup": service.backup,
            "save": service.save,
            "apply": self._apply,
            "keep": lambda: None,
        }
        self._alert = None
        try:
            actions[command]()
        except Exception as error:  # noqa: BLE001 - shown to the person who pressed the button
            self._alert = Alert(
                tone="hold", title=f"{command.capitalize()} refused", text=str(error)
            )
        service.flush()
        self._redraw()

    def _preflight(self, config: TrainConfig) -> None:
        """Find out whether a config fits, on a thread of its own; its end draws what it found."""

        def fly() -> None:
            try:
                self.service.preflight(config)
            except CommandRefused as error:  # another view was quicker
                self._alert = Alert(tone="hold", title="Pre-flight refused", text=str(error))

        threading.Thread(target=fly, name="ot-preflight", daemon=True).start()

    def _apply(self) -> None:
        """Give the run what was changed in the form since."""
        refused: list[Problem] = []
        for setting, value in sorted(self._edits(), key=lambda edit: not edit[1]):  # zeros last
            try:
                self.service.set(setting.path, value)
            except ConfigError as error:  # the others count all the same
                refused += error.problems
        if refused:
            raise ConfigError(refused)

    def _edits(self) -> list[tuple[Setting, object]]:
        """What the run could take up from the form, unless that holds a job of the queue."""
        borrowed = getattr(self.job, "edits", "")
        return [] if borrowed else edits(self.service, self._settings())

    def _question(self) -> Question | None:
        """What is asked now."""
        service, live = self.service, self.service.config
        self._asks = self._asks and must_ask(service)
        if self._asks:
            return stop_question(service)
        found = self._edits()
        return edits_question(found, live) if found and live is not None else None

    def _on_job(self, _change: t.Bunch) -> None:
        """The form was edited: the next beat of the page shows what that means for the run."""
        self._edited = True

    def _workspace(self) -> Path | None:
        run = self.service.run
        return None if run is None else run.workspace

    def _settings(self) -> TrainConfig | None:
        return self.job.config if self.job is not None else self._config

    def _ready(self) -> TrainConfig:
        """The settings to start with."""
        if (config := self._settings()) is None:
            raise ValueError("There are no settings to start with. Give Dashboard() a job.")
        return config

    # live view ---------------------------------------------------------------------------------

    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        self._panel = Panel(layout=W.Layout(width="100%"))
        self._chart = LossChart(self.service)
        self._chart.tools.on_msg(self._on_chart)
        self._log = LogView(layout=W.Layout(width="100%"))
        self._log.add_class("ot-log-host")
        return self._panel, [self._panel, self._strip, self._chart, self._log]

    def _make_core(self) -> Sequence[W.Widget]:
        wide = {"layout": W.Layout(width="100%")}
        self._core_panel, self._core_curve, self._core_log = (W.HTML(**wide) for _ in range(3))
        self._buttons: dict[str, W.Button] = {}
        self._answers: dict[str, W.Button] = {}
        for buttons, names in (
            (self._buttons, get_args(Command)),
            (self._answers, get_args(Answer)),
        ):
            for op in names:
                style = {"start": "primary", "stop": "danger"}.get(op, "")
                buttons[op] = W.Button(button_style=style, layout=W.Layout(width="auto"))
                buttons[op].on_click(lambda _button, op=op: self.do(op))
        line = {"display": "flex", "flex_flow": "row wrap", "grid_gap": "4px"}
        row = W.Box(list(self._buttons.values()), layout=W.Layout(**line, margin="10px 0 0 0"))
        self._core_question = W.HTML(layout=W.Layout(width="100%"))
        answers = W.Box(list(self._answers.values()), layout=W.Layout(**line, margin="4px 0 0 0"))
        self._core_choice = ChartChoice()
        series = W.Dropdown(
            options=[(words, name) for name, words in ALONE.items()], description="Curve"
        )
        series.observe(lambda change: self._choose_core(series=change.new), "value")
        log = W.Checkbox(description="Logarithmic", indent=False, layout=W.Layout(width="auto"))
        log.observe(lambda change: self._choose_core(log=change.new), "value")
        self._level = W.Dropdown(options=list(LEVELS.items()), description="Log")
        self._words = W.Text(placeholder="Search the log")
        for control in (self._level, self._words):
            control.observe(lambda _change: self._redraw(), "value")
        top = [W.HTML(markup.style()), self._core_panel, row, self._core_question, answers]
        tools = [self._strip, row_of(series, log), self._core_curve]
        return [*top, *tools, row_of(self._level, self._words), self._core_log]

    def _choose_core(self, **chosen: Any) -> None:
        for name, value in chosen.items():
            setattr(self._core_choice, name, value)
        self._redraw()

    def _redraw(self) -> None:
        with self._drawing:
            self._draw(None)

    def _pull(self) -> bool:
        self._strip.draw()
        before = self._panel.view if self.mode == "rich" else None
        super()._pull()
        if self._edited:
            self._edited = False
            with self._drawing:
                self._draw([])
        return before is not None and before != self._panel.view

    def _draw(self, events: Sequence[Event] | None) -> None:
        ready = self._settings() is not None
        view = panel_view(self.service, ready, self._alert, self._question())
        at_rest = view["state"] in (*ENDED, "paused")  # no later event would draw what is put off
        final = events is None or at_rest
        stepped = any(isinstance(event, LossUpdate) for event in events or ())
        another_run = self._history is not self.service.history
        self._history = self.service.history
        final, stepped = final or another_run, final or another_run or stepped
        if self.mode == "rich":
            self._panel.view = dict(view)
            self._log.lines = list(log_lines(self.service, LOG_LINES))
            if stepped or self._chart.late:
                self._chart.draw(final)
            return
        self._core_panel.value = markup.panel(view)
        kept = log_lines(self.service, LOG_LINES, self._level.value, self._words.value)
        self._core_log.value = markup.log(kept)
        self._draw_buttons(self._buttons, view["buttons"])
        question = view["question"]
        self._core_question.value = markup.question(question)
        self._draw_buttons(self._answers, question["choices"] if question else [])
        if stepped:
            self._core_curve.value = self._core_chart()

    @staticmethod
    def _draw_buttons(buttons: Mapping[str, W.Button], controls: Sequence[Control]) -> None:
        shown: dict[str, Control] = {control["op"]: control for control in controls}
        for op, button in buttons.items():
            control = shown.get(op)
            button.layout.display = "" if control else "none"
            if control:
                button.description, button.disabled = control["label"], not control["enabled"]
                button.tooltip = control["hint"]

    def _core_chart(self) -> str:
        choice = self._core_choice
        if choice == ChartChoice():
            return self._curve_html(CORE_POINTS)
        placed = as_overlay(self.service, choice, CORE_POINTS)
        body = overlay_svg(placed) if placed["lines"] else markup.no_curve(curve.HEIGHT)
        return f'<div class="ot">{body}</div>{markup.caption(placed["label"])}'

    def _curve_html(self, points: int) -> str:
        history = self.service.history
        text = curve_caption(self.service)
        raw = curve.finite(*history.points("loss", points))
        smooth = curve.finite(*history.points("smooth_loss", points))
        body = curve.svg(raw, smooth, text) if raw else markup.no_curve(curve.HEIGHT)
        return f'{markup.curve_title()}<div class="ot">{body}</div>{markup.caption(text)}'

    def _on_chart(self, _tools: Front, content: dict[str, Any], _buffers: Any) -> None:
        with self._drawing:
            self._chart.choose(content)

    def _on_request(self, content: dict[str, Any]) -> None:
        if content.get("op") == "do":
            self.do(str(content.get("command")))

    def story(self) -> str:
        """State and curve as HTML."""
        view = panel_view(self.service, can_start=False)
        return f"{markup.panel(view)}{self._curve_html(SNAPSHOT_POINTS)}"

    def plain(self) -> str:
        """The run in a few lines."""
        return plain(self.service)

    def close(self) -> None:
        """Leave service and job, and free everything on the page."""
        if self._listens:
            self._listens = False
            self.job.unobserve(self._on_job, "config")
        super().close()
