"""The report on a training set as HTML, the same with our module and without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import PurePath

from modules.data.findings import DataProblem, printable
from modules.data.report import DataReport, TokenReport

NAMED = 12
"""Files that one finding names before it counts the rest."""

SIZES = 8
"""Sizes of images that are named, the most frequent first."""


ELSEWHERE = frozenset(
    ("missing folder", "empty folder", "orphan caption", "orphan mask", "unsupported")
)
"""Problems of what is no image, and so cannot be shown."""


def page(told: DataReport, links: bool = True) -> str:
    """Everything that is known of a set, most urgent first; names are text, whatever is in them.

    Args:
        told: the report.
        links: whether names are buttons, for a page that listens: with `data-name`, and with
            `data-problem` where there are more.
    """
    parts = (
        _problems(told.problems, links),
        _captions(told.tokens, links),
        _alike(told, links),
        _concepts(told),
        _pictures(told),
    )
    return "".join(parts)


def _section(title: str, body: str) -> str:
    return f'<section class="ot-finding"><h4>{escape(title)}</h4>{body}</section>' if body else ""


def _problems(problems: Sequence[DataProblem], links: bool) -> str:
    if not problems:
        return _section("Files", '<p class="ot-caption">Nothing is wrong with any of them.</p>')
    rows = "".join(
        f"<li><b>{len(one.paths):,} &times; {escape(one.kind)}</b>{_skipped(one)} "
        f"<span>{escape(_sentence(one))}</span>"
        f"{_names(one.paths, links and one.kind not in ELSEWHERE, problem=one.kind)}</li>"
        for one in sorted(problems, key=lambda one: (not one.skipped, -len(one.paths)))
    )
    return _section("What to look at", f'<ul class="ot-finding-list">{rows}</ul>')


def _skipped(problem: DataProblem) -> str:
    return ' <span class="ot-bad-words">left out of training</span>' if problem.skipped else ""


def _sentence(problem: DataProblem) -> str:
    each = "It " if len(problem.paths) == 1 else "Each "
    return f"{each}{problem.message} {problem.fix}".strip()


def _captions(tokens: TokenReport | None, links: bool) -> str:
    if tokens is None:
        return ""
    limit = f", of which the text encoder reads {tokens.limit:,}" if tokens.limit else ""
    words = f"{tokens.mean:.1f} tokens on average, {tokens.longest:,} in the longest{limit}."
    body = f"<p>{words}</p>"
    if tokens.over:
        many = "caption is" if len(tokens.over) == 1 else "captions are"
        named = [path for path, _ in tokens.over]
        notes = [f"{count:,} tokens" for _, count in tokens.over]
        said = f"{len(tokens.over):,} {many} cut off:"
        body += f'<p class="ot-bad-words">{said}</p>{_names(named, links, notes)}'
    return _section("Captions", body)


def _alike(told: DataReport, links: bool) -> str:
    groups = "".join(f"<li>{_names(group, links)}</li>" for group in told.duplicates[:NAMED])
    more = len(told.duplicates) - NAMED
    rest = f'<p class="ot-caption">and {more:,} groups more</p>' if more > 0 else ""
    return _section("Look the same", groups and f'<ul class="ot-finding-list">{groups}</ul>{rest}')


def _concepts(told: DataReport) -> str:
    heads = ("Concept", "Type", "Images", "An epoch shows", "Captions", "Masks", "MiB")
    rows = [
        (
            printable(one.name),
            one.type.replace("_", " ").lower(),
            f"{one.images:,}",
            f"{one.looks:,}",
            f"{one.captioned:,}",
            f"{one.masks:,}",
            f"{one.size / 2**20:,.1f}",
        )
        for one in told.concepts
    ]
    return _section("Concepts", _table(heads, rows) if rows else "")


def _pictures(told: DataReport) -> str:
    if not told.sizes:
        return ""
    named = [
        f"{width:,} &times; {height:,} ({count:,})" for width, height, count in told.sizes[:SIZES]
    ]
    more = len(told.sizes) - SIZES
    words = ", ".join(named) + (f" and {more:,} sizes more" if more > 0 else "")
    body = f"<p>{words}</p>"
    if told.turned:
        many = "image" if len(told.turned) == 1 else "images"
        body += (
            f"<p>Turned by the camera, and upright in training: {len(told.turned):,} {many}.</p>"
        )
    return _section("Sizes of the files", body)


def _names(paths: Sequence[str], links: bool, notes: Sequence[str] = (), problem: str = "") -> str:
    shown = []
    for number, path in enumerate(paths[:NAMED]):
        name = escape(printable(PurePath(path).name), quote=True)
        note = f"<small>{escape(notes[number])}</small>" if notes else ""
        inside = f'title="{escape(printable(path), quote=True)}"><span>{name}</span>{note}'
        if links:
            shown.append(
                f'<button type="button" class="ot-tag" data-name="{name}" {inside}</button>'
            )
        else:
            shown.append(f'<span class="ot-tag" {inside}</span>')
    more = len(paths) - NAMED
    words = f"and {more:,} more" if more > 0 else ""
    rest = f'<span class="ot-caption">{words}</span>' if words else ""
    if words and links and problem:
        kind = escape(problem, quote=True)
        rest = f'<button type="button" class="ot-link" data-problem="{kind}">{words}</button>'
    return f'<div class="ot-chips">{"".join(shown)}{rest}</div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="ot-finding-table"><table class="ot-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
