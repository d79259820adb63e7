"""Runs beside one another: what differs in their settings, their curves, their samples."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as W

from modules.training.events import SampleImage
from ot_notebook.widgets import markup
from ot_notebook.widgets.compare_view import (
    METRICS,
    Choice,
    CompareView,
    Found,
    RunRow,
    SampleRow,
    compare_view,
    find_runs,
    live,
)
from ot_notebook.widgets.described import (
    DescribedFront,
    DescribedView,
    brief,
    core_button,
    row_of,
)
from ot_notebook.widgets.live import Mode, esm
from ot_notebook.widgets.overlay import COLOURS, overlay_svg
from ot_notebook.widgets.thumbnails import Tile, data_uri, full
from ot_notebook.widgets.view_state import Alert

REFRESH_SECONDS = 3.0
"""Time between two looks at the stores while a run is live and somebody watches."""

EMPTY = ("No runs yet.", "Train one, or name its workspace: ot.RunCompare('folder').")

EMPTY_CURVES = ("No runs are compared.", "Choose two or more in the table.")


class CompareFront(DescribedFront):
    """Table, differences, curves and samples."""

    _esm = esm("compare_parts.js", "compare.js")


class RunCompare(DescribedView):
    """Runs of a workspace, or of all below the current folder: choose some and see what differs.

    Args:
        workspace: a workspace folder; else all in and up to three folders below the current one.
        runs: ids of those to compare at first; by default the two newest.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.

    Raises:
        ValueError: for an id that no run has.

    Example:
        >>> ot.RunCompare("workspace/demo")
    """

    front = CompareFront

    def __init__(
        self,
        workspace: str | Path | None = None,
        runs: Sequence[str] | None = None,
        *,
        mode: Mode = "auto",
    ) -> None:
        self.workspace = workspace
        self.choice = Choice()
        """Which are compared, and how."""
        self._found: list[Found] = []
        self._tiles: dict[tuple[str, SampleImage], Tile] = {}
        self._read_at = -math.inf
        self._amiss = ""
        self._read()
        keys = {one.run.id: one.key for one in self._found}
        if runs is not None and (unknown := [name for name in runs if name not in keys]):
            raise ValueError(f"There is no run {unknown[0]!r}. Known: {', '.join(keys) or 'none'}.")
        for name in list(keys)[:2] if runs is None else runs:
            self.choice.toggle(keys[name], on=True)
        super().__init__(mode)
        self._use(self.mode)

    def _read(self) -> None:
        self._found, amiss = find_runs(self.workspace)
        self._amiss = brief("\n".join(amiss))
        self._read_at = time.monotonic()

    def _describe(self) -> CompareView:
        alert = self._alert
        if alert is None and self._amiss:
            alert = Alert(tone="hold", title="Not everything could be read", text=self._amiss)
        return compare_view(self._found, self.choice, self._tiles, alert)

    def _pull(self) -> None:
        if live(self._found) and time.monotonic() - self._read_at > REFRESH_SECONDS:
            self._read()
            super()._pull()
        elif self._unseen:
            self._unseen = False
            if self.mode == "rich":
                self._front.send_state(["view"])

    def _serve(self, content: Mapping[str, Any]) -> None:
        match content:
            case {"op": "choose", "key": str(key), "on": bool(on)}:
                self.choice.toggle(key, on)
            case {"op": "metric", "name": name} if name in METRICS:
                self.choice.metric = str(name)
            case {"op": "log", "on": bool(on)}:
                self.choice.log = on
            case {"op": "refresh"}:
                self._read()
            case {"op": "full", "id": int(number)}:
                for (_, sample), one in list(self._tiles.items()):
                    if one["id"] == number:
                        image, mime = full(sample.path)
                        self._front.send({"op": "full", "id": number, "mime": mime}, [image])

    # core widgets ------------------------------------------------------------------------------

    def _make_core(self) -> Sequence[W.Widget]:
        wide = {"layout": W.Layout(width="100%")}
        self._head, self._curves, self._rest = (W.HTML(**wide) for _ in range(3))
        self._checks: dict[str, W.Checkbox] = {}
        self._table = W.VBox(layout=W.Layout(width="100%", max_height="260px", overflow="auto"))
        self._metric = W.Dropdown(
            options=[(words, name) for name, words in METRICS.items()], description="Curve"
        )
        self._metric.observe(lambda change: self.do("metric", name=change.new), "value")
        self._log = W.Checkbox(description="Logarithmic", indent=False)
        self._log.observe(lambda change: self.do("log", on=change.new), "value")
        refresh = core_button("Refresh", "Look for new runs", lambda: self.do("refresh"))
        return [
            W.HTML(markup.style("ot.css", "form.css", "views.css")),
            self._head,
            self._table,
            row_of(self._metric, self._log, refresh),
            self._curves,
            self._rest,
        ]

    def _draw_core(self, view: Mapping[str, Any]) -> None:
        self._head.value = head_html(view)
        shown = {row["key"]: row for row in view["runs"]}
        for gone in self._checks.keys() - shown.keys():
            self._checks.pop(gone).close()
        for key, row in shown.items():
            if key not in self._checks:
                self._checks[key] = self._check(key)
            check, on = self._checks[key], row["colour"] is not None
            check.description, check.tooltip = _line(row), row["workspace"]
            if check.value != on:
                check.value = on
        self._table.children = tuple(self._checks[key] for key in shown)
        self._curves.value = curves_html(view)
        self._rest.value = differences_html(view) + samples_html(view)

    def _check(self, key: str) -> W.Checkbox:
        made = W.Checkbox(indent=False, layout=W.Layout(width="100%", flex="0 0 auto"))
        made.observe(lambda change: self._choose(key, change.new), "value")
        return made

    def _choose(self, key: str, on: bool) -> None:
        if (key in self.choice.keys) != on:  # else it is this drawing that set the box
            self.do("choose", key=key, on=on)

    # saved notebook ----------------------------------------------------------------------------

    def story(self) -> str:
        """Table, differences, curves and samples as HTML that needs no kernel."""
        view = self._describe()
        rows = "".join(
            f"<tr><td>{_swatch(row['colour'])}{escape(row['id'])}</td>"
            f"<td>{escape(row['label'])}</td><td>{escape(row['steps'])}</td>"
            f"<td>{escape(row['loss'])}</td><td>{escape(row['model'])}</td></tr>"
            for row in view["runs"]
            if row["colour"] is not None
        )
        head = "<tr><th>run</th><th>state</th><th>steps</th><th>loss</th><th>model</th></tr>"
        table = f"<table>{head}{rows}</table>" if rows else ""
        return (
            head_html(view)
            + table
            + curves_html(view)
            + differences_html(view)
            + samples_html(view)
        )

    def plain(self) -> str:
        """The runs compared, and what differs, as text."""
        view = self._describe()
        lines = [view["summary"]]
        lines += [_line(row) for row in view["runs"] if row["colour"] is not None]
        lines += [f"{path}: {' | '.join(values)}" for path, *values in view["differences"]]
        return "\n".join(lines)


def _line(row: RunRow) -> str:
    return f"{row['id']} · {row['label']} · {row['steps']} · loss {row['loss']} · {row['model']}"


def _swatch(colour: int | None) -> str:
    if colour is None:
        return ""
    return f'<span style="color:{COLOURS[colour]}" aria-hidden="true">\N{BLACK SQUARE}</span> '


def head_html(view: Mapping[str, Any]) -> str:
    """Heading, summary and alert."""
    empty = "" if view["runs"] else markup.empty(*EMPTY, 110)
    return (
        f'<div class="ot"><div class="ot-head"><h3>Runs</h3>'
        f'<span class="ot-status">{escape(view["summary"])}</span></div>'
        f"{markup.alert(view['alert'])}</div>{empty}"
    )


def curves_html(view: Mapping[str, Any]) -> str:
    """The curves, their key, and their ends in words."""
    if not view["runs"]:
        return ""
    if not view["curves"]["lines"]:
        return markup.empty(*EMPTY_CURVES, 110)
    key = " ".join(
        f'<span style="color:{line["colour"]}">\N{BLACK SQUARE}</span> {escape(line["name"])}'
        for line in view["curves"]["lines"]
    )
    return (
        f'<div class="ot">{overlay_svg(view["curves"])}<div class="ot-caption">{key}</div></div>'
        f"{markup.caption(view['caption'])}"
    )


def differences_html(view: Mapping[str, Any]) -> str:
    """The settings that differ, as a table."""
    if len(view["names"]) < 2:
        return ""
    title = '<h3 class="ot-title">Settings that differ</h3>'
    if not view["differences"]:
        return f'<div class="ot">{title}<p>None: these runs have the same settings.</p></div>'
    head = "".join(f"<th>{escape(name)}</th>" for name in view["names"])
    rows = "".join(
        f"<tr><td><code>{escape(path)}</code></td>"
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>"
        for path, *values in view["differences"]
    )
    more = f"<p>and {view['more_differences']} more</p>" if view["more_differences"] else ""
    return (
        f'<div class="ot">{title}<div class="ot-scroll"><table class="ot-table">'
        f"<tr><th>setting</th>{head}</tr>{rows}</table></div>{more}</div>"
    )


def samples_html(view: Mapping[str, Any]) -> str:
    """Samples of the same prompt and seed, run beside run."""
    rows: Sequence[SampleRow] = view["samples"]
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in view["names"])
    body = "".join(
        f"<tr><td>{escape(row['prompt'])}<br><small>seed {row['seed']}</small></td>"
        + "".join(_cell(cell, row["prompt"]) for cell in row["cells"])
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="ot"><h3 class="ot-title">Same prompt, same seed</h3><div class="ot-scroll">'
        f'<table class="ot-table"><tr><th>prompt</th>{head}</tr>{body}</table></div></div>'
    )


def _cell(one: Tile | None, prompt: str) -> str:
    if one is None:
        return "<td>\N{EN DASH}</td>"
    if not one["image"]:
        return "<td>the file is gone</td>"
    source = data_uri(one["image"], one["mime"])
    text = f"{prompt}, step {one['step']}"
    return (
        f'<td><img width="128" src="{source}" alt="{escape(text)}"><br>'
        f"<small>step {one['step']}</small></td>"
    )
