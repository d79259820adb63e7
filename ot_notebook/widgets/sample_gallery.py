"""The samples of a run, by prompt and step: how the model changes as it learns."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets as t

from modules.training.events import Event, SampleImage, TrainingState
from ot_notebook.widgets import markup
from ot_notebook.widgets.live import Front, LiveView, Mode, esm
from ot_notebook.widgets.thumbnails import (
    Tile,
    by_prompt,
    data_uri,
    full,
    kept,
    tile,
)

if TYPE_CHECKING:
    from ot_notebook.services.trainer_service import TrainerService

RECENT_TILES = 24
"""New pictures travel alone until there are this many; then all are sent once, as the archive."""

SNAPSHOT_PROMPTS = 12
"""Prompts that a saved notebook shows."""


class GalleryFront(Front):
    """Pictures grouped by prompt, with a large view. `archive` and `recent` are one list."""

    _esm = esm("gallery.js")

    archive = t.List(help="`Tile`s, oldest first.").tag(sync=True)
    recent = t.List(help="`Tile`s after those of the archive.").tag(sync=True)
    note = t.Unicode(help="What the page does not hold, in words.").tag(sync=True)


class SampleGallery(LiveView):
    """Samples of the run: first and latest of each prompt side by side, all steps between.

    A click shows one large, with its prompt, seed and step.

    Args:
        service: whose samples to show; this kernel's trainer by default.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.
    """

    def __init__(self, service: TrainerService | None = None, *, mode: Mode = "auto") -> None:
        self._tiles: dict[SampleImage, Tile] = {}
        self._numbers = 0
        super().__init__(service, mode)
        self.add_class("ot-card")

    # live view ---------------------------------------------------------------------------------

    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        self._gallery = GalleryFront(layout=W.Layout(width="100%"))
        return self._gallery, [self._gallery]

    def _make_core(self) -> Sequence[W.Widget]:
        self._rows = W.Box(layout=W.Layout(display="flex", flex_flow="row wrap", width="100%"))
        self._cards: dict[str, tuple[W.Image, W.Image, W.HTML]] = {}
        self._choice = W.Dropdown(
            options=[], description="Show", layout=W.Layout(width="100%", max_width="560px")
        )
        self._choice.observe(lambda _change: self._show_chosen(), "value")
        self._large = W.Image(
            value=b"", layout=W.Layout(width="100%", max_width="512px", display="none")
        )
        self._words = W.HTML(layout=W.Layout(width="100%"))
        self._viewer = W.VBox(
            [self._choice, self._large, self._words], layout=W.Layout(display="none")
        )
        heading = W.HTML(f'{markup.style()}<div class="ot ot-title"><h3>Samples</h3></div>')
        self._none = W.HTML(markup.no_samples(), layout=W.Layout(width="100%"))
        return [heading, self._none, self._rows, self._viewer]

    def _draw(self, events: Sequence[Event] | None) -> None:
        news = events is None or any(isinstance(e, (SampleImage, TrainingState)) for e in events)
        if not news:
            return
        tiles, note = self._current()
        if self.mode == "core":
            self._draw_core(tiles)
            return
        front = self._gallery
        known = {one["id"] for one in front.archive}
        archive = [one for one in tiles if one["id"] in known]
        recent = [one for one in tiles if one["id"] not in known]
        if len(recent) > RECENT_TILES or events is None:
            archive, recent = tiles, []
        with front.hold_sync():
            front.archive, front.recent, front.note = archive, recent, note

    def _current(self) -> tuple[list[Tile], str]:
        """Tiles of the samples that a page holds, and what to say of the others."""
        samples = list(self.service.history.samples)
        shown = kept(samples)
        for gone in self._tiles.keys() - set(shown):
            del self._tiles[gone]
        for sample in shown:
            if sample not in self._tiles:
                self._numbers += 1
                self._tiles[sample] = tile(sample, self._numbers)
        note = ""
        if len(shown) < len(samples):
            note = f"{len(shown)} of {len(samples)}; the others are in {samples[0].path.parent}."
        return [self._tiles[sample] for sample in shown], note

    def _on_request(self, content: dict[str, Any]) -> None:
        if content.get("op") != "full":
            return
        number = content.get("id")
        for sample, one in list(self._tiles.items()):
            if one["id"] == number:
                try:
                    image, mime = full(sample.path)
                except OSError as error:
                    self._gallery.send({"op": "gone", "id": number, "why": str(error)})
                else:
                    self._gallery.send({"op": "full", "id": number, "mime": mime}, [image])

    # core widgets ------------------------------------------------------------------------------

    def _draw_core(self, tiles: Sequence[Tile]) -> None:
        self._none.layout.display = "none" if tiles else ""
        self._viewer.layout.display = "" if tiles else "none"
        groups = by_prompt(tiles)
        for prompt in self._cards.keys() - groups.keys():
            for widget in self._cards.pop(prompt):
                widget.close()
        for prompt, of in groups.items():
            if prompt not in self._cards:
                size = W.Layout(width="128px", height="128px", object_fit="contain")
                self._cards[prompt] = (W.Image(layout=size), W.Image(layout=size), W.HTML())
            first, latest, words = self._cards[prompt]
            first.value, latest.value = of[0]["image"], of[-1]["image"]
            words.value = (
                f'<div class="ot"><b>{escape(prompt)}</b><br><span class="ot-caption">'
                f"step {of[0]['step']} and step {of[-1]['step']}</span></div>"
            )
        if len(self._rows.children) != len(groups):
            for card in self._rows.children:
                card.close()
            self._rows.children = [_card(*self._cards[prompt]) for prompt in groups]
        chosen = self._choice.value
        options = [(f"step {o['step']}, {o['prompt']}"[:90], o["id"]) for o in reversed(tiles)]
        if list(self._choice.options) != options:
            self._choice.options = options
            if chosen in [number for _, number in options]:
                self._choice.value = chosen

    def _show_chosen(self) -> None:
        for sample, one in list(self._tiles.items()):
            if one["id"] == self._choice.value:
                try:
                    self._large.value = full(sample.path)[0]
                    self._large.layout.display = ""
                    self._words.value = markup.caption(describe(one))
                except OSError as error:
                    self._words.value = markup.caption(f"It cannot be shown: {error}")

    # saved notebook ----------------------------------------------------------------------------

    def story(self) -> str:
        """First and latest sample of each prompt as HTML that needs no kernel."""
        groups = by_prompt(self._current()[0])
        if not groups:
            return markup.no_samples()
        rows = []
        for prompt, of in list(groups.items())[:SNAPSHOT_PROMPTS]:
            ends = [of[0], of[-1]] if len(of) > 1 else [of[0]]
            cells = "".join(_cell(one) for one in ends if one["image"])
            rows.append(f"<tr><td><b>{escape(prompt)}</b></td>{cells}</tr>")
        return f'<h3 class="ot-title">Samples</h3><table>{"".join(rows)}</table>'

    def plain(self) -> str:
        """How many samples there are, and where the last ones lie."""
        samples = list(self.service.history.samples)
        lines = [f"{len(samples)} samples"]
        lines += [f"step {sample.step}: {sample.path}" for sample in samples[-8:]]
        return "\n".join(lines)


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


def _cell(one: Tile) -> str:
    source = data_uri(one["image"], one["mime"])
    return (
        f'<td style="text-align:center"><img width="128" src="{source}" '
        f'alt="{escape(describe(one))}"><br>step {one["step"]}</td>'
    )
