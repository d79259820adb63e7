"""A run as one HTML file that opens anywhere: no script, no network, no other file."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from modules.atomic import atomic_file
from modules.config import ConceptConfig, SampleConfig, TrainConfig
from modules.training import events as e
from ot_notebook.services import curve
from ot_notebook.services.history import thin

if TYPE_CHECKING:
    import pandas as pd

    from ot_notebook.services.run import Run

Kind = TypeVar("Kind")

POINTS = 800
"""Points of a line of the curve."""

EDGE_PX = 320
"""Longest edge of a picture; the full one stays in the workspace."""

COLUMNS = 6
"""Pictures of one prompt; of more, the first and the last and evenly spaced ones between."""

MAX_PROMPTS = 100
MAX_TEXT = 2_000
"""Characters of one text from a user or a file."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bad: #c62828; --hold: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --hold: #e3b341; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 980px; margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 32px 0 8px; }
.badge { border: 1px solid currentColor; border-radius: 99px; padding: 1px 12px; font-size: 13px; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 32px; margin: 16px 0; padding: 0; }
.facts div { min-width: 110px; } dt { opacity: .7; font-size: 13px; } dd { margin: 0; }
dd { font-weight: 600; overflow-wrap: anywhere; }
figure { margin: 0; } figcaption { font-size: 13px; opacity: .75; }
.prompt { border-top: 1px solid var(--line); padding: 12px 0; }
.prompt p { margin: 0 0 8px; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: 12px; }
.row img { display: block; width: 136px; border-radius: 8px; background: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { text-align: left; padding: 4px 12px 4px 0; border-top: 1px solid var(--line); }
td { overflow-wrap: anywhere; } td:first-child { white-space: nowrap; }
pre { background: var(--soft); padding: 12px; border-radius: 8px; overflow: auto; font-size: 12px; }
.failure { color: var(--bad); white-space: pre-wrap; } .warning { color: var(--hold); }
"""


def write_report(run: Run, path: Path) -> Path:
    """Write the report of `run` to `path`, whole or not at all.

    Raises:
        OSError: if it cannot be written there.
    """
    events = run.events()
    metrics = run.metrics()
    title = f"Run {run.id}"
    body = [
        f'<h1>{_text(title)} <span class="badge">{_text(run.state)}</span></h1>',
        _facts(run, events),
        *(
            f'<p class="failure"><b>{_text(each.error)}</b>\n{_text(each.advice)}</p>'
            for each in _of(events, e.RunFailed)
        ),
        _curve(metrics["step"].to_numpy(float), metrics),
        _samples(_of(events, e.SampleImage)),
        _files(events),
        _warnings(_of(events, e.Warned)),
        _settings(run.config),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def _facts(run: Run, events: Sequence[e.Event]) -> str:
    stored = run.store.run(run.id)
    facts = {"Base model": run.config.base_model_name, "Method": run.config.training_method.value}
    facts["Started"] = time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.started))
    if stored.ended is not None:
        facts["Took"] = _minutes(stored.ended - stored.started)
    if last := run.store.last_progress(run.id):
        facts["Steps"] = f"{last[1].step} of {last[1].max_step}"
        facts["Loss, smooth"] = f"{last[1].smooth_loss:.4g}"
    facts["Samples"] = str(len(_of(events, e.SampleImage)))
    cells = (f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _curve(steps: np.ndarray[Any, Any], metrics: pd.DataFrame) -> str:
    lines = [
        curve.finite(*thin(steps, np.asarray(metrics[name], float), POINTS))
        for name in ("loss", "smooth_loss")
    ]
    if not lines[0]:
        return "<h2>Loss</h2><p>No step was taken.</p>"
    label = f"Loss over {len(steps)} steps, from {lines[1][0][1]:.4g} to {lines[1][-1][1]:.4g}"
    caption = f"{label}. Faint: each step; strong: smoothed."
    drawing = curve.svg(lines[0], lines[1], label)
    return f"<h2>Loss</h2><figure>{drawing}<figcaption>{_text(caption)}</figcaption></figure>"


def _samples(samples: Sequence[e.SampleImage]) -> str:
    if not samples:
        return ""
    by_prompt: dict[tuple[int, str], list[e.SampleImage]] = {}
    for sample in samples:
        by_prompt.setdefault((sample.index, sample.prompt), []).append(sample)
    rows = []
    for (_, prompt), of in list(by_prompt.items())[:MAX_PROMPTS]:
        places = np.unique(np.linspace(0, len(of) - 1, min(len(of), COLUMNS)).round().astype(int))
        pictures = "".join(_picture(of[place]) for place in places.tolist())
        rows.append(
            f'<div class="prompt"><p>{_text(prompt)}</p><div class="row">{pictures}</div></div>'
        )
    hidden = len(by_prompt) - len(rows)
    more = f"<p>{hidden} more prompts are in the samples folder.</p>" if hidden else ""
    return f"<h2>Samples</h2>{''.join(rows)}{more}"


def _picture(sample: e.SampleImage) -> str:
    words = f"step {sample.step}, seed {sample.seed}"
    try:
        with Image.open(sample.path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((EDGE_PX, EDGE_PX))
            buffer = io.BytesIO()
            lossless = max(picture.size) <= EDGE_PX
            small.save(buffer, "PNG" if lossless else "JPEG", quality=88)
    except (OSError, UnidentifiedImageError):
        return f"<figure><figcaption>{words}: {_text(sample.path)} is gone</figcaption></figure>"
    kind = "png" if lossless else "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode()
    alternative = _text(f"{sample.prompt}, {words}")
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{alternative}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _files(events: Sequence[e.Event]) -> str:
    rows = [
        (f"Model, {each.format}" + (", final" if each.final else ""), each.step, each.path)
        for each in _of(events, e.ModelSaved)
    ]
    rows += [("Backup", each.step, each.path) for each in _of(events, e.BackupCreated)]
    return _table("Files", ("", "Step", "Path"), rows)


def _warnings(warnings: Sequence[e.Warned]) -> str:
    if not warnings:
        return ""
    items = "".join(f'<li class="warning">{_text(each.message)}</li>' for each in warnings)
    return f"<h2>Warnings</h2><ul>{items}</ul>"


def _settings(config: TrainConfig) -> str:
    changed: list[tuple[str, str]] = []
    for name, value in _changed(config.to_dict(), TrainConfig().to_dict()).items():
        if name in _PARTS and isinstance(value, list):
            default = _PARTS[name]().to_dict()
            for number, part in enumerate(value, start=1):
                told = ", ".join(f"{k}: {_json(v)}" for k, v in _changed(part, default).items())
                changed.append((f"{name} {number}", told))
        else:
            changed.append((name, _json(value)))
    whole = escape(json.dumps(config.to_dict(), indent=2, ensure_ascii=False, default=str))
    return (
        _table("Settings that differ from the defaults", ("Setting", "Value"), changed)
        + f"<details><summary>All settings, as JSON</summary><pre>{whole}</pre></details>"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 0 else "unknown: the clock was set back"


def _table(heading: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{_text(x)}</td>' for x in row)}</tr>" for row in rows)
    if not body:
        return ""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    return f"<h2>{_text(heading)}</h2><table><tr>{head}</tr>{body}</table>"


_PARTS: dict[str, type[ConceptConfig] | type[SampleConfig]] = {
    "concepts": ConceptConfig,
    "samples": SampleConfig,
}
"""Settings that are lists, and what their items are."""


def _changed(value: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ, by dotted name."""
    usual = _flat(default)
    return {name: each for name, each in _flat(value).items() if usual.get(name) != each}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, each in value.items():
        if isinstance(each, Mapping):
            flat |= _flat(each, f"{prefix}{name}.")
        elif not name.startswith("__"):
            flat[prefix + name] = each
    return flat


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _text(value: object) -> str:
    """Any text as text: escaped, without control characters, and not without end."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", str(value))
    return escape(text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} …")


def _of(events: Sequence[e.Event], kind: type[Kind]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]
