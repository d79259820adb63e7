"""What finds and sums up images where only core widgets work: filters, and the table of sizes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import ipywidgets as W

from modules.config import ConceptConfig
from modules.config.enums import BalancingStrategy, ConceptType
from ot_notebook.services.concept_items import Filter, Row
from ot_notebook.widgets import markup
from ot_notebook.widgets.item_pictures import Picture

STATES = {
    "fresh": ("✓", "Cached"),
    "stale": ("↻", "Changed since cached"),
    "new": ("", "Not cached yet"),
    "error": ("", "Cannot be read"),
}
"""How the cache can have an image: its sign, and words for it."""

CLIP = 60
"""Characters of a caption below an image."""

EVERY_SHOWN: dict[str, Any] = {"problem": "", "captioned": None, "masked": None, "twins": False}
"""What the choice of images sets, when it sets nothing."""


class CoreFilters:
    """A search, a choice of images by what they have or lack, and one by the cache.

    Args:
        ask: told the fields of a `Filter` when one of them changes.
    """

    def __init__(self, ask: Callable[[Mapping[str, Any]], None]) -> None:
        self._ask, self._loading = ask, False
        self._now = Filter()
        self.search = W.Text(
            placeholder="Words; -word leaves out",
            description="Search",
            continuous_update=False,
            layout=_wide("1 1 300px"),
        )
        self.show = W.Dropdown(description="Show", layout=_wide("1 1 220px"))
        self.cache = W.Dropdown(description="Cache", layout=_wide("1 1 220px"))
        self.sizes = W.Button(layout=W.Layout(width="auto"))
        self.sizes.on_click(lambda _button: self._change(bucket=""))
        for widget in (self.search, self.show, self.cache):
            widget.observe(self._chosen, "value")

    def draw(self, shown: Filter, figures: Mapping[str, Any]) -> None:
        """Offer what there is to choose among the images, and show what is chosen."""
        self._loading, self._now = True, shown
        try:
            self.search.value = shown.text
            _offer(self.show, _kinds(figures), _kind(shown))
            cache = figures.get("cache", {})
            states = [
                (f"{words} ({cache.get(key, 0):,})", key) for key, (_, words) in STATES.items()
            ]
            _offer(self.cache, [("Any state", ""), *states], shown.cache)
            self.cache.layout.display = "" if cache or shown.cache else "none"
            self.sizes.description = f"Only {shown.bucket}: show all sizes"
            self.sizes.layout.display = "" if shown.bucket else "none"
        finally:
            self._loading = False

    def _chosen(self, _change: Any) -> None:
        if not self._loading:
            kind = dict(self.show.value or ())
            self._change(text=self.search.value, cache=self.cache.value or "", **EVERY_SHOWN | kind)

    def _change(self, **fields: Any) -> None:
        self._ask(asdict(self._now) | fields)


class ChosenConcept:
    """The settings of the concept that is shown, and what can be done with it.

    Args:
        act: told an action on the list of concepts and what belongs to it.
    """

    def __init__(self, act: Callable[..., None]) -> None:
        self._act, self._loading, self._index = act, False, 0
        self._enabled = W.Checkbox(
            description="Train on it", indent=False, layout=_wide("0 0 auto")
        )
        kinds = [(one.name.replace("_", " ").lower(), one.value) for one in ConceptType]
        self._type = W.Dropdown(description="Type", options=kinds, layout=_wide("1 1 200px"))
        self._balance = W.FloatText(description="Balance", layout=_wide("1 1 140px"))
        ways = [(one.name.lower(), one.value) for one in BalancingStrategy]
        self._way = W.Dropdown(options=ways, layout=_wide("0 1 110px"))
        settings = {
            "enabled": self._enabled,
            "type": self._type,
            "balancing": self._balance,
            "balancing_strategy": self._way,
        }
        for name, widget in settings.items():
            widget.observe(lambda change, name=name: self._change(name, change.new), "value")
        self._up, self._down = self._button("Up"), self._button("Down")
        self._up.on_click(lambda _button: self._move(-1))
        self._down.on_click(lambda _button: self._move(1))
        copy, remove = self._button("Duplicate"), self._button("Remove")
        for button, action in ((copy, "duplicate"), (remove, "remove")):
            button.on_click(lambda _button, action=action: self._act(action, index=self._index))
        gap = W.Layout(grid_gap="6px")
        buttons = W.HBox([self._up, self._down, copy, remove], layout=gap)
        layout = W.Layout(
            display="flex", flex_flow="row wrap", align_items="center", grid_gap="6px"
        )
        self.row = W.Box([*settings.values(), buttons], layout=layout)

    def draw(self, concepts: Sequence[ConceptConfig], chosen: int | None) -> None:
        """Show one of the concepts; nothing where all are meant."""
        self.row.layout.display = "none" if chosen is None else "flex"
        if chosen is None:
            return
        self._loading, self._index = True, chosen
        try:
            concept = concepts[chosen]
            self._enabled.value = concept.enabled
            self._type.value, self._balance.value = concept.type.value, concept.balancing
            self._way.value = concept.balancing_strategy.value
            self._up.disabled, self._down.disabled = chosen == 0, chosen == len(concepts) - 1
        finally:
            self._loading = False

    def _change(self, name: str, value: Any) -> None:
        if not self._loading:
            self._act("change", index=self._index, settings={name: value})

    def _move(self, by: int) -> None:
        self._act("move", index=self._index, to=self._index + by)

    def _button(self, label: str) -> W.Button:
        return W.Button(description=label, layout=W.Layout(width="auto"))


def tile(row: Row, picture: Picture | None, state: str) -> str:
    """An image of the page as HTML: small, with signs for what is wrong and how it is cached."""
    if picture:
        data = base64.b64encode(picture[0]).decode()
        inside = f'<img src="data:{picture[1]};base64,{data}" alt="{escape(row.name)}">'
    else:
        inside = '<div class="ot-core-lost">cannot be read</div>'
    sign, words = STATES.get(state, ("", ""))
    inside += f'<span class="ot-cell-cache ot-cache-{state}" title="{words}">{sign}</span>'
    if row.problems:
        said = escape(", ".join(row.problems))
        inside += f'<span class="ot-cell-mark ot-bad-mark" title="{said}">!</span>'
    elif row.masked:
        inside += '<span class="ot-cell-mark ot-mask-mark" title="masked">◐</span>'
    caption = escape(row.caption[:CLIP]) or '<span class="ot-core-none">no caption</span>'
    return (
        f'<div class="ot-core-cell"><div class="ot-core-frame">{inside}</div>'
        f"<small>{caption}</small></div>"
    )


def sizes_table(told: Mapping[str, Any]) -> str:
    """The sizes that images train at, as `concept_page.buckets` tells them."""
    rows: Sequence[Mapping[str, Any]] = told["rows"]
    if not rows:
        return markup.empty(told["why"] or "No image trains.", "", 120)
    body = "".join(
        f"<tr><td><b>{escape(row['bucket']).replace('x', ' &times; ')}</b></td>"
        f"<td>{row['images']:,}{_smaller(row)}</td><td>{int(100 * row['kept'])} %</td>"
        f"<td>{escape(row['when'])}</td></tr>"
        for row in sorted(rows, key=lambda row: -row["images"])
    )
    heads = ("Size", "Images", "Crops keep", "What trains when")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="ot"><table class="ot-table ot-core-sizes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _smaller(row: Mapping[str, Any]) -> str:
    return f"<br><small>{row['smaller']:,} smaller than that</small>" if row["smaller"] else ""


def _kinds(figures: Mapping[str, Any]) -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
    """What one can choose to see: a label, and what it sets of a filter."""
    found: list[tuple[str, tuple[tuple[str, Any], ...]]] = [
        ("All", ()),
        ("Without a caption", (("captioned", False),)),
        ("With a mask", (("masked", True),)),
        ("Without a mask", (("masked", False),)),
    ]
    if figures.get("twins"):
        found.append((f"That look alike ({figures['twins']:,})", (("twins", True),)))
    problems = figures.get("problems", ())
    if problems:
        found.append(("With any problem", (("problem", "any"),)))
    found += [(f"{kind} ({count:,})", (("problem", kind),)) for kind, count in problems]
    return found


def _kind(shown: Filter) -> tuple[tuple[str, Any], ...]:
    set_here = {key: getattr(shown, key) for key in EVERY_SHOWN}
    return tuple((key, value) for key, value in set_here.items() if value != EVERY_SHOWN[key])


def _offer(choice: W.Dropdown, options: Sequence[tuple[str, Any]], value: Any) -> None:
    values = [each for _, each in options]
    if value not in values:
        label = " ".join(str(each) for pair in value for each in pair) if value else "Others"
        options = [*options, (label, value)]
    if list(choice.options) != list(options):
        choice.options = options
    choice.value = value


def _wide(flex: str) -> W.Layout:
    return W.Layout(width="auto", flex=flex, min_width="0")
