"""The samples of a run, by prompt and step: how the model changes as it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import traitlets as t

from modules.config import SampleConfig, TrainConfig
from modules.training.events import Event, SampleImage, TrainingState
from ot_notebook.services.history import History
from ot_notebook.widgets import markup
from ot_notebook.widgets.core_gallery import CoreGallery, describe
from ot_notebook.widgets.described import REFUSALS
from ot_notebook.widgets.live import Front, LiveView, Mode, esm
from ot_notebook.widgets.shelf import MAX_LISTED, Shelf, listed, other_runs, samples_of
from ot_notebook.widgets.thumbnails import (
    MAX_TILES,
    SPARE_TILES,
    Tile,
    by_prompt,
    data_uri,
    full,
    kept,
    tile,
)

if TYPE_CHECKING:
    import pandas as pd

    from ot_notebook.services.trainer_service import TrainerService

RECENT_TILES = 24
"""New pictures travel alone until there are this many; then all are sent once, as the archive."""

SNAPSHOT_PROMPTS = 12
"""Prompts that a saved notebook shows."""

ASKED_AT_ONCE = 48
"""Thumbnails in one answer to the page."""


class GalleryFront(Front):
    """Pictures grouped by prompt, with a large view. `archive` and `recent` are one list."""

    _esm = esm("gallery_viewer.js", "gallery.js")
    _css = markup.css("ot.css", "form.css", "gallery.css")

    archive = t.List(help="`Tile`s, oldest first.").tag(sync=True)
    recent = t.List(help="`Tile`s after those of the archive.").tag(sync=True)
    others = t.List(help="`Listed`s of those whose picture is fetched when seen.").tag(sync=True)
    note = t.Unicode(help="What the page does not hold, in words.").tag(sync=True)
    chosen = t.List(t.Int(), help="Ids of the samples that are selected.").tag(sync=True)
    can_use = t.Bool(help="Whether settings of a sample can be taken up.").tag(sync=True)


class SampleGallery(LiveView):
    """Samples of the run: first and latest of each prompt side by side, all steps between.

    A click shows one large: step by step, zoomed, beside or over any other of any run, or as the
    difference of two. Ctrl and a click selects; `selection()` gives a table of what is selected.

    Args:
        service: whose samples to show; this kernel's trainer by default.
        job: a `JobConfig` whose sample definitions take up the settings of a sample.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.

    Example:
        >>> gallery = ot.SampleGallery()
        >>> gallery.selection()["path"]
    """

    selected = t.List(t.Int(), help="Numbers of the samples that are selected.")
    used = t.Instance(
        SampleConfig, allow_none=True, help="Settings that a person last asked to use again."
    )

    def __init__(
        self, service: TrainerService | None = None, job: Any = None, *, mode: Mode = "auto"
    ) -> None:
        self.job = job
        self._shelf = Shelf()
        self._history: History | None = None
        self._base = 0
        self._tiles: dict[int, Tile] = {}
        super().__init__(service, mode)
        self.add_class("ot-card")

    # from code ---------------------------------------------------------------------------------

    def selection(self) -> pd.DataFrame:
        """The samples that are selected: run, step, epoch, prompt, seed, kind, index, path."""
        return self._shelf.frame(self.selected)

    def use(self, number: int) -> SampleConfig:
        """Take up the settings of a sample: they are `used`, and join the samples of the job.

        Raises:
            KeyError: if there is no such sample.
        """
        definition = self._shelf.definition(number)
        if self.job is not None:
            self.job.update(samples=[*(self.job.config.samples or ()), definition])
        self.used = definition
        return definition

    # live view ---------------------------------------------------------------------------------

    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        self._gallery = GalleryFront(layout=W.Layout(width="100%"), can_use=self.job is not None)
        t.link((self, "selected"), (self._gallery, "chosen"))
        return self._gallery, [self._gallery]

    def _make_core(self) -> Sequence[W.Widget]:
        self._core = CoreGallery(self._shelf)
        return self._core.children

    def _draw(self, events: Sequence[Event] | None) -> None:
        news = events is None or any(isinstance(e, (SampleImage, TrainingState)) for e in events)
        if not news:
            return
        samples = self._take()
        tiles = self._current(samples)
        if self.mode == "core":
            self._core.draw(tiles, [listed(s, self._base + n) for n, s in enumerate(samples)])
            return
        front = self._gallery
        known = {one["id"] for one in front.archive}
        archive = [one for one in tiles if one["id"] in known]
        recent = [one for one in tiles if one["id"] not in known]
        if len(recent) > RECENT_TILES or len(archive) < len(front.archive) or events is None:
            archive, recent = tiles, []
        held = self._tiles.keys()
        numbers = range(self._base, self._base + len(samples))
        others = [
            listed(samples[number - self._base], number)
            for number in numbers[-MAX_LISTED:]
            if number not in held
        ]
        note = ""
        if len(samples) > MAX_LISTED:
            where = samples[0].path.parent.parent
            note = f"{MAX_LISTED} of {len(samples)}; the others are in {where}."
        with front.hold_sync():
            front.archive, front.recent, front.note = archive, recent, note
            if len(others) != len(front.others) or (others and others[0] != front.others[0]):
                front.others = others

    def _take(self) -> list[SampleImage]:
        """All samples of the run that is shown, under numbers from `_base` on."""
        history, run = self.service.history, self.service.run
        samples = history.samples
        if history is not self._history:
            self._history, self._tiles, self.selected = history, {}, []
        name = run.id if run is not None else ""
        self._base = self._shelf.put(
            name, samples, lambda: run.config if run is not None else TrainConfig()
        )
        return samples

    def _current(self, samples: Sequence[SampleImage]) -> list[Tile]:
        """Tiles of the samples whose pictures a page always holds."""
        numbers = {id(sample): self._base + place for place, sample in enumerate(samples)}
        shown = [
            n for n in numbers.values() if n in self._tiles or n > max(self._tiles, default=-1)
        ]
        if len(shown) > MAX_TILES + SPARE_TILES or not self._tiles:
            shown = [numbers[id(sample)] for sample in kept(samples)]
        self._tiles = {
            number: self._tiles.get(number) or tile(samples[number - self._base], number)
            for number in shown
        }
        return list(self._tiles.values())

    # what the page asks for --------------------------------------------------------------------

    def _on_request(self, content: dict[str, Any]) -> None:
        try:
            self._serve(content)
        except REFUSALS as error:
            said = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            self._gallery.send({"op": "gone", "id": content.get("id"), "why": said})

    def _serve(self, content: Mapping[str, Any]) -> None:
        front = self._gallery
        match content:
            case {"op": "full", "id": int(number)}:
                image, mime = full(self._shelf[number].path)
                front.send({"op": "full", "id": number, "mime": mime}, [image])
            case {"op": "thumbs", "ids": [*ids]}:
                made = [tile(self._shelf[int(n)], int(n)) for n in ids[:ASKED_AT_ONCE]]
                told = [{**one, "image": None} for one in made]
                front.send({"op": "thumbs", "tiles": told}, [one["image"] for one in made])
            case {"op": "runs"}:
                front.send({"op": "runs", "runs": other_runs(self.service.run)})
            case {"op": "run", "key": str(key)}:
                name, samples, settings = samples_of(key)
                base = self._shelf.put(name, samples, settings)
                found = [listed(one, base + place) for place, one in enumerate(samples)]
                front.send({"op": "run", "key": key, "samples": found[-MAX_LISTED:]})
            case {"op": "use", "id": int(number)}:
                self.use(number)
                front.send({"op": "used", "id": number})
            case {"op": "where", "id": int(number)}:
                front.send({"op": "where", "id": number, "path": str(self._shelf[number].path)})

    # saved notebook ----------------------------------------------------------------------------

    def story(self) -> str:
        """First and latest sample of each prompt as HTML that needs no kernel."""
        groups = by_prompt(self._current(self._take()))
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


def _cell(one: Tile) -> str:
    source = data_uri(one["image"], one["mime"])
    return (
        f'<td style="text-align:center"><img width="128" src="{source}" '
        f'alt="{escape(describe(one))}"><br>step {one["step"]}</td>'
    )
