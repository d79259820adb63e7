"""Starts, grids and comparisons of the inference panel in core widgets."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as W

from ot_notebook.services.inference_axes import spoken
from ot_notebook.widgets import markup
from ot_notebook.widgets.thumbnails import data_uri

Request = Callable[[dict[str, Any]], None]

CRISP_PX = 128
"""Smaller pictures show their pixels: blurred, a 64 px drawing looks broken."""

WHOLE = 1 << 20
"""An edge that no picture has: none is made smaller here."""

ROWS = ("Across", "Down", "Sheets")
COPIES = {
    "Python": "python",
    "A1111 settings": "web",
    "ComfyUI workflow": "comfy",
    "Sample definition": "sample",
}


class CoreTools:
    """The same requests as the module's folds send.

    Args:
        request: receives them.
        ask: sends the settings of the form beside others.
    """

    def __init__(self, request: Request, ask: Callable[[str, dict[str, Any]], None]) -> None:
        self._request, self._loading = request, False
        self._image = _path("Begin with", "Path of a picture", self._begin)
        self._mask = _path("Mask", "Path of a mask, white where to paint", self._paint)
        self._shown: int | None = None
        begin = _button("The one shown", lambda: self._of_shown("begin"))
        self._offered = W.Dropdown(
            description="Earlier", options=[("", "")], layout=W.Layout(flex="1 1 260px")
        )
        self._offered.layout.display = "none"
        self._offered.observe(self._chosen, "value")
        find = _button("Earlier ones", lambda: request({"op": "starts"}))
        none = _button("Begin with none", lambda: request({"op": "begin"}))
        self._settings = _path("Settings of", "Path of a PNG", self._settings_of)
        self.strength = W.Text(description="Strength", layout=W.Layout(flex="0 1 220px"))
        self._axes = [
            (
                W.Dropdown(description=row, options=[], layout=W.Layout(flex="0 1 260px")),
                W.Text(placeholder="1, 3, 7 or 1-5", layout=W.Layout(flex="1 1 200px")),
            )
            for row in ROWS
        ]
        draw = _button("Draw grid", lambda: ask("grid", {"axes": self._written()}))
        over = _button("Over all saves", lambda: ask("grid", {"axes": [["save", ""]]}))
        self._series = W.Dropdown(
            description="Of the grid",
            options=[("", -1)],
            layout=W.Layout(width="100%", display="none"),
        )
        self._series.observe(self._leaf, "value")
        self._sheet = W.HTML(layout=W.Layout(width="100%", display="none"))
        self._sheet_words = W.HTML(layout=W.Layout(width="100%"))
        compare = _button("Compare others with it", lambda: self._of_shown("beside"))
        done = _button("Done comparing", lambda: request({"op": "beside"}))
        self._copy = W.Dropdown(
            description="Copy as", options=[("", ""), *COPIES.items()], value="",
            layout=W.Layout(flex="0 1 240px"),
        )  # fmt: skip
        self._copy.observe(self._copied, "value")
        self._sample = _button("Add to samples", lambda: self._of_shown("sample"))
        self._base, self._top, self._map = (W.HTML() for _ in range(3))
        for image in (self._base, self._top, self._map):
            image.layout = W.Layout(flex="0 1 30%", max_width="320px", margin="2px")
        self._pair = _row(self._base, self._top, self._map)
        self._pair.layout.display = "none"
        self._pair_words = W.HTML()
        self._begin_box = W.VBox(
            [
                _row(self._image, begin, find, none),
                _row(self._offered),
                _row(self._mask),
                _row(self.strength),
            ]
        )
        self.form = [
            self._begin_box,
            *(_row(select, values) for select, values in self._axes),
            _row(draw, over),
            _row(self._settings),
        ]
        """What stands above the picture."""
        self.below = [
            self._series,
            _row(compare, done, self._copy, self._sample),
            self._pair,
            self._pair_words,
            self._sheet,
            self._sheet_words,
        ]
        """What stands below it."""

    def draw(
        self,
        view: Mapping[str, Any],
        settings: Mapping[str, Any],
        other: Mapping[str, Any],
        sheet: Mapping[str, Any],
    ) -> None:
        """Bring every widget up to date."""
        self._loading = True
        try:
            self._begin_box.layout.display = "" if view["abilities"]["image"] else "none"
            self._mask.layout.display = "" if view["abilities"]["mask"] else "none"
            self._sample.layout.display = "" if view["job"] else "none"
            self._image.value = settings.get("image") or ""
            self._mask.value = settings.get("mask") or ""
            if view["state"] not in ("drawing", "loading"):
                self.strength.value = str(settings.get("strength", ""))
            names = [("nothing", ""), *((spoken(name), name) for name in view["axes"])]
            for select, _ in self._axes:
                if list(select.options) != names:
                    chosen = select.value
                    select.options = names
                    select.value = chosen if chosen in view["axes"] else ""
            self._draw_series(view["series"])
            self._draw_pair(other)
            self._sheet.layout.display = "" if sheet else "none"
            if sheet:
                self._sheet.value = image_tag(sheet["image"], sheet["mime"], "The whole grid")
                words = markup.caption(sheet["words"])
                self._sheet_words.value = f'<div style="overflow-wrap:anywhere">{words}</div>'
        finally:
            self._loading = False

    def show(self, number: int | None) -> None:
        """Remember which picture is shown."""
        self._shown = number
        ids = [value for _, value in self._series.options]
        if number in ids and self._series.value != number:
            self._loading, before = True, self._loading
            self._series.value = number
            self._loading = before

    def _draw_series(self, series: Sequence[Mapping[str, Any]]) -> None:
        options = [(one["label"], one["id"]) for one in series] or [("", -1)]
        if list(self._series.options) != options:
            self._series.options = options
        self._series.layout.display = "" if len(series) > 1 else "none"

    def _draw_pair(self, other: Mapping[str, Any]) -> None:
        there = bool(other) and other["id"] != other["to"]
        self._pair.layout.display = "flex" if there else "none"
        self._pair_words.value = markup.caption(other["distance"]) if there else ""
        if there:
            crisp = max(other["width"], other["height"]) <= CRISP_PX
            mime, style = other["mime"], "width:100%"
            self._base.value = image_tag(other["image"], mime, "A, kept to compare", style, crisp)
            self._top.value = image_tag(other["shown"], mime, "B, the one shown", style, crisp)
            difference = other["difference"], other["difference_mime"]
            self._map.value = image_tag(*difference, "Where A and B differ", style, crisp)

    def _written(self) -> list[list[str]]:
        return [[select.value, values.value] for select, values in self._axes if select.value]

    def _leaf(self, change: Any) -> None:
        if not self._loading and change.new is not None and change.new >= 0:
            self._request({"op": "pick", "id": change.new})

    def _copied(self, change: Any) -> None:
        if change.new:
            self._of_shown("code", **{"as": change.new})
            self._copy.value = ""

    def offer(self, starts: Sequence[Mapping[str, Any]]) -> None:
        """Let one of these pictures be chosen to begin with."""
        options = [("choose one", ""), *((one["words"][:80], one["path"]) for one in starts)]
        if list(self._offered.options) != options:
            self._loading, before = True, self._loading
            self._offered.options = options
            self._loading = before
        self._offered.layout.display = "" if starts else "none"

    def _chosen(self, change: Any) -> None:
        if not self._loading and change.new:
            self._request({"op": "begin", "path": change.new})

    def _begin(self, path: str) -> None:
        if not self._loading:
            self._request({"op": "begin", **({"path": path} if path else {})})

    def _paint(self, path: str) -> None:
        if not self._loading:
            self._request({"op": "mask", "path": path})

    def _settings_of(self, path: str) -> None:
        if path:
            self._request({"op": "png", "path": path})

    def _of_shown(self, op: str, **more: Any) -> None:
        if self._shown is not None:
            self._request({"op": op, "id": self._shown, **more})


def image_tag(image: bytes, mime: str, alt: str, style: str = "", crisp: bool = False) -> str:
    """A picture with words for those who do not see it, which an `Image` widget cannot have."""
    name = ' class="ot-crisp"' if crisp else ""
    source = data_uri(image, mime, edge=WHOLE)
    return f'<img{name} alt="{escape(alt)}" src="{source}" style="max-width:100%;{style}">'


def video_tag(film: bytes, alt: str, style: str) -> str:
    """A film with its controls; empty where there is none."""
    if not film:
        return ""
    source = f"data:video/mp4;base64,{base64.b64encode(film).decode()}"
    return (
        f'<video controls loop muted playsinline aria-label="{escape(alt)}" src="{source}" '
        f'style="max-width:100%;{style}"></video>'
    )


def _path(description: str, hint: str, given: Callable[[str], None]) -> W.Text:
    """A line that sends what was written when it is left, or Enter is pressed."""
    layout = W.Layout(flex="1 1 260px", width="auto")
    box = W.Text(description=description, placeholder=hint, continuous_update=False, layout=layout)
    box.observe(lambda change: given(change.new.strip()), "value")
    return box


def _button(label: str, action: Callable[[], None]) -> W.Button:
    button = W.Button(description=label, layout=W.Layout(width="auto"))
    button.on_click(lambda _pressed: action())
    return button


def _row(*widgets: W.Widget) -> W.Box:
    layout = W.Layout(
        display="flex", flex_flow="row wrap", width="100%", grid_gap="4px", overflow="visible"
    )
    return W.Box(list(widgets), layout=layout)
