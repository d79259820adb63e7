"""The inference panel of core widgets, for front ends that load no modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import ipywidgets as W

from ot_notebook.widgets import markup
from ot_notebook.widgets.core_inference_tools import CRISP_PX, CoreTools, image_tag, video_tag
from ot_notebook.widgets.inference_front import choices

Request = Callable[[dict[str, Any]], None]

NUMBERS = ("width", "height", "frames", "steps", "seed", "clip_skip")


class CoreInference:
    """The same controls as the module's, sending the same requests.

    Args:
        request: receives them.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._loading = False
        self.tools = CoreTools(request, self._send)
        """Starts, grids and comparisons."""
        heading = f'{markup.style()}<div class="ot ot-title"><h3>Inference</h3></div>'
        self.children = [
            W.HTML(heading),
            *self._model_rows(),
            *self._setting_rows(),
            *self._stack_rows(),
            *self.tools.form,
            *self._picture_rows(),
        ]

    def _model_rows(self) -> list[W.Widget]:
        self._model = _path("Model", 'A folder, a file, a hub id, or "live"')
        known = choices()
        self._type, self._dtype = (
            W.Dropdown(
                description=title,
                options=[(first, ""), *((name, value) for value, name in known[key])],
                layout=W.Layout(width="280px", max_width="100%"),
            )
            for title, first, key in (
                ("Type", "what it says", "types"),
                ("Precision", "what suits the device", "dtypes"),
            )
        )
        self._offload = W.Checkbox(description="Keep layers in main memory", indent=False)
        load = _button("Load", self._load)
        unload = _button("Unload", lambda: self._request({"op": "unload"}))
        self._status, self._load_notice = W.HTML(layout=_wide()), W.HTML(layout=_wide())
        return [
            _row(self._model, load, unload),
            _row(self._type, self._dtype, self._offload),
            self._status,
            self._load_notice,
        ]

    def _setting_rows(self) -> list[W.Widget]:
        self._prompt = W.Textarea(description="Prompt", rows=2, layout=_wide())
        self._negative = W.Textarea(description="Negative", rows=1, layout=_wide())
        self._numbers = {
            name: W.Text(description=name.capitalize().replace("_", " ")) for name in NUMBERS
        }
        self._numbers["seed"].placeholder = "another each time"
        self._guidance = W.Text(description="Guidance")
        self._scheduler = W.Dropdown(description="Scheduler", options=[])
        rest = (*self._numbers.values(), self._guidance, self._scheduler)
        for control in rest:
            control.layout = W.Layout(width="auto", flex="0 1 220px")
        return [self._prompt, self._negative, _row(*rest)]

    def _stack_rows(self) -> list[W.Widget]:
        """LoRAs and words, each with what adds one."""
        self._lora = _path("LoRA", "Path of a LoRA")
        self._added: list[list[Any]] = []
        self._loras = W.VBox(layout=_wide())
        self._file = _path("Embedding", "Path of an embedding file")
        self._word = W.Text(placeholder="Its word", layout=W.Layout(flex="0 1 120px", width="auto"))
        self._taught: list[list[str]] = []
        self._words_held = W.VBox(layout=_wide())
        return [
            _row(self._lora, _button("Add", self._add)),
            self._loras,
            _row(self._file, self._word, _button("Add word", self._teach)),
            self._words_held,
        ]

    def _picture_rows(self) -> list[W.Widget]:
        self._draw_button = _button("Draw", self._ask, "primary")
        self._stop_button = _button("Stop", lambda: self._request({"op": "stop"}), "danger")
        self._notice = W.HTML(layout=_wide())
        self._image = W.HTML(layout=W.Layout(width="100%", display="none"))
        self._words = W.HTML(layout=_wide())
        self._choice = W.Dropdown(description="Show", options=[], layout=_wide())
        self._choice.observe(self._pick, "value")
        self._again = _button("Use its settings", lambda: self._of_shown("reuse", seed=False))
        self._seed = _button("Use its seed", lambda: self._of_shown("reuse", seed=True))
        self._code = W.Textarea(rows=8, layout=W.Layout(width="100%", display="none"))
        self._code.disabled = True
        self._shown: int | None = None
        return [
            _row(self._draw_button, self._stop_button),
            self._notice,
            self._image,
            self._words,
            self._choice,
            _row(self._again, self._seed),
            *self.tools.below,
            self._code,
        ]

    def draw(
        self,
        view: Mapping[str, Any],
        settings: Mapping[str, Any],
        picture: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
    ) -> None:
        """Bring every widget up to date."""
        self._loading = True
        try:
            busy = view["state"] in ("drawing", "loading")
            self._draw_button.disabled, self._stop_button.disabled = busy, not busy
            self._status.value = _bar(view)
            notice = view["notice"] or {}
            of_loading = notice.get("place") == "model"
            self._load_notice.value = _alert(notice if of_loading else {})
            self._notice.value = _alert({} if of_loading else notice)
            self._negative.layout.display = "" if view["negative"] else "none"
            self._scheduler.layout.display = "" if view["schedulers"] else "none"
            if list(self._scheduler.options) != view["schedulers"]:
                self._scheduler.options = view["schedulers"]
            if not busy:  # what is being typed meanwhile stays
                self._fill(settings)
            self._draw_loras(view["loras"])
            self._draw_words(view["words"])
            self._code.value = view["code"]
            self._code.layout.display = "" if view["code"] else "none"
            self._draw_picture(picture, history)
        finally:
            self._loading = False

    def _fill(self, settings: Mapping[str, Any]) -> None:
        self._prompt.value = settings.get("prompt", "")
        self._negative.value = settings.get("negative_prompt", "")
        for name, box in self._numbers.items():
            value = settings.get(name)
            box.layout.display = "" if name in settings or name == "seed" else "none"
            box.value = "" if value is None else str(value)
        self._guidance.value = str(settings.get("cfg_scale", ""))
        if settings.get("scheduler") in self._scheduler.options:
            self._scheduler.value = settings["scheduler"]

    def _draw_loras(self, loras: Sequence[Mapping[str, Any]]) -> None:
        listed = [[one["path"], one["strength"]] for one in loras]
        if listed == self._added:
            return
        self._added = listed
        for child in self._loras.children:
            child.close()
        rows = []
        for place, one in enumerate(loras):
            box = W.FloatText(value=one["strength"], description=one["name"][:24], step=0.1)
            box.observe(partial(self._strength, place), "value")
            rows.append(_row(box, _button("Remove", partial(self._remove, place))))
        self._loras.children = rows

    def _draw_words(self, words: Sequence[Mapping[str, Any]]) -> None:
        listed = [[one["word"], one["path"]] for one in words]
        if listed == self._taught:
            return
        self._taught = listed
        for child in self._words_held.children:
            child.close()
        rows = []
        for place, (word, path) in enumerate(listed):
            label = W.HTML(f"<b>{escape(word)}</b> {escape(path)}")
            rows.append(_row(label, _button("Remove", partial(self._forget, place))))
        self._words_held.children = rows

    def _draw_picture(
        self, picture: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> None:
        self._shown = picture.get("id")
        self._image.layout.display = "" if picture else "none"
        if picture:
            crisp = max(picture["width"], picture["height"]) <= CRISP_PX
            style = f"width:{max(256, min(512, picture['width']))}px"
            alt = picture["prompt"] or "A picture without a prompt"
            self._image.value = video_tag(picture["film"], alt, style) or image_tag(
                picture["image"], picture["mime"], alt, style, crisp
            )
            self._words.value = markup.caption(f"{picture['prompt']} · {picture['words']}")
        self.tools.show(self._shown)
        for control in (self._again, self._seed):
            control.disabled = not picture
        self._offer(history)

    def _offer(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Let each of the earlier pictures be shown."""
        options: list[tuple[str, int | str]] = [(_line(one), one["id"]) for one in history]
        chosen = self._shown if self._shown in [number for _, number in options] else ""
        if chosen == "":
            options = [("choose one", ""), *options]
        if list(self._choice.options) != options:
            self._choice.options = options
        self._choice.value = chosen
        self._choice.layout.display = "" if history else "none"

    def _ask(self) -> None:
        self._send("draw", {})

    def _send(self, op: str, more: dict[str, Any]) -> None:
        """Send the settings as they are written."""
        settings: dict[str, Any] = {
            "prompt": self._prompt.value,
            "negative_prompt": self._negative.value,
            "cfg_scale": _number(self._guidance.value, float),
        }
        for name, box in self._numbers.items():
            settings[name] = _number(box.value, int)
        if self._scheduler.options:
            settings["scheduler"] = self._scheduler.value
        settings["strength"] = _number(self.tools.strength.value, float)
        self._request({"op": op, "settings": settings, **more})

    def _load(self) -> None:
        how = {"model_type": self._type.value, "dtype": self._dtype.value}
        given = {"model": self._model.value, **how, "offload": self._offload.value}
        self._request({"op": "load", **given})

    def _teach(self) -> None:
        words = [*self._taught, [self._word.value.strip(), self._file.value.strip()]]
        self._request({"op": "words", "words": words})

    def _forget(self, place: int) -> None:
        words = [one for at, one in enumerate(self._taught) if at != place]
        self._request({"op": "words", "words": words})

    def _add(self) -> None:
        loras = [*self._added, [self._lora.value.strip(), 1.0]]
        self._request({"op": "loras", "loras": loras})

    def _strength(self, place: int, change: Any) -> None:
        if not self._loading:
            self._added[place][1] = change.new
            self._request({"op": "loras", "loras": self._added})

    def _remove(self, place: int) -> None:
        loras = [one for at, one in enumerate(self._added) if at != place]
        self._request({"op": "loras", "loras": loras})

    def _pick(self, change: Any) -> None:
        if not self._loading and isinstance(change.new, int):
            self._request({"op": "pick", "id": change.new})

    def _of_shown(self, op: str, **more: Any) -> None:
        if self._shown is not None:
            self._request({"op": op, "id": self._shown, **more})


def _number(text: str, kind: type[int] | type[float]) -> Any:
    """The number that was written; what is none goes on as it is, to be refused by name."""
    try:
        return kind(text) if text.strip() else None
    except ValueError:
        return text


def _line(one: Mapping[str, Any]) -> str:
    """An earlier picture in a line; those drawn here are counted."""
    count = f"{one['id'] + 1}: " if one["id"] >= 0 else ""
    return f"{count}{one['words']}"[:90]


def _button(label: str, action: Callable[[], None], style: str = "") -> W.Button:
    button = W.Button(description=label, button_style=style, layout=W.Layout(width="auto"))
    button.on_click(lambda _pressed: action())
    return button


def _path(title: str, hint: str) -> W.Text:
    layout = W.Layout(flex="1 1 260px", width="auto")
    return W.Text(placeholder=hint, description=title, layout=layout)


def _wide() -> W.Layout:
    return W.Layout(width="100%")


def _row(*widgets: W.Widget) -> W.Box:
    layout = W.Layout(
        display="flex", flex_flow="row wrap", width="100%", grid_gap="4px", overflow="visible"
    )  # what a box hides has a bar to scroll, even where all of it is in sight
    return W.Box(list(widgets), layout=layout)


def _bar(view: Mapping[str, Any]) -> str:
    percent = round(view["percent"])
    return (
        f'<div class="ot ot-tone-run"><div class="ot-bar-text"><span>{escape(view["status"])}'
        f'</span></div><div class="ot-track" role="progressbar" aria-label="Progress" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}">'
        f'<div class="ot-fill" style="width:{percent}%"></div></div></div>'
    )


def _alert(notice: Mapping[str, str]) -> str:
    if not notice:
        return ""
    return (
        f'<div class="ot"><div class="ot-alert ot-tone-{notice["tone"]}" role="alert">'
        f"<b>{escape(notice['title'])}</b>\n{escape(notice['text'])}</div></div>"
    )
