"""Draw with a model on a page: prompt, settings, LoRAs, the picture large, and those before it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as W
import traitlets as t

from modules.config import NoiseScheduler
from modules.training.events import Event
from ot_notebook.services.inference_request import ONE_PROMPT
from ot_notebook.services.inference_service import (
    Cancelled,
    InferenceService,
    NoModelError,
    Result,
    inference,
)
from ot_notebook.widgets import markup
from ot_notebook.widgets.core_inference import CoreInference
from ot_notebook.widgets.live import PULL_SECONDS, AdaptiveView, Front, Mode, esm
from ot_notebook.widgets.thumbnails import data_uri, full, shrink

HISTORY = 60
"""Pictures that a page holds; all of them stay in the gallery."""

THUMB_PX = 128
LARGE_PX = 1024
"""Longest edge of the picture in a page's state; the file is fetched on request."""


class InferenceFront(Front):
    """Prompt, settings, LoRAs, result and history. Python holds everything."""

    _esm = esm("inference.js")
    _css = markup.css("ot.css", "form.css", "inference.css")

    view = t.Dict(help="State, progress, model, notice, LoRAs and choices.").tag(sync=True)
    settings = t.Dict(help="What the next picture is drawn with.").tag(sync=True)
    picture = t.Dict(help="The picture shown large; empty where there is none.").tag(sync=True)
    history = t.List(help="Small pictures, newest first.").tag(sync=True)


