"""The queue of runs: what waits, what runs, how each ended; order, retries, and a new one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import ipywidgets as W

from modules.config import TrainConfig
from ot_notebook.widgets import markup
from ot_notebook.widgets.described import (
    DescribedFront,
    DescribedView,
    brief,
    core_button,
    row_of,
)
from ot_notebook.widgets.form_rows import model_title, words
from ot_notebook.widgets.live import Mode, esm
from ot_notebook.widgets.questions import must_ask, too_soon
from ot_notebook.widgets.view_state import Alert, Tone, percent

if TYPE_CHECKING:
    from ot_notebook.services.queue_service import Job, JobState, QueueService

SNAPSHOT_JOBS = 40
"""Jobs that a saved notebook lists."""

JobOp = Literal["up", "down", "edit", "take", "remove", "stop", "keep", "retry", "resume"]


class JobButton(TypedDict):
    """One button of a job; `hint` names the job, too."""

    op: JobOp
    label: str
    hint: str
    enabled: bool


class JobRow(TypedDict):
    """One job as it is drawn; `percent` is None where there is no progress to show."""

    id: str
    name: str
    label: str
    tone: Tone
    about: str
    error: str
    percent: float | None
    buttons: list[JobButton]


class QueueView(TypedDict):
    """All that the panel draws."""

    active: bool
    label: str
    tone: Tone
    summary: str
    can_start: bool
    can_add: bool
    can_clear: bool
    alert: Alert | None
    jobs: list[JobRow]


LABELS: dict[JobState, tuple[str, Tone]] = {
    "waiting": ("Waiting", "idle"),
    "running": ("Running", "run"),
    "finished": ("Finished", "good"),
    "stopped": ("Stopped", "idle"),
    "failed": ("Failed", "bad"),
    "interrupted": ("Interrupted", "hold"),
}
"""A job's state in words, and its tone."""


@dataclass(frozen=True)
class Busy:
    """The jobs that a panel is about to do something to, by their ids; empty for none."""

    edits: str = ""
    """Its settings are in the form, to be taken back from there."""
    stops: str = ""
    """Whether to stop its run is asked."""
    form: bool = False
    """Whether the panel has a form to edit in."""


NOTHING = Busy()


def queue_view(
    queue: QueueService, can_add: bool, alert: Alert | None = None, busy: Busy = NOTHING
) -> QueueView:
    """Everything the panel draws of `queue` now.

    Args:
        queue: whose jobs they are.
        can_add: whether there are settings to add.
        alert: something to say, for instance why a command was refused.
        busy: what the panel is about to do.
    """
    jobs: Sequence[Job] = queue.jobs
    waiting = [job.id for job in jobs if job.state == "waiting"]
    running = any(job.state == "running" for job in jobs)
    counts = {word: sum(job.state == word for job in jobs) for word in LABELS}
    summary = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    if running:
        label, tone = ("Running", "run") if queue.active else ("Ends with this job", "hold")
    elif queue.active:
        label, tone = ("Starting", "busy") if waiting else ("Waits for jobs", "idle")
    else:
        label, tone = "Paused", "hold" if waiting else "idle"
    return QueueView(
        active=queue.active,
        label=label,
        tone=tone,  # type: ignore[typeddict-item]
        summary=summary or "No jobs",
        can_start=bool(waiting),
        can_add=can_add,
        can_clear=any(job.state in ("finished", "stopped", "failed") for job in jobs),
        alert=alert,
        jobs=[_row(queue, job, waiting, busy) for job in jobs],
    )


def _row(queue: QueueService, job: Job, waiting: Sequence[str], busy: Busy) -> JobRow:
    label, tone = LABELS[job.state]
    service, done = queue.service, None
    about = _about(job.config)
    live = service.run
    if job.state == "running" and live is not None and live.id == job.run:
        done = percent(service.step, service.max_step)
        where = f"step {service.step} of {service.max_step}" if service.max_step else service.status
        about = f"{where} · {about}"
    if job.state == "waiting" and job.resume:
        about = f"goes on from its last backup · {about}"
    if busy.edits == job.id:
        about = f"being edited: its settings are in the form · {about}"
    return JobRow(
        id=job.id,
        name=brief(job.name or "without a name", 160),
        label=label,
        tone=tone,
        about=about,
        error=brief(job.error),
        percent=done,
        buttons=_buttons(job, waiting, busy),
    )


