"""The concept editor of core widgets, for front ends that load no modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import ipywidgets as W

from ot_notebook.services.concept_items import Filter
from ot_notebook.services.concept_store import ConceptStore
from ot_notebook.widgets import concept_page as page
from ot_notebook.widgets import item_pictures as pictures
from ot_notebook.widgets import markup
from ot_notebook.widgets.core_concept_parts import ChosenConcept, CoreFilters, sizes_table, tile

PAGE = 24
"""Images on a page."""

EDITS = (
    ("Find and replace", "replace", ("find", "text")),
    ("Add tags at the end", "add_tags", ("tags",)),
    ("Remove tags", "remove_tags", ("tags",)),
    ("Add in front", "prefix", ("text",)),
    ("Add at the end", "suffix", ("text",)),
)
"""Bulk edits: label, action, what its two fields are called."""

EVERY = -1
"""Stands for all concepts in the list."""

PREVIEWED = 20
"""Changes that the preview lists."""

_SHOWN = {W.Box: "flex", W.HTML: ""}
"""How widgets are laid out that are in sight."""

Request = Callable[[Mapping[str, Any]], None]


class CoreConcepts:
    """Concepts, a page of thumbnails, one caption, a bulk edit.

    Args:
        store: the set.
        thumbs: small pictures.
        request: receives edits, as the editor's module sends them.
        chooser: the folder chooser.
        report: gives the report on the set, as `concept_page.report` tells it.
    """

    def __init__(
        self,
        store: ConceptStore,
        thumbs: pictures.Thumbnails,
        request: Request,
        chooser: W.Widget,
        report: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._store, self._thumbs, self._request = store, thumbs, request
        self._report = report
        self._ids: list[int] = []
        self._page = 0
        self._was = ""
        self._loading = False
        self._filter = Filter()
        self._figures: Mapping[str, Any] = {}
        self._head_words, self._notice = _html(), _html()
        self._concept = W.Dropdown(description="Concept", layout=_wide())
        self._concept.observe(self._choose, "value")
        self._chosen = ChosenConcept(self._concepts)
        self._folder = W.Text(placeholder="Folder of images", description="Add", layout=_wide())
        self._filters = CoreFilters(self._ask_filter)
        self._tab = W.ToggleButtons(options=["Images", "Sizes", "Report"], layout=_auto())
        self._tab.add_class("ot-core-tabs")
        self._tab.observe(lambda _change: self._draw_tab(), "value")
        self._other = _html()
        self._tiles = _html()
        self._where = W.HTML()
        self._item = W.Dropdown(description="Image", layout=_wide())
        self._item.observe(lambda _change: self._open(), "value")
        self._image = W.Image(
            layout=W.Layout(max_width="320px", max_height="320px", object_fit="contain")
        )
        self._caption = W.Textarea(description="Caption", rows=5, layout=W.Layout(width="auto"))
        self._edit = W.Dropdown(
            description="Edit all",
            options=[(label, index) for index, (label, _, _) in enumerate(EDITS)],
            layout=_wide(),
        )
        self._fields = [W.Text(layout=_wide()), W.Text(layout=_wide())]
        self._edit.observe(lambda _change: self._name_fields(), "value")
        self._preview = _html()
        self._undo, self._redo = self._button("Undo", "undo"), self._button("Redo", "redo")
        self._name_fields()
        self.children = self._build(chooser)

    def _build(self, chooser: W.Widget) -> list[W.Widget]:
        add = self._act("Add", lambda: self._concepts("add", path=self._folder.value))
        turn = [
            self._act("Previous page", lambda: self._turn(-1)),
            self._act("Next page", lambda: self._turn(1)),
        ]
        moves = [
            self._act("Previous", lambda: self._go(-1)),
            self._act("Save", self._save),
            self._act("Next", lambda: self._go(1)),
        ]
        apply = [self._act("Preview", self._show_preview), self._act("Change", self._apply)]
        search, show, cache = self._filters.search, self._filters.show, self._filters.cache
        caption = W.VBox([self._caption, _row(*moves)], layout=_wide())
        self._images = [
            _row(search, show, cache, self._filters.sizes),
            self._tiles,
            _row(*turn, self._where),
            _row(self._item),
            _row(self._image, caption, align="flex-start"),
            _row(self._edit, *self._fields, *apply),
            self._preview,
        ]
        return [
            self._head_words,
            self._notice,
            _row(self._concept, self._undo, self._redo),
            self._chosen.row,
            _row(self._folder, add, chooser),
            self._tab,
            *self._images,
            self._other,
        ]

    def draw(
        self,
        ids: Sequence[int],
        head: Mapping[str, Any],
        shown: Filter,
        figures: Mapping[str, Any] | None,
    ) -> None:
        """Bring every widget up to date; figures stay as they were where there are none."""
        self._loading = True
        try:
            self._ids, self._filter = list(ids), shown
            self._head_words.value = _head(head)
            self._notice.value = _notice(head["notice"])
            names = [(one.name or one.path, index) for index, one in enumerate(self._concepts_of())]
            self._concept.options = [("All", EVERY), *names]
            chosen = shown.concept
            self._concept.value = EVERY if chosen is None else chosen
            self._chosen.draw(self._concepts_of(), chosen)
            self._undo.disabled, self._redo.disabled = not head["undo"], not head["redo"]
            self._undo.tooltip, self._redo.tooltip = head["undo"], head["redo"]
            self._page = min(self._page, max(0, (len(ids) - 1) // PAGE))
            self._figures = self._figures if figures is None else figures
            self._filters.draw(shown, self._figures)
            self._draw_page()
            self._draw_tab()
        finally:
            self._loading = False

    def _draw_tab(self) -> None:
        """Show the images, the sizes that they train at, or the report."""
        images = self._tab.value == "Images"
        for widget in self._images:
            widget.layout.display = _SHOWN[type(widget)] if images else "none"
        self._other.layout.display = "none" if images else ""
        if self._tab.value == "Sizes":
            self._other.value = sizes_table(page.buckets(self._store))
        elif self._tab.value == "Report":
            told = self._report()
            words = told["why"] if told["ready"] else "Reading the set"
            self._other.value = (
                f'<div class="ot ot-core-report">{told.get("html") or escape(words)}</div>'
            )

    def _concepts_of(self) -> Sequence[Any]:
        return self._store.concepts

    def _draw_page(self) -> None:
        here = self._ids[self._page * PAGE : (self._page + 1) * PAGE]
        rows = [self._store.rows[number] for number in here]
        cells = [tile(row, self._thumbs.get(row), self._store.cache_state(row)) for row in rows]
        self._tiles.value = (
            f'<div class="ot ot-core-tile ot-core-cells">{"".join(cells)}</div>'
            if cells
            else markup.empty("No image fits.", "Add a folder, or change the search.", 120)
        )
        pages = max(1, -(-len(self._ids) // PAGE))
        words = f"Page {self._page + 1:,} of {pages:,}, {len(self._ids):,} images"
        self._where.value = markup.caption(words)
        chosen = self._item.value
        options = [(row.name, row.id) for row in rows]
        if list(self._item.options) != options:
            self._item.options = options
        if here:
            self._item.value = chosen if chosen in here else here[0]
        self._open()

    def _open(self) -> None:
        number = self._item.value
        if number is None:
            self._image.layout.display, self._caption.value = "none", ""
            return
        row = self._store.rows[number]
        try:
            caption = self._store.caption(number)
            self._caption.disabled = False
        except ValueError as error:
            caption, self._caption.disabled = row.caption, True
            self._notice.value = _notice({"tone": "bad", "text": str(error)})
        self._was = self._caption.value = caption
        found = pictures.large(row)
        self._image.layout.display = "" if found else "none"
        if found:
            self._image.value = found[0]

    def _save(self) -> None:
        number, text = self._item.value, self._caption.value
        if number is not None and not self._caption.disabled and text != self._was:
            self._request({"op": "caption", "id": number, "text": text, "was": self._was})

    def _go(self, by: int) -> None:
        """Save, and turn to the next image, over the end of a page."""
        if self._item.value is None:
            return
        place = self._ids.index(self._item.value) + by
        self._save()
        if not 0 <= place < len(self._ids):
            return
        self._page = place // PAGE
        number = self._ids[place]
        self._draw_page()
        self._item.value = number

    def _turn(self, by: int) -> None:
        self._save()
        last = max(0, (len(self._ids) - 1) // PAGE)
        self._page = min(last, max(0, self._page + by))
        self._draw_page()

    def _choose(self, change: Any) -> None:
        if not self._loading:
            concept = None if change.new == EVERY else change.new
            self._ask_filter(asdict(self._filter) | {"concept": concept})

    def _ask_filter(self, wanted: Mapping[str, Any]) -> None:
        self._page = 0
        self._request({"op": "filter", "filter": wanted})

    def _concepts(self, action: str, **given: Any) -> None:
        self._request({"op": "concept", "action": action, **given})

    def _name_fields(self) -> None:
        names = EDITS[self._edit.value][2]
        for field, name in zip(self._fields, (*names, "")[:2], strict=True):
            field.description = name.capitalize()
            field.layout.display = "" if name else "none"

    def _options(self) -> tuple[str, dict[str, str]]:
        _, action, names = EDITS[self._edit.value]
        return action, {n: f.value for n, f in zip(names, self._fields, strict=False)}

    def _show_preview(self) -> None:
        action, options = self._options()
        try:
            found = self._store.preview(action, self._ids, **options)
        except ValueError as error:
            self._preview.value = _notice({"tone": "bad", "text": str(error)})
            return
        rows = "".join(
            f"<tr><td>{escape(one.name)}</td><td>{escape(one.before[:300])}</td>"
            f"<td>{escape(one.after[:300])}</td></tr>"
            for one in found[:PREVIEWED]
        )
        self._preview.value = (
            f'<div class="ot"><b>{len(found):,} captions change.</b>'
            f'<table class="ot-table">{rows}</table></div>'
        )

    def _apply(self) -> None:
        action, options = self._options()
        self._request({"op": "apply", "action": action, "options": options, "where": None})
        self._preview.value = ""

    def _act(self, label: str, action: Callable[[], None]) -> W.Button:
        button = W.Button(description=label, layout=_auto())
        button.on_click(lambda _button: action())
        return button

    def _button(self, label: str, op: str) -> W.Button:
        return self._act(label, lambda: self._request({"op": op}))


def _head(head: Mapping[str, Any]) -> str:
    figures = "Reading the folders" if head["scanning"] else f"{head['total']:,} images"
    if task := head["task"]:
        figures = f"{task['what']}: {task['done']:,} of {task['total']:,}"
    return (
        f'{markup.style("ot.css", "form.css", "concepts.css")}<div class="ot ot-title">'
        f'<h3>Training set</h3><span class="ot-caption">{figures}</span></div>'
    )


def _notice(notice: Mapping[str, Any] | None) -> str:
    if not notice:
        return ""
    return (
        f'<div class="ot ot-tone-{escape(notice["tone"])}"><div class="ot-alert" role="status">'
        f"{escape(notice['text'])}</div></div>"
    )


def _html() -> W.HTML:
    return W.HTML(layout=W.Layout(width="100%"))


def _auto() -> W.Layout:
    return W.Layout(width="auto")


def _wide() -> W.Layout:
    return W.Layout(width="auto", flex="1 1 240px", min_width="0")


def _row(*children: W.Widget, align: str = "center") -> W.Box:
    layout = W.Layout(
        display="flex",
        flex_flow="row wrap",
        width="100%",
        align_items=align,
        grid_gap="6px",
        margin="3px 0",
    )
    return W.Box(list(children), layout=layout)