class InferencePanel(AdaptiveView):
    """Prompt a model, and see what it draws beside what it drew before.

    Args:
        service: whose model to use; this kernel's inference service by default.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.

    Example:
        >>> ot.inference().load(ot.assets.model())
        >>> ot.InferencePanel()
    """

    def __init__(self, service: InferenceService | None = None, *, mode: Mode = "auto") -> None:
        super().__init__(mode)
        self.service = service if service is not None else inference()
        self.results: list[Result] = []
        """What this panel has drawn, oldest first."""
        self._settings: dict[str, Any] = {}
        self._model = ""
        self._shown: int | None = None
        self._notice: dict[str, str] | None = None
        self._code = ""
        self._thread: threading.Thread | None = None
        self._dirty, self._pulled_at, self._drawn_at = False, -math.inf, -math.inf
        self.add_class("ot-card")
        self._unlisten = self.service.subscribe(self._on_status)
        self._use(self.mode)

    # from code ---------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What the next picture is drawn with; change it with `set`."""
        self._adopt()
        return dict(self._settings)

    def set(self, **settings: Any) -> None:
        """Change settings of the next picture; seed None is another one each time.

        Raises:
            ConfigError: for a setting that the model cannot have.
            NoModelError: if no model is loaded.
        """
        self._adopt()
        changed = {**self._settings, **settings}
        self.service.check(**changed)
        self._settings = changed
        self._show()

    def draw(self) -> None:
        """Draw a picture with the settings; returns at once, and shows what comes of it."""
        self._do(self._start)

    def wait(self, timeout: float | None = None) -> Result | None:
        """Wait for the picture that is being drawn, and give the last one."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self.results[-1] if self.results else None

    # what the page asks for --------------------------------------------------------------------

    def _on_request(self, content: dict[str, Any]) -> None:
        match content:
            case {"op": "set", "settings": dict() as settings}:
                self._settings |= {k: v for k, v in settings.items() if k in self._settings}
            case {"op": "draw", "settings": dict() as settings}:
                self._settings |= {k: v for k, v in settings.items() if k in self._settings}
                self._do(self._start)
            case {"op": "stop"}:
                self.service.cancel()
            case {"op": "load", "model": str() as model}:
                self._do(lambda: self._load(model))
            case {"op": "loras", "loras": list() as loras}:
                self._in_line(lambda: self.service.set_loras([(p, s) for p, s in loras]))
            case {"op": "pick", "id": int() as number}:
                self._do(lambda: self._pick(number))
            case {"op": "reuse", "id": int() as number, "seed": bool() as seed}:
                self._in_line(lambda: self._reuse(number, seed))
            case {"op": "code", "id": int() as number}:
                self._do(lambda: self._give_code(number))
            case {"op": "full", "id": int() as number}:
                self._do(lambda: self._give_full(number))

    def _do(self, action: Callable[[], Any]) -> None:
        """Do what a page asked for; a refusal is shown to who asked."""
        self._notice = None
        try:
            action()
        except Exception as error:  # noqa: BLE001 - shown to the person at the page
            self._refuse(error)
        self._show()

    def _in_line(self, action: Callable[[], Any]) -> None:
        """Do what waits for a picture that is being drawn; the page's line stays free for Stop."""
        if self.service.status.state == "ready":
            self._do(action)
        else:
            threading.Thread(target=self._do, args=(action,), daemon=True).start()

    def _refuse(self, error: Exception) -> None:
        self._notice = {"tone": "bad", "title": "Not done", "text": str(error)}

    def _start(self) -> None:
        self._adopt()
        self.service.check(**self._settings)
        self._work(lambda: self.service.generate(**self._settings), "ot-inference")

    def _load(self, model: str) -> None:
        name = model.strip()
        if not name:
            raise ValueError('Write a folder, a file, a hub id, or "live".')
        self._work(lambda: self.service.load(name), "ot-inference-load")

    def _work(self, action: Callable[[], Any], name: str) -> None:
        """Do something long on a thread of its own, one at a time."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("One thing at a time: wait, or press Stop.")

        def work() -> None:
            try:
                answer = action()
                if isinstance(answer, Result):
                    self._take(answer)
            except Cancelled:
                self._notice = {"tone": "hold", "title": "Stopped", "text": "Nothing was kept."}
            except Exception as error:  # noqa: BLE001 - shown to the person at the page
                self._refuse(error)
            self._on_status(final=True)

        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def _take(self, result: Result) -> None:
        self.results.append(result)
        self._shown = len(self.results) - 1
        if result.notes:
            self._notice = {"tone": "hold", "title": "Note", "text": "\n".join(result.notes)}

    def _pick(self, number: int) -> None:
        self._shown, self._code = self._at(number), ""

    def _reuse(self, number: int, seed: bool) -> None:
        """Take the settings of a picture, or its seed alone."""
        recipe = self.results[self._at(number)].recipe
        if seed:
            self._settings["seed"] = recipe.seed
        else:
            self._settings |= recipe.settings()
            self.service.set_loras(recipe.loras)

    def _give_code(self, number: int) -> None:
        self._code = self.service.as_python(self.results[self._at(number)].recipe)

    def _give_full(self, number: int) -> None:
        path = self.results[self._at(number)].path
        if path is not None and self.mode == "rich":
            image, mime = full(path)
            self._front.send({"op": "full", "id": number, "mime": mime}, [image])

    def _at(self, number: int) -> int:
        if not 0 <= number < len(self.results):
            raise ValueError(f"There is no picture {number}.")
        return number

    # drawing -----------------------------------------------------------------------------------

    def _on_status(self, final: bool = False) -> None:
        """Leave the news to a page that pulls; push them to one that does not. See `LiveView`."""
        self._dirty = True
        now = time.monotonic()
        pulled = now - self._pulled_at < PULL_SECONDS
        if final or (not pulled and now - self._drawn_at > 0.2):
            self._show()

    def _pull(self) -> None:
        self._pulled_at = time.monotonic()
        if self._dirty:
            self._show()

    def _show(self) -> None:
        with self._drawing:
            if self._made:
                self._draw(None)

    def _adopt(self) -> None:
        """Take over what a model that is new here draws by itself; the words of a user stay."""
        name = self.service.status.model
        if name == self._model:
            return
        self._model = name
        try:
            usual = self.service.defaults
        except NoModelError:
            return
        kept = {k: v for k, v in self._settings.items() if k in ("prompt", "seed")}
        self._settings = {"seed": None, **usual, **kept}

    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        self._front = InferenceFront(layout=W.Layout(width="100%"))
        return self._front, [self._front]

    def _make_core(self) -> Sequence[W.Widget]:
        self._core = CoreInference(self._on_request)
        return self._core.children

    def _draw(self, events: Sequence[Event] | None) -> None:  # noqa: ARG002
        self._dirty, self._drawn_at = False, time.monotonic()
        self._adopt()
        view, settings, picture = self._view(), dict(self._settings), self._picture()
        if self.mode == "core":
            self._core.draw(view, settings, picture, self._history())
            return
        with self._front.hold_sync():
            if self._front.picture.get("id") != picture.get("id"):
                self._front.picture = picture
                self._front.history = self._history()
            self._front.view, self._front.settings = view, settings

    def _view(self) -> dict[str, Any]:
        status = self.service.status
        kind = status.model_type
        own = bool(self._settings) and "scheduler" not in self._settings
        return {
            "state": status.state,
            "status": _words(self.service),
            "model": status.model,
            "percent": 100 * status.done / status.total if status.total else 0,
            "notice": self._notice,
            "loras": [
                {"path": str(path), "name": path.stem, "strength": strength}
                for path, strength in self.service.loras
            ],
            "schedulers": [] if own else [scheduler.value for scheduler in NoiseScheduler],
            "negative": kind not in ONE_PROMPT,
            "code": self._code,
        }

    def _picture(self) -> dict[str, Any]:
        if self._shown is None:
            return {}
        result = self.results[self._shown]
        whole = max(result.image.size) <= LARGE_PX and result.path is not None
        try:
            image, mime = (
                full(result.path)
                if whole and result.path is not None
                else shrink(result.image, LARGE_PX)
            )
        except OSError:  # the file was removed; the picture is still here
            image, mime = shrink(result.image, LARGE_PX)
        return {
            "id": self._shown,
            "image": image,
            "mime": mime,
            "width": result.image.width,
            "height": result.image.height,
            "prompt": result.recipe.prompt,
            "words": describe(result),
            "path": str(result.path or ""),
        }

    def _history(self) -> list[dict[str, Any]]:
        numbered = list(enumerate(self.results))[-HISTORY:]
        return [_small(number, result) for number, result in reversed(numbered)]

    # saved notebook ----------------------------------------------------------------------------

    def story(self) -> str:
        """The last pictures as HTML that needs no kernel."""
        if not self.results:
            return markup.empty("No picture was drawn.", "Load a model and write a prompt.", 150)
        cells = []
        for result in self.results[-8:]:
            source = data_uri(*shrink(result.image, 2 * THUMB_PX), edge=2 * THUMB_PX)
            words = escape(describe(result))
            cells.append(
                f'<td style="text-align:center;vertical-align:top"><img width="160" '
                f'src="{source}" alt="{words}"><br>{escape(result.recipe.prompt[:80])}</td>'
            )
        return f'<h3 class="ot-title">Pictures</h3><table><tr>{"".join(cells)}</tr></table>'

    def plain(self) -> str:
        """What was drawn, in a few lines."""
        lines = [_words(self.service)]
        lines += [f"{one.recipe.prompt}: {one.path}" for one in self.results[-8:]]
        return "\n".join(lines)

    def close(self) -> None:
        """Leave the service, which goes on as it is, and free everything on the page."""
        unlisten = getattr(self, "_unlisten", None)
        if unlisten is not None:
            unlisten()
        super().close()


def describe(result: Result) -> str:
    """What decided a picture, in words."""
    recipe = result.recipe
    parts = [
        f"seed {recipe.seed}",
        f"{recipe.width} x {recipe.height} px",
        f"{recipe.steps} steps",
        f"guidance {recipe.cfg_scale:g}",
        *([recipe.scheduler] if recipe.scheduler else []),
        *(f"{path.rpartition('/')[2]} {strength:g}" for path, strength in recipe.loras),
        f"{result.seconds:.1f} s",
    ]
    return " · ".join(parts)


def _small(number: int, result: Result) -> dict[str, Any]:
    image, mime = shrink(result.image, THUMB_PX)
    return {
        "id": number,
        "image": image,
        "mime": mime,
        "small": max(result.image.size) <= THUMB_PX,
        "words": f"{result.recipe.prompt}, {describe(result)}",
    }


def _words(service: InferenceService) -> str:
    status = service.status
    match status.state:
        case "empty":
            return "No model is loaded."
        case "loading":
            return status.words
        case "drawing":
            return f"{status.words or 'Drawing'}: step {status.done} of {status.total}"
        case _:
            return f"Ready: {status.model}"