def _about(config: Mapping[str, Any]) -> str:
    """What a job trains, in a line."""
    epochs = config.get("epochs", "?")
    return brief(
        f"{model_title(config.get('model_type'))} · {words(str(config.get('training_method')))}"
        f" · {epochs} epoch{'s' * (epochs != 1)} · {config.get('workspace_dir', '')}",
        240,
    )


def _buttons(job: Job, waiting: Sequence[str], busy: Busy) -> list[JobButton]:
    name = brief(job.name, 60)

    def made(op: JobOp, label: str, hint: str, enabled: bool = True) -> JobButton:
        return JobButton(op=op, label=label, hint=f"{hint}: {name}", enabled=enabled)

    if job.state == "waiting":
        place = waiting.index(job.id)
        edit = []
        if busy.edits == job.id:
            edit = [
                made("take", "Keep edit", "Take the settings that the form has now"),
                made("keep", "Leave as it was", "Take nothing from the form"),
            ]
        elif busy.form:
            edit = [made("edit", "Edit", "Put its settings in the form")]
        return [
            *edit,
            made("up", "Up", "Run earlier", place > 0),
            made("down", "Down", "Run later", place < len(waiting) - 1),
            made("remove", "Remove", "Take out of the queue"),
        ]
    if job.state == "running":
        stop = made("stop", "Stop", "End the run after this step; its files stay")
        if busy.stops != job.id:
            return [stop]
        stop["label"] = "Stop and save"
        return [stop, made("keep", "Keep training", "Stop nothing")]
    resume = [made("resume", "Resume", "Wait again, to go on from its last backup")]
    return [
        *(resume if job.state != "finished" and job.run else []),
        made("retry", "Run again", "Wait again, to begin anew"),
        made("remove", "Remove", "Take out of the queue; its files stay"),
    ]


class QueueFront(DescribedFront):
    """Jobs in their order, with buttons."""

    _esm = esm("queue.js")


