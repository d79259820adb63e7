"""The gallery of core widgets, for front ends that load no modules."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

import ipywidgets as W
import traitlets as t

from ot_notebook.widgets import markup
from ot_notebook.widgets.described import row_of
from ot_notebook.widgets.shelf import Listed, Shelf, difference
from ot_notebook.widgets.thumbnails import Tile, by_prompt, full

WAYS = {"Alone": "alone", "Beside the first": "beside", "Difference from the first": "difference"}
"""How the large view shows a sample."""


class CoreGallery:
    """First and latest sample of each prompt, and any other large, step by step.

    Args:
        shelf: gives the samples by number.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._listed: dict[str, list[Listed]] = {}
        self._rows = W.Box(layout=W.Layout(display="flex", flex_flow="row wrap", width="100%"))
        self.cards: dict[str, tuple[W.Image, W.Image, W.HTML]] = {}
        self._shown: list[str] = []
        self.prompt = W.Dropdown(
            options=[], description="Show", layout=W.Layout(width="auto", flex="1 1 260px")
        )
        self.step = W.SelectionSlider(
            options=[("0", 0)], description="Step", layout=W.Layout(width="auto", flex="1 1 260px")
        )
        self.way = W.Dropdown(
            options=list(WAYS.items()), description="As", layout=W.Layout(width="auto")
        )
        self.first, self.large = (
            W.Image(value=b"", layout=W.Layout(width="48%", max_width="512px", display="none"))
            for _ in range(2)
        )
        self._words = W.HTML(layout=W.Layout(width="100%"))
        controls = row_of(self.prompt, self.step, self.way)
        pictures = row_of(self.first, self.large)
        self._viewer = W.VBox([controls, pictures, self._words], layout=W.Layout(display="none"))
        heading = W.HTML(f'{markup.style()}<div class="ot ot-title"><h3>Samples</h3></div>')
        self._none = W.HTML(markup.no_samples(), layout=W.Layout(width="100%"))
        self.children = [heading, self._none, self._rows, self._viewer]
        self.prompt.observe(self._on_prompt, "value")
        for control in (self.step, self.way):
            control.observe(lambda _change: self._show(), "value")

    def draw(self, tiles: Sequence[Tile], samples: Sequence[Listed]) -> None:
        """Bring everything up to date.

        Args:
            tiles: pictures that a page always holds, oldest first.
            samples: all of the run.
        """
        self._none.layout.display = "none" if tiles else ""
        self._viewer.layout.display = "" if tiles else "none"
        groups = by_prompt(tiles)
        self._draw_cards(groups)
        self._listed = {}
        for one in samples:
            self._listed.setdefault(one["prompt"], []).append(one)
        options = [(prompt[:90], prompt) for prompt in self._listed]
        if list(self.prompt.options) != options:
            chosen = self.prompt.value
            self.prompt.options = options
            self.prompt.value = chosen if chosen in self._listed else next(iter(self._listed), None)
        self._on_prompt(None)

    def _draw_cards(self, groups: dict[str, list[Tile]]) -> None:
        for prompt in self.cards.keys() - groups.keys():
            for widget in self.cards.pop(prompt):
                widget.close()
        for prompt, of in groups.items():
            if prompt not in self.cards:
                size = W.Layout(width="128px", height="128px", object_fit="contain")
                self.cards[prompt] = (W.Image(layout=size), W.Image(layout=size), W.HTML())
            first, latest, words = self.cards[prompt]
            first.value, latest.value = of[0]["image"], of[-1]["image"]
            words.value = (
                f'<div class="ot"><b>{escape(prompt)}</b><br><span class="ot-caption">'
                f"step {of[0]['step']} and step {of[-1]['step']}</span></div>"
            )
        if list(groups) != self._shown:
            self._shown = list(groups)
            for card in self._rows.children:
                card.close()
            self._rows.children = [_card(*self.cards[prompt]) for prompt in groups]

    def _on_prompt(self, _change: t.Bunch | None) -> None:
        """The steps of the prompt that is chosen; the newest where the slider stood at the end."""
        of = self._listed.get(self.prompt.value or "", [])
        if not of:
            return
        options = [(str(one["step"]), one["id"]) for one in of]
        if list(self.step.options) == options:
            return
        numbers = [number for _, number in options]
        last = self.step.value == self.step.options[-1][1]
        chosen = self.step.value if self.step.value in numbers and not last else numbers[-1]
        self.step.options = options
        self.step.value = chosen
        self._show()

    def _show(self) -> None:
        of = self._listed.get(self.prompt.value or "", [])
        one = next((one for one in of if one["id"] == self.step.value), None)
        if one is None:
            return
        path, way = self._shelf[one["id"]].path, self.way.value
        origin = self._shelf[of[0]["id"]].path
        try:
            if way == "difference":
                buffer = io.BytesIO()
                difference(origin, path).save(buffer, "PNG")
                self.large.value = buffer.getvalue()
            else:
                self.large.value = full(path)[0]
            if way == "beside":
                self.first.value = full(origin)[0]
        except OSError as error:
            self._words.value = markup.caption(f"It cannot be shown: {error}")
            return
        self.large.layout.display = ""
        self.first.layout.display = "" if way == "beside" else "none"
        text = f"{one['prompt']} · step {one['step']}, epoch {one['epoch']}, seed {one['seed']}"
        self._words.value = markup.caption(f"{text} · {path}")


def _card(first: W.Image, latest: W.Image, words: W.HTML) -> W.VBox:
    """First and latest sample of a prompt, in core widgets."""
    layout = W.Layout(width="auto", flex="0 1 280px", margin="0 16px 12px 0")
    return W.VBox([W.HBox([first, latest]), words], layout=layout)


def describe(one: Tile) -> str:
    """What a sample is, in words."""
    return (
        f"{one['prompt']} · step {one['step']}, epoch {one['epoch']}, seed {one['seed']}, "
        f"{one['width']} x {one['height']} px"
    )
