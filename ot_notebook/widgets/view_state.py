"""What the live views say: a service's state as plain texts, the same in every mode.

Everything here is a pure function of a `TrainerService`, so that a view holds nothing and a number
reads the same in the panel, in the fallback of core widgets, in a saved notebook and in `repr`.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from modules.training.events import State
from ot_notebook.services.refusals import LIVE, STEPPING
from ot_notebook.widgets.texts import MAX_LINE, brief

if TYPE_CHECKING:
    from ot_notebook.services.trainer_service import TrainerService

Tone = Literal["idle", "busy", "run", "hold", "good", "bad"]
Command = Literal["start", "preflight", "pause", "resume", "stop", "sample", "backup", "save"]
Answer = Literal["stop", "pause", "keep", "apply"]
"""What a question offers."""


class Bar(TypedDict):
    """One progress bar; `percent` is 0 to 100."""

    label: str
    text: str
    percent: float


class Control(TypedDict):
    """One button; `op` is the command it asks for."""

    op: Command | Answer
    label: str
    enabled: bool
    hint: str
    kind: str


class Alert(TypedDict):
    """Something that went wrong, or was refused."""

    tone: Tone
    title: str
    text: str


class Question(TypedDict):
    """Something asked in place, which waits for nobody and blocks nothing."""

    text: str
    choices: list[Control]


class PanelView(TypedDict):
    """All that the panel draws."""

    state: State
    label: str
    tone: Tone
    status: str
    buttons: list[Control]
    question: Question | None
    alert: Alert | None
    bars: list[Bar]
    stats: list[tuple[str, str]]


class LogLine(TypedDict):
    """One line of the log; `id` names it within its view."""

    id: int
    time: str
    level: str
    text: str


TONES: dict[State, Tone] = {
    "idle": "idle",
    "loading": "busy",
    "caching": "busy",
    "training": "run",
    "paused": "hold",
    "sampling": "run",
    "saving": "run",
    "stopping": "hold",
    "finished": "good",
    "stopped": "idle",
    "failed": "bad",
}

LABELS: dict[State, str] = {
    "idle": "Ready",
    "loading": "Loading",
    "caching": "Caching",
    "training": "Training",
    "paused": "Paused",
    "sampling": "Sampling",
    "saving": "Saving",
    "stopping": "Stopping",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}

NO_VALUE = "\u2013"

_STOP = "End the run after this step; its files stay"


def panel_view(
    service: TrainerService,
    can_start: bool,
    alert: Alert | None = None,
    question: Question | None = None,
) -> PanelView:
    """Everything the panel draws of `service` now.

    Args:
        service: whose state it is.
        can_start: whether the view has a configuration to start with.
        alert: what this view has to say itself, for instance a refused command; a failed run's
            error comes first.
        question: what this view asks, see `questions`.
    """
    state: State = service.state
    said = (None if service.trial else failure(service)) or alert or tried(service)
    return PanelView(
        state=state,
        label=LABELS[state],
        tone=TONES[state],
        status=brief(status_text(service, can_start)),
        buttons=controls(service, can_start),
        question=question,
        alert=said and shortened(said),
        bars=bars(service),
        stats=stats(service),
    )


def shortened(said: Alert) -> Alert:
    """An alert with as much of it as a page should hold; all of it is in the log."""
    title, text = brief(said["title"], MAX_LINE), brief(said["text"], MAX_LINE)
    return Alert(tone=said["tone"], title=title, text=text)


def status_text(service: TrainerService, can_start: bool) -> str:
    """What the run does now, in words; what to do next where there is no run."""
    if service.trial is True:
        return str(service.status)
    if service.state == "idle":
        return "Press Start to train." if can_start else "No run yet."
    if service.elsewhere is not None:
        return f"{service.status} · watched from here, live in process {service.elsewhere.pid}"
    task = service.task
    if task is not None and task.total:
        return f"{service.status} ({task.done} of {task.total})".strip()
    return "" if service.status == LABELS[service.state] else str(service.status)


def controls(service: TrainerService, can_start: bool) -> list[Control]:
    """The buttons, each enabled exactly when the service would accept its command."""
    state: State = service.state
    here, trying = service.elsewhere is None, service.trial is True
    live, steps = state in LIVE, state in STEPPING and here
    ready = not live and state != "stopping"
    if state == "paused":
        second = _control("resume", "Resume", here, "Go on with the run", "hold")
    elif ready:
        words = "Take a few steps on the largest images: does it fit, and how long will it take?"
        second = _control("preflight", "Pre-flight", can_start and not trying, words, "hold")
    else:
        second = _control("pause", "Pause", steps, "Hold the run after this step", "hold")
    return [
        _control(
            "start",
            "Start",
            ready and can_start and not trying,
            "Train with the settings of the form" if can_start else "No settings to start with",
            "primary",
        ),
        second,
        _control("stop", "Stop", live or trying, _STOP, "danger"),
        _control("sample", "Sample", steps, "Make the sample images now"),
        _control("backup", "Backup", steps, "Write a checkpoint from which the run can resume"),
        _control("save", "Save", steps, "Write the model file as it is now"),
    ]


def bars(service: TrainerService) -> list[Bar]:
    """Epoch and step progress."""
    return [
        Bar(
            label="Epoch",
            text=f"{count(service.epoch)} of {count(service.max_epoch)} · "
            f"step {count(service.epoch_step)} of {count(service.max_epoch_step)}"
            if service.max_epoch
            else NO_VALUE,
            percent=percent(service.epoch_step, service.max_epoch_step),
        ),
        Bar(
            label="Run",
            text=f"step {count(service.step)} of {count(service.max_step)}"
            if service.max_step
            else NO_VALUE,
            percent=percent(service.step, service.max_step),
        ),
    ]


def stats(service: TrainerService) -> list[tuple[str, str]]:
    """Names and values of the figures beside the curve."""
    running = service.state in ("training", "sampling", "saving", "paused")
    return [
        ("Loss, smooth", number(service.smooth_loss)),
        ("Loss", number(service.loss)),
        ("Learning rate", number(service.learning_rate)),
        ("Speed", speed(service.steps_per_second)),
        ("Time left", duration(service.seconds_left) if running else NO_VALUE),
    ]


def failure(service: TrainerService) -> Alert | None:
    """The error that ended the run, with its advice."""
    error = service.error
    if service.state != "failed" or error is None:
        return None
    what = getattr(error, "error", str(error))
    advice = getattr(error, "advice", "")
    return Alert(tone="bad", title=what, text=advice)


def tried(service: TrainerService) -> Alert | None:
    """What the last pre-flight found, while no run has been started since."""
    found = service.trial
    if found is None or found is True:
        return None
    title, _, text = str(found).partition("\n")
    return Alert(tone="good" if found.fits else "bad", title=f"Pre-flight: {title}", text=text)


LEVELS = {"All": "", "Warnings and errors": "warning", "Errors": "error"}
"""Which lines of a log are shown."""


def log_lines(
    service: TrainerService, keep: int, least: str = "", words: str = ""
) -> list[LogLine]:
    """The last `keep` lines of the run's log, oldest first.

    Args:
        service: whose log it is.
        keep: how many.
        least: "warning" or "error" leaves out what is less.
        words: only lines with these.
    """
    order = ["info", "warning", "error"]
    rank = order.index(least) if least else 0
    found = service.history.log
    if least or words:
        wanted = words.lower()
        found = [x for x in found if order.index(x.level) >= rank and wanted in x.text.lower()]
    return [
        LogLine(
            id=line.number,
            time=time.strftime("%H:%M:%S", time.localtime(line.time)),
            level=line.level,
            text=brief(line.text, MAX_LINE),
        )
        for line in found[-keep:]
    ]


def curve_caption(service: TrainerService) -> str:
    """The curve in words: its last values and its lowest one."""
    steps, values = service.history.points("smooth_loss", 2000)
    if not len(steps):
        return ""
    pairs = [(v, s) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if not pairs:
        return "No finite loss yet."
    lowest, at = min(pairs)
    last = (
        f"Step {count(int(steps[-1]))}: loss {number(service.loss)}, "
        f"smooth {number(service.smooth_loss)}."
    )
    return f"{last} Lowest smooth loss {number(lowest)} at step {count(int(at))}."


def number(value: float | None) -> str:
    """Four significant digits; a dash where there is no finite value (JSON has no NaN either)."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def count(value: int) -> str:
    """A whole number with thin groups of three, so that 120000 is read at a glance."""
    return f"{value:,}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """A time span in the units that matter, two at most."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return NO_VALUE
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min {rest:02d} s"
    if minutes < 60:
        return f"{minutes} min"  # no guess is right to the second
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def speed(steps_per_second: float | None) -> str:
    """Steps a second, or seconds a step where that is the larger number."""
    if not steps_per_second or not math.isfinite(steps_per_second):
        return NO_VALUE
    if steps_per_second >= 1:
        return f"{steps_per_second:.3g} step/s"
    return f"{1 / steps_per_second:.3g} s/step"


def percent(done: int, total: int) -> float:
    """0 to 100, one decimal; 0 where nothing is known."""
    return round(min(100.0, max(0.0, 100.0 * done / total)), 1) if total > 0 else 0.0


def _control(op: Command, label: str, enabled: bool, hint: str, kind: str = "") -> Control:
    return Control(op=op, label=label, enabled=enabled, hint=hint, kind=kind)


def plain(service: Any) -> str:
    """The run in a few lines of text."""
    lines = [f"{LABELS[service.state]}. {brief(status_text(service, can_start=False))}".strip()]
    if alert := failure(service):
        alert = shortened(alert)
        lines.append(f"{alert['title']} {alert['text']}".strip())
    if service.max_step:
        lines += [f"{bar['label']}: {bar['text']}" for bar in bars(service)]
        lines.append(", ".join(f"{name} {value}" for name, value in stats(service)))
    return "\n".join(lines)