class QueuePanel(DescribedView):
    """Jobs that run one after another: add, reorder, pause, retry, see how each ended.

    Args:
        queue: what to show; this kernel's queue by default.
        job: settings that Add puts at the end: anything with a `config`, for instance a
            `JobConfig`.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.

    Example:
        >>> job = ot.JobConfig("emoji LoRA")
        >>> ot.QueuePanel(job=job)
    """

    front = QueueFront

    # on the class: a constructor that refuses its arguments is followed by `close` all the same
    _heard: Callable[[Any], None] | None = None

    def __init__(
        self, queue: QueueService | None = None, job: Any = None, *, mode: Mode = "auto"
    ) -> None:
        if queue is None:
            from ot_notebook.services.queue_service import queue as this_kernels

            queue = this_kernels()
        self.queue, self.job = queue, job
        self._cards: dict[str, _Card] = {}
        self._busy, self._asked_at = Busy(), 0.0
        super().__init__(mode)
        self._use(self.mode)
        self._heard = lambda _change: self.refresh()
        queue.observe(self._heard, ["jobs", "active"])

    def _describe(self) -> QueueView:
        states = {job.id: job.state for job in self.queue.jobs}
        was = self._busy
        self._busy = replace(
            was,
            stops=was.stops if states.get(was.stops) == "running" else "",
            form=hasattr(self.job, "load"),
        )
        self._edits(was.edits if states.get(was.edits) == "waiting" else "")
        return queue_view(self.queue, self._settings() is not None, self._alert, self._busy)

    def _edits(self, job_id: str) -> None:
        """Note which job is in the form, for all that show the form."""
        if job_id != self._busy.edits:
            self._busy = replace(self._busy, edits=job_id)
            self.job.edits = job_id

    def _settings(self) -> TrainConfig | None:
        return None if self.job is None else self.job.config

    def _serve(self, content: Mapping[str, Any]) -> None:
        queue = self.queue
        match content:
            case {"op": "start"}:
                queue.start()
            case {"op": "pause"}:
                queue.pause()
            case {"op": "add", "name": name}:
                if (config := self._settings()) is None:
                    raise ValueError("There are no settings to add. Give QueuePanel() a job.")
                queue.add(config, brief(name).strip())
            case {"op": "clear"}:
                for job in queue.jobs:
                    if job.state in ("finished", "stopped", "failed"):
                        queue.remove(job.id)
            case {"op": "up" | "down" as op, "id": job_id}:
                waiting = [job.id for job in queue.jobs if job.state == "waiting"]
                at = waiting.index(job_id) if job_id in waiting else 0
                queue.move(job_id, max(0, at - 1 if op == "up" else at + 1))
            case {"op": "remove", "id": job_id}:
                queue.remove(job_id)
            case {"op": "retry" | "resume" as op, "id": job_id}:
                queue.retry(job_id, resume=op == "resume")
            case {"op": "stop", "id": job_id}:
                self._stop(job_id)
            case {"op": "edit", "id": job_id}:
                self._edit(job_id)
            case {"op": "take", "id": job_id} if (config := self._settings()) is not None:
                if job_id != self._busy.edits:
                    raise ValueError("That job is not the one in the form. Press its Edit first.")
                queue.replace(job_id, config)
                self._edits("")
            case {"op": "keep", "id": job_id}:
                if job_id == self._busy.edits:
                    self._edits("")
                if job_id == self._busy.stops:
                    self._busy = replace(self._busy, stops="")

    def _edit(self, job_id: str) -> None:
        """Put the settings of a job into the form, unless it began or went meanwhile."""
        waiting = (job for job in self.queue.jobs if job.state == "waiting")
        job = next((one for one in waiting if one.id == job_id), None)
        if job is None:
            raise ValueError("That job does not wait any more.")
        self.job.load(job.config)
        self._edits(job_id)

    def _stop(self, job_id: str) -> None:
        """End the run of a job, unless another run took its place since the button was drawn.

        A run that takes steps is asked about first; a second press confirms, but for one that
        follows as fast as in a double click.
        """
        service = self.queue.service
        running = [job.run for job in self.queue.jobs if job.id == job_id]
        if service.run is None or service.run.id not in running:
            raise ValueError("That job is not running any more.")
        if must_ask(service) and self._busy.stops != job_id:
            self._busy, self._asked_at = replace(self._busy, stops=job_id), time.monotonic()
            return
        if self._busy.stops == job_id and too_soon(self._asked_at):
            return
        self._busy = replace(self._busy, stops="")
        service.stop()

    # core widgets ------------------------------------------------------------------------------

    def _make_core(self) -> Sequence[W.Widget]:
        self._head = W.HTML(layout=W.Layout(width="100%"))
        self._name = W.Text(
            placeholder="Name of the job", layout=W.Layout(flex="1 1 200px", width="auto")
        )
        self._core = {
            "start": core_button("Start", "Run what waits", lambda: self.do("start"), "primary"),
            "pause": core_button("Pause", "Start no other job", lambda: self.do("pause")),
            "clear": core_button("Clear ended", "Take out what ended", lambda: self.do("clear")),
            "add": core_button("Add", "Put the settings of the form at the end", self._add),
        }
        self._rows = W.VBox(layout=W.Layout(width="100%"))
        return [
            W.HTML(markup.style("ot.css", "form.css", "views.css")),
            self._head,
            row_of(*(self._core[op] for op in ("start", "pause", "clear"))),
            row_of(self._name, self._core["add"]),
            self._rows,
        ]

    def _add(self) -> None:
        self.do("add", name=self._name.value)
        if self._alert is None:
            self._name.value = ""

    def _draw_core(self, view: Mapping[str, Any]) -> None:
        self._head.value = head_html(view)
        self._core["start"].disabled = view["active"] or not view["can_start"]
        self._core["pause"].disabled = not view["active"]
        self._core["clear"].disabled = not view["can_clear"]
        self._core["add"].layout.display = "" if view["can_add"] else "none"
        self._name.layout.display = self._core["add"].layout.display
        shown = {row["id"]: row for row in view["jobs"]}
        for gone in self._cards.keys() - shown.keys():
            self._cards.pop(gone).box.close()
        for job_id, row in shown.items():
            if job_id not in self._cards:
                self._cards[job_id] = _Card(self, job_id)
            self._cards[job_id].draw(row)
        self._rows.children = tuple(self._cards[job_id].box for job_id in shown)

    # saved notebook ----------------------------------------------------------------------------

    def story(self) -> str:
        """The jobs as HTML that needs no kernel."""
        view = self._describe()
        rows = "".join(
            f'<li class="ot-job">{job_html(row)}</li>' for row in view["jobs"][:SNAPSHOT_JOBS]
        )
        left = len(view["jobs"]) - SNAPSHOT_JOBS
        more = f"<p>and {left} more</p>" if left > 0 else ""
        return f'{head_html(view)}<ul class="ot-jobs">{rows}</ul>{more}'

    def plain(self) -> str:
        """The jobs as text."""
        view = self._describe()
        lines = [f"{view['label']}. {view['summary']}"]
        for row in view["jobs"]:
            lines.append(f"{row['label']:12} {row['name']} · {row['about']}")
            lines += [f"{'':13}{row['error']}"] * bool(row["error"])
        return "\n".join(lines)

    def close(self) -> None:
        """Leave the queue, and free everything on the page."""
        if self._heard is not None:
            self.queue.unobserve(self._heard, ["jobs", "active"])
            self._heard = None
            self._edits("")
        super().close()


