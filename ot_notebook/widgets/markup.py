"""The live views as HTML: what core widgets show, and what a saved notebook keeps.

Every text that comes from a user or a file is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ot_notebook.widgets.view_state import Alert, LogLine, PanelView, Question

STATIC = Path(__file__).parent.parent / "static"


def css(*names: str) -> str:
    """Style sheets of `static`, the common one by default."""
    sheets = [(STATIC / name).read_text(encoding="utf-8") for name in names or ("ot.css",)]
    return "\n".join(sheets)


def style(*names: str) -> str:
    """Style sheets as an element, for where no widget module brings them."""
    return f"<style>{css(*names)}</style>"


def panel(view: PanelView) -> str:
    """Badge, status, alert, bars and figures of `view`."""
    bars = "".join(
        f'<div><div class="ot-bar-text"><span>{escape(bar["label"])}</span>'
        f"<span>{escape(bar['text'])}</span></div>"
        f'<div class="ot-track" role="progressbar" aria-label="{escape(bar["label"])}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{round(bar["percent"])}">'
        f'<div class="ot-fill" style="width:{bar["percent"]}%"></div></div></div>'
        for bar in view["bars"]
    )
    stats = "".join(
        f'<div class="ot-stat"><span>{escape(name)}</span><b>{escape(value)}</b></div>'
        for name, value in view["stats"]
    )
    return (
        f'<div class="ot ot-panel ot-tone-{view["tone"]}" data-state="{view["state"]}">'
        f'<div class="ot-head"><span class="ot-badge">{escape(view["label"])}</span>'
        f'<span class="ot-status">{escape(view["status"])}</span></div>'
        f'{alert(view["alert"])}<div class="ot-bars">{bars}</div>'
        f'<div class="ot-stats">{stats}</div></div>'
    )


def alert(said: Alert | None) -> str:
    """What went wrong or was refused; nothing where there is nothing to say."""
    if said is None:
        return ""
    return (
        f'<div class="ot-alert ot-tone-{said["tone"]}" role="alert">'
        f"<b>{escape(said['title'])}</b>\n{escape(said['text'])}</div>"
    )


def question(asked: Question | None) -> str:
    """What is asked; its choices are buttons beside it."""
    if asked is None:
        return ""
    return f'<div class="ot ot-question" role="status">{escape(asked["text"])}</div>'


def header() -> str:
    """Head of the studio."""
    return (
        '<div class="ot ot-header"><h2>Studio</h2>'
        "<span>Choose settings, train, and watch the model learn.</span></div>"
    )


def curve_title() -> str:
    """Heading and key of the loss curve."""
    return (
        '<div class="ot"><div class="ot-title"><h3>Loss</h3>'
        '<div class="ot-key"><span>each step</span><span>smooth</span></div></div></div>'
    )


def caption(text: str) -> str:
    """A line under the curve."""
    return f'<div class="ot ot-caption">{escape(text)}</div>'


def empty(text: str, hint: str, height: int) -> str:
    """A quiet box in place of something that is not there yet."""
    return (
        f'<div class="ot"><div class="ot-empty" style="height:{height}px">'
        f"<span>{escape(text)}</span><small>{escape(hint)}</small></div></div>"
    )


def no_curve(height: int) -> str:
    """In place of a curve without points."""
    hint = "It starts with the first training step."
    return empty("The loss curve appears here.", hint, height)


def no_samples() -> str:
    """In place of a gallery without pictures."""
    return empty("Samples appear here.", "Each prompt keeps its first and its latest.", 150)


def log(lines: Sequence[LogLine]) -> str:
    """Lines of a log, newest last."""
    rows = "".join(
        f'<li class="ot-{escape(line["level"])}"><time>{escape(line["time"])}</time>'
        f"{escape(line['text'])}</li>"
        for line in lines
    )
    # a reversed column scrolls from its end, so new HTML keeps showing the newest line
    return (
        f'<div class="ot"><div class="ot-log ot-log-end" tabindex="0" role="log" aria-live="off" '
        f'aria-label="Log of the run" data-lm-suppress-shortcuts="true"><ol>{rows}</ol></div></div>'
    )
