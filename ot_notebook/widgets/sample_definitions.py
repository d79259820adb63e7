"""The pictures that a run draws again and again: their prompts, sizes, seeds and samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any, TypedDict

import ipywidgets as W

from modules.config import SampleConfig, settings
from ot_notebook.widgets import markup
from ot_notebook.widgets.core_form import Line
from ot_notebook.widgets.described import (
    DescribedFront,
    DescribedView,
    brief,
    core_button,
    row_of,
)
from ot_notebook.widgets.form_rows import Row, rows
from ot_notebook.widgets.live import Mode, esm
from ot_notebook.widgets.view_state import Alert

if TYPE_CHECKING:
    from ot_notebook.services.trainer_service import TrainerService
    from ot_notebook.widgets.job_config import JobConfig

LIST = "samples"
"""The setting that holds the definitions."""

SNAPSHOT_SAMPLES = 40
"""Definitions that a saved notebook lists."""

EMPTY = ("No samples yet.", "Add one: it is drawn again and again while the model learns.")


class Definition(TypedDict):
    """One picture as it is drawn here: what each control holds, and what is wrong with it."""

    values: dict[str, Any]
    problems: dict[str, str]


class DefinitionsView(TypedDict):
    """All that the editor draws."""

    rows: list[Row]
    items: list[Definition]
    summary: str
    can_draw: bool
    draw_hint: str
    can_undo: bool
    alert: Alert | None


@lru_cache(maxsize=1)
def shown_rows() -> list[Row]:
    """The settings of a picture that have a control here; the form has all of them."""
    return rows([setting for setting in settings(SampleConfig) if setting.level == "basic"])


def definitions_view(
    job: JobConfig, service: TrainerService, alert: Alert | None = None
) -> DefinitionsView:
    """Everything the editor draws of the samples of `job` now.

    Args:
        job: whose samples they are.
        service: which could draw one now.
        alert: something to say, for instance why a command was refused.
    """
    items = [
        Definition(values={row["path"]: item[row["path"]] for row in shown_rows()}, problems={})
        for item in job.on_page().get(LIST) or ()
    ]
    for problem in job.problems:
        place, _, name = problem.field.removeprefix(f"{LIST}.").partition(".")
        if problem.field.startswith(f"{LIST}.") and place.isdecimal() and int(place) < len(items):
            text = f"{problem.message} {problem.fix}".strip()
            items[int(place)]["problems"][name] = brief(text)
    drawn = sum(bool(item["values"]["enabled"]) for item in items)
    can_draw = service.state in ("training", "paused", "sampling", "saving")
    return DefinitionsView(
        rows=shown_rows(),
        items=items,
        summary=f"{drawn} of {len(items)} drawn" if items else "",
        can_draw=can_draw,
        draw_hint="Draw this one at the next step" if can_draw else "Needs a run that takes steps",
        can_undo=job.can_undo,
        alert=alert,
    )


class DefinitionsFront(DescribedFront):
    """A card for each definition."""

    _esm = esm("definitions.js")


class SampleDefinitions(DescribedView):
    """Editor of the samples of a job: the same settings as in its form, with room for each.

    Edits reach the job at once, and changes that code or the form make appear here. While a run
    takes steps, one can be drawn now.

    Args:
        job: a `JobConfig`.
        service: what draws; this kernel's trainer by default.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.

    Example:
        >>> job = ot.JobConfig("emoji LoRA")
        >>> ot.SampleDefinitions(job)
    """

    front = DefinitionsFront

    # on the class: a constructor that refuses its arguments is followed by `close` all the same
    _heard: Any = None

    def __init__(
        self, job: JobConfig, service: TrainerService | None = None, *, mode: Mode = "auto"
    ) -> None:
        if service is None:
            from ot_notebook.services.trainer_service import trainer

            service = trainer()
        self.job, self.service = job, service
        self._cards: list[_Card] = []
        super().__init__(mode)
        self._use(self.mode)
        self._heard = lambda _change: self.refresh()
        job.observe(self._heard, "config")
        service.observe(self._heard, "state")

    def _describe(self) -> DefinitionsView:
        return definitions_view(self.job, self.service, self._alert)

    def _serve(self, content: Mapping[str, Any]) -> None:
        match content:
            case {"op": "edit", "index": int(index), "name": str(name), "value": value}:
                if name in [row["path"] for row in shown_rows()]:
                    self.job.edit(f"{LIST}.{index}.{name}", value)
            case {"op": "add" | "remove" | "copy" | "up" | "down" as action, **rest}:
                self.job.change_items(LIST, action, int(rest.get("index", 0)))
            case {"op": "undo"}:
                self.job.undo()
            case {"op": "draw", "index": int(index)}:
                samples = self.job.config.samples or ()
                if not 0 <= index < len(samples):
                    raise ValueError("That sample is gone.")
                self.service.sample(samples[index])
            case {"op": "draw_all"}:
                self.service.sample_default()

    # core widgets ------------------------------------------------------------------------------

    def _make_core(self) -> Sequence[W.Widget]:
        self._head = W.HTML(layout=W.Layout(width="100%"))
        self._undo = core_button("Undo", "Take back the last edit", lambda: self.do("undo"))
        self._list = W.VBox(layout=W.Layout(width="100%"))
        add = core_button("Add a sample", "Put one at the end", lambda: self.do("add"), "primary")
        return [
            W.HTML(markup.style("ot.css", "form.css", "views.css")),
            self._head,
            row_of(add, self._undo),
            self._list,
        ]

    def _draw_core(self, view: Mapping[str, Any]) -> None:
        self._head.value = head_html(view)
        self._undo.disabled = not view["can_undo"]
        while len(self._cards) > len(view["items"]):
            self._cards.pop().close()
        while len(self._cards) < len(view["items"]):
            self._cards.append(_Card(self, len(self._cards)))
        for card, item in zip(self._cards, view["items"], strict=True):
            card.draw(item, view)
        if len(self._list.children) != len(self._cards):
            self._list.children = tuple(card.box for card in self._cards)

    # saved notebook ----------------------------------------------------------------------------

    def story(self) -> str:
        """The definitions as a table that needs no kernel."""
        view = self._describe()
        labels = "".join(f"<th>{escape(row['label'])}</th>" for row in view["rows"])
        body = "".join(
            "<tr>" + "".join(f"<td>{_cell(item, row)}</td>" for row in view["rows"]) + "</tr>"
            for item in view["items"][:SNAPSHOT_SAMPLES]
        )
        left = len(view["items"]) - SNAPSHOT_SAMPLES
        more = f"<p>and {left} more</p>" if left > 0 else ""
        table = f"<table><tr>{labels}</tr>{body}</table>{more}" if body else ""
        return head_html(view) + table

    def plain(self) -> str:
        """The definitions as text."""
        view = self._describe()
        lines = [f"Samples: {view['summary'] or 'none'}"]
        for item in view["items"]:
            of = item["values"]
            lines.append(
                f"{'' if of['enabled'] else '(off) '}{brief(of['prompt'], 80)}, "
                f"{of['width']} x {of['height']} px, seed {of['seed']}"
            )
        return "\n".join(lines)

    def close(self) -> None:
        """Leave the job and the service, and free everything on the page."""
        if self._heard is not None:
            self.job.unobserve(self._heard, "config")
            self.service.unobserve(self._heard, "state")
            self._heard = None
        super().close()


class _Card:
    """A definition in core widgets, by its place in the list."""

    def __init__(self, editor: SampleDefinitions, index: int) -> None:
        self._editor, self._index, self._drawing = editor, index, False
        self._title = W.HTML(f'<div class="ot"><b>Sample {index + 1}</b></div>')
        self._lines = {row["path"]: Line(row, self._edited) for row in shown_rows()}
        self._draw = self._button("Draw now", "draw")
        tools = [
            self._button(label, op)
            for label, op in (
                ("Up", "up"),
                ("Down", "down"),
                ("Copy", "copy"),
                ("Remove", "remove"),
            )
        ]
        children = [row_of(self._title, self._draw, *tools)]
        self.box = W.VBox(
            [*children, *(line.box for line in self._lines.values())],
            layout=W.Layout(width="100%", margin="0 0 14px 0"),
        )

    def _button(self, label: str, op: str) -> W.Button:
        hint = f"{label}: sample {self._index + 1}"
        return core_button(label, hint, lambda: self._editor.do(op, index=self._index))

    def _edited(self, content: Mapping[str, Any]) -> None:
        if not self._drawing and content["op"] == "edit":
            self._editor.do("edit", index=self._index, name=content["path"], value=content["value"])

    def draw(self, item: Definition, view: Mapping[str, Any]) -> None:
        self._drawing = True
        try:
            for name, line in self._lines.items():
                line.draw(item["values"][name], None, item["problems"].get(name, ""))
        finally:
            self._drawing = False
        self._draw.disabled, self._draw.tooltip = not view["can_draw"], view["draw_hint"]

    def close(self) -> None:
        self.box.close()


def head_html(view: Mapping[str, Any]) -> str:
    """Heading, summary and alert of the editor."""
    alert = markup.alert(view["alert"])
    empty = "" if view["items"] else markup.empty(*EMPTY, 110)
    return (
        f'<div class="ot"><div class="ot-head"><h3>Sample definitions</h3>'
        f'<span class="ot-status">{escape(view["summary"])}</span></div>{alert}</div>{empty}'
    )


def _cell(item: Definition, row: Row) -> str:
    value = item["values"][row["path"]]
    if row["kind"] == "bool":
        return "yes" if value else "no"
    text = dict(row["choices"]).get(value, value) if row["choices"] else value
    return escape(brief(text))