class _Card:
    """A job in core widgets."""

    def __init__(self, panel: QueuePanel, job_id: str) -> None:
        self._panel, self._id = panel, job_id
        self._words = W.HTML(layout=W.Layout(flex="1 1 260px", width="auto"))
        self._buttons = W.Box(layout=W.Layout(display="flex", flex_flow="row wrap", grid_gap="4px"))
        self._shown: list[JobButton] = []
        self.box = row_of(self._words, self._buttons)

    def draw(self, row: JobRow) -> None:
        self._words.value = f'<div class="ot ot-job">{job_html(row)}</div>'
        if row["buttons"] != self._shown:
            self._shown = row["buttons"]
            old = self._buttons.children
            self._buttons.children = tuple(self._button(one) for one in self._shown)
            for button in old:
                button.close()

    def _button(self, one: JobButton) -> W.Button:
        made = core_button(
            one["label"], one["hint"], lambda: self._panel.do(one["op"], id=self._id)
        )
        made.disabled = not one["enabled"]
        return made


def head_html(view: Mapping[str, Any]) -> str:
    """Badge, summary and alert of the queue."""
    alert = markup.alert(view["alert"])
    empty = "" if view["jobs"] else markup.empty("No jobs yet.", EMPTY_HINT, 110)
    return (
        f'<div class="ot ot-tone-{view["tone"]}"><div class="ot-head"><h3>Queue</h3>'
        f'<span class="ot-badge">{escape(view["label"])}</span>'
        f'<span class="ot-status">{escape(view["summary"])}</span></div>{alert}</div>{empty}'
    )


EMPTY_HINT = "Add the settings of a form, or ot.queue().add(job.config)."


def job_html(row: JobRow) -> str:
    """State, name, details and error of a job."""
    error = f'<div class="ot-job-error">{escape(row["error"])}</div>' if row["error"] else ""
    return (
        f'<div class="ot-tone-{row["tone"]}"><span class="ot-badge">{escape(row["label"])}</span> '
        f'<b>{escape(row["name"])}</b><div class="ot-caption">{escape(row["about"])}</div>'
        f"{error}</div>"
    )
