"""Draw with a model on a page: prompt, settings, LoRAs, the picture large, and those before it."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets as W

from modules.training.events import Event
from ot_notebook.services.inference_grid import Grid
from ot_notebook.services.inference_recipe import Recipe, read_recipe
from ot_notebook.services.inference_request import STRENGTH, refused
from ot_notebook.services.inference_result import Preview
from ot_notebook.services.inference_service import (
    Cancelled,
    InferenceService,
    NoModelError,
    Result,
    inference,
)
from ot_notebook.widgets.core_inference import CoreInference
from ot_notebook.widgets.inference_front import (
    InferenceFront,
    Place,
    asked_for,
    choices,
    for_page,
    grid_for,
    seed_of,
    state_words,
    told,
    view_of,
    word_of,
)
from ot_notebook.widgets.inference_history import History
from ot_notebook.widgets.inference_pictures import (
    as_text,
    begun,
    beside,
    large,
    on_the_way,
    series,
    sheet,
    starts,
    story,
)
from ot_notebook.widgets.inference_upload import MAX_UPLOAD, Upload
from ot_notebook.widgets.live import PULL_SECONDS, AdaptiveView, Front, Mode
from ot_notebook.widgets.texts import brief

Answer = TypeVar("Answer")


class InferencePanel(AdaptiveView):
    """Prompt a model, and see what it draws beside what it drew before.

    Args:
        service: whose model to use; this kernel's inference service by default.
        job: a `JobConfig`, to whose samples pictures can be added.
        mode: "auto", "rich" or "core"; see `AdaptiveView`.

    Example:
        >>> ot.inference().load(ot.assets.model())
        >>> ot.InferencePanel()
    """

    def __init__(
        self, service: InferenceService | None = None, *, job: Any = None, mode: Mode = "auto"
    ) -> None:
        super().__init__(mode)
        self.service = service if service is not None else inference()
        self._past = History(self.service.gallery)
        self.grid: Grid | None = None
        """The grid that was drawn last."""
        self.job = job
        self._settings: dict[str, Any] = {}
        self._loaded = 0
        self._shown: tuple[int, Result] | None = None
        self._beside: tuple[int, Result] | None = None
        self._series: list[dict[str, Any]] = []
        self._starts: list[dict[str, Any]] = []
        self._kept: dict[str, tuple[Any, Any]] = {}
        self._preview: Preview | None = None
        self._upload = Upload()
        self._abilities = {"image": False, "mask": False}
        self._notice: dict[str, str] | None = None
        self._newest = False  # whether each picture is shown as it comes
        self._code = ""
        self._thread: threading.Thread | None = None
        self._dirty, self._pulled_at, self._drawn_at = False, -math.inf, -math.inf
        self.add_class("ot-card")
        self._unlisten = [
            self.service.follow(self._follow),
            self.service.subscribe(self._on_status),
            self._past.close,
        ]
        self._use(self.mode)

    # from code ---------------------------------------------------------------------------------

    @property
    def results(self) -> list[Result]:
        """The last pictures that this panel has drawn, oldest first; all are in the gallery."""
        return self._past.results

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
        self.service.check(**asked_for(changed))
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

    def _on_message(self, front: Front, content: dict[str, Any], buffers: Any) -> None:
        """Pictures come beside a message, everything else inside it."""
        match content:
            case {"op": "start" | "mask" | "png" as op} if buffers:
                place: Place = "draw" if op == "png" else "start"
                part = bytes(buffers[0])
                self._do(lambda: self._given(op, self._upload.add(content, part)), place)
            case _:
                super()._on_message(front, content, buffers)

    def _on_request(self, content: dict[str, Any]) -> None:
        match content:
            case {"op": "set", "settings": dict() as settings}:
                self._keep(settings)
            case {"op": "draw", "settings": dict() as settings}:
                self._keep(settings)
                self._do(self._start)
            case {"op": "grid", "axes": list() as axes, "settings": dict() as settings}:
                self._keep(settings)
                written = [(str(name), str(text)) for name, text in axes]
                self._do(lambda: self._start_grid(written), "grid")
            case {"op": "stop"}:
                self.service.cancel()
            case {"op": "load", "model": str() as model}:
                self._do(lambda: self._load(model, content), "model")
            case {"op": "unload"}:
                self._in_line(self.service.unload)
            case {"op": "starts"}:
                self._do(self._find_starts)
            case {"op": "words", "words": list() as words}:
                held = [word_of(*one) for one in words]
                self._in_line(lambda: self.service.set_embeddings(held), "words")
            case {"op": "loras", "loras": list() as loras}:
                stack = [(path, strength) for path, strength in loras]
                self._in_line(lambda: self.service.set_loras(stack), "loras")
            case {"op": "begin", "id": int() as number}:
                self._do(lambda: self._begin(str(self._past.told(number).path)), "start")
            case {"op": "begin", "path": str() as path}:
                self._do(lambda: self._begin(path), "start")
            case {"op": "begin"}:
                self._do(lambda: self._begin(""), "start")
            case {"op": "mask", "path": str() as path}:
                self._do(lambda: self._mask(path), "start")
            case {"op": "png", "path": str() as path}:
                self._do(lambda: self._take_settings(read_recipe(Path(path).expanduser())))
            case _:
                self._on_picture(content)

    def _on_picture(self, content: dict[str, Any]) -> None:
        """What is asked about a picture that was drawn."""
        self._newest = False  # it stays in sight
        match content:
            case {"op": "pick", "id": int() as number}:
                self._do(lambda: self._pick(number))
            case {"op": "beside", "id": int() as number}:
                self._do(lambda: self._lay_beside(number))
            case {"op": "beside"}:
                self._do(lambda: self._lay_beside(None))
            case {"op": "reuse", "id": int() as number, "seed": bool() as seed}:
                self._in_line(lambda: self._reuse(number, seed))
            case {"op": "code", "id": int() as number}:
                self._do(lambda: self._give_code(number, str(content.get("as", "python"))))
            case {"op": "sample", "id": int() as number}:
                self._do(lambda: self._add_sample(number))

    def _keep(self, settings: dict[str, Any]) -> None:
        """What a page writes; the pictures to begin with come another way."""
        own = self._settings.keys() - {"image", "mask"}
        kept = {name: value for name, value in settings.items() if name in own}
        if "seed" in kept:
            kept["seed"] = seed_of(kept["seed"])
        self._settings |= kept

    def _do(self, action: Callable[[], Any], place: Place = "draw") -> None:
        """Do what a page asked for; a refusal is shown where it was asked."""
        self._notice = None
        try:
            action()
        except Exception as error:  # noqa: BLE001 - shown to the person at the page
            self._refuse(error, place)
        self._show()

    def _in_line(self, action: Callable[[], Any], place: Place = "draw") -> None:
        """Do what waits for a picture that is being drawn; the page's line stays free for Stop."""
        if self.service.status.state == "ready":
            self._do(action, place)
        else:
            threading.Thread(target=self._do, args=(action, place), daemon=True).start()

    def _refuse(self, error: Exception, place: Place) -> None:
        self._notice = {"tone": "bad", "title": "Not done", "text": told(error), "place": place}

    def _start(self) -> None:
        self._adopt()
        asked = asked_for(self._settings)
        self.service.check(**asked)
        self._work(lambda: self.service.generate(**asked, preview=self._see), "ot-inference")

    def _start_grid(self, axes: list[tuple[str, str]]) -> None:
        """Draw a grid of what was written; its pictures are a series."""
        asked = grid_for(self.service, axes, self._settings)

        def draw() -> Grid:
            self._newest = True
            return self.service.grid(**asked)

        self._work(draw, "ot-inference-grid", "grid")

    def _see(self, preview: Preview) -> None:
        self._preview = preview

    def _load(self, model: str, how: dict[str, Any]) -> None:
        name = model.strip()
        if not name:
            raise ValueError('Write a folder, a file, a hub id, or "live".')
        given = {key: how[key] for key in ("model_type", "dtype", "offload") if how.get(key)}
        self._work(lambda: self.service.load(name, **given), "ot-inference-load", "model")

    def _find_starts(self) -> None:
        self._starts = starts(self.service)

    def _work(self, action: Callable[[], Any], name: str, place: Place = "draw") -> None:
        """Do something long on a thread of its own, one at a time."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("One thing at a time: wait, or press Stop.")

        def work() -> None:
            try:
                answer = action()
                if isinstance(answer, Result):
                    self._take(answer)
                elif isinstance(answer, Grid):
                    self._take_grid(answer)
            except Cancelled as stopped:
                self._notice = {"tone": "hold", "title": "Stopped", "text": str(stopped)}
            except Exception as error:  # noqa: BLE001 - shown to the person at the page
                self._refuse(error, place)
            self._preview, self._newest = None, False
            self._trim()
            self._on_status(final=True)

        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def _take(self, result: Result) -> None:
        self._pick(self._past.add(result))
        if result.notes:
            self._notice = {"tone": "hold", "title": "Note", "text": "\n".join(result.notes)}

    def _take_grid(self, grid: Grid) -> None:
        """Keep the sheet, and its pictures as a series."""
        self.grid = grid
        numbers = [self._past.add(result) for result in grid.results]
        self._pick(numbers[0])
        self._series = series(grid, numbers)

    def _follow(self, result: Result) -> None:
        """Take up a picture, whoever asked for it."""
        number = self._past.add(result, own=False)
        if self._newest:
            self._pick(number)
        if self._thread is None or not self._thread.is_alive():  # else that is on the way
            self._trim()
        self._on_status()

    def _trim(self) -> None:
        """Hold what the page can show, and no more."""
        large = {pair[0] for pair in (self._shown, self._beside) if pair is not None}
        self._past.trim(large | {one["id"] for one in self._series})

    def _pick(self, number: int) -> None:
        self._shown, self._code = (number, self._past[number]), ""

    def _lay_beside(self, number: int | None) -> None:
        self._beside = None if number is None else (number, self._past[number])

    def _reuse(self, number: int, seed: bool) -> None:
        """Take the settings of a picture, or its seed alone."""
        recipe = self._past.told(number).recipe
        if seed:
            self._settings["seed"] = recipe.seed
        else:
            self._take_up(recipe)

    def _take_up(self, recipe: Recipe) -> None:
        """The settings of a recipe, as far as the model has them; none if a file is missing."""
        self._adopt()
        self.service.lay_over(recipe.loras, recipe.embeddings)
        given = recipe.settings()
        given["frames"] = recipe.frames
        if given.get("strength") is None:
            given["strength"] = self._settings.get("strength", STRENGTH)
        self._settings |= {name: given[name] for name in given if name in self._settings}

    def _take_settings(self, recipe: Recipe) -> None:
        self._take_up(recipe)
        said = "Its settings are in the form; Draw draws it again."
        if Path(recipe.model).stem != Path(self.service.source).stem:
            drawer = brief(recipe.model) or "a model that it does not name"
            said = f"Its settings are in the form. It was drawn with {drawer}, not with this model."
        self._notice = {"tone": "good", "title": "Settings read", "text": said}

    def _given(self, op: str, data: bytes | None) -> None:
        """A picture from the page: to begin with, a mask, or one whose settings are wanted."""
        if data is None:
            return  # more of it is on its way
        if op == "png":
            self._take_settings(read_recipe(io.BytesIO(data), "The picture"))
        elif op == "mask":
            self._settings["mask"] = str(self.service.keep_picture("mask", io.BytesIO(data)))
        else:
            self._begin(io.BytesIO(data))

    def _begin(self, picture: str | io.BytesIO) -> None:
        """Begin with this picture from now on; with none where it is empty."""
        self._adopt()
        if not self._abilities["image"]:
            raise refused("image", "This model draws from text alone.", "Load another one.")
        kept = str(self.service.keep_picture("image", picture)) if picture else None
        self._settings |= {"image": kept, "mask": None}

    def _mask(self, path: str) -> None:
        kept = str(self.service.keep_picture("mask", path)) if path else None
        self._settings["mask"] = kept

    def _give_code(self, number: int, kind: str) -> None:
        self._code = as_text(self.service, self._past.told(number).recipe, kind)

    def _add_sample(self, number: int) -> None:
        """Let the job draw this picture during training; without one, show its definition."""
        if self.job is None:
            self._give_code(number, "sample")
            return
        sample = self._past.told(number).recipe.as_sample()
        samples = [*(self.job.config.samples or ()), sample]
        self.job.update(samples=[one.to_dict() for one in samples])
        said = f"It is sample {len(samples)} of the job."
        self._notice = {"tone": "good", "title": "Added to the samples", "text": said}

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
        self._past.seek(self._on_status)  # a page is there, and painted
        if self._dirty:
            self._show()

    def _show(self) -> None:
        with self._drawing:
            if self._made:
                self._draw(None)

    def _adopt(self) -> None:
        """Take over what a model that is new here draws by itself; the words of a user stay."""
        loaded = self.service.status.loaded
        if loaded == self._loaded:
            return
        self._loaded = loaded
        try:
            usual = self.service.defaults
        except NoModelError:
            return
        kept = {k: v for k, v in self._settings.items() if k in ("prompt", "seed")}
        self._abilities = self.service.abilities
        begin = {"image": None, "mask": None, "strength": STRENGTH}
        self._settings = {
            "seed": None,
            **usual,
            **(begin if self._abilities["image"] else {}),
            **kept,
        }

    def _make_rich(self) -> tuple[Front, Sequence[W.Widget]]:
        given = {**choices(), "largest": MAX_UPLOAD}
        self._front = InferenceFront(layout=W.Layout(width="100%"), choices=given)
        return self._front, [self._front]

    def _make_core(self) -> Sequence[W.Widget]:
        self._core = CoreInference(self._on_request)
        return self._core.children

    def _draw(self, events: Sequence[Event] | None) -> None:  # noqa: ARG002
        self._dirty, self._drawn_at = False, time.monotonic()
        self._adopt()
        view, settings, picture = self._view(), dict(self._settings), self._picture()
        if self.mode == "core":
            self._core.draw(view, settings, picture, self._past.tiles())
            self._core.tools.draw(view, settings, self._other(), self._sheet())
            self._core.tools.offer(self._starts)
            return
        front = self._front
        begin = [settings.get(name) or "" for name in ("image", "mask")]
        with front.hold_sync():  # a trait that is given what it has sends nothing
            front.picture, front.history, front.other = picture, self._past.tiles(), self._other()
            front.start = self._once("start", begin, lambda: {**begun(*begin), "of": begin})
            front.sheet, front.starts = self._sheet(), self._starts
            front.preview = on_the_way(self._preview)
            front.view, front.settings = view, for_page(settings)

    def _view(self) -> dict[str, Any]:
        return {
            **view_of(self.service, self._settings, self._abilities),
            "notice": self._notice,
            "series": self._series,
            "job": self.job is not None,
            "code": self._code,
        }

    def _once(self, name: str, key: object, make: Callable[[], Answer]) -> Answer:
        """What `make` gives, made anew for another key: a page is drawn at each few steps."""
        if name not in self._kept or self._kept[name][0] != key:
            self._kept[name] = (key, make())
        kept: Answer = self._kept[name][1]
        return kept

    def _picture(self) -> dict[str, Any]:
        if self._shown is None:
            return {}
        number, result = self._shown
        return self._once("large", number, lambda: large(result, number))

    def _other(self) -> dict[str, Any]:
        if self._beside is None or self._shown is None:
            return {}
        (first, base), (second, top) = self._beside, self._shown
        return self._once("pair", (first, second), lambda: beside(base, top, first, second))

    def _sheet(self) -> dict[str, Any]:
        grid = self.grid
        return {} if grid is None else self._once("sheet", grid.path, lambda: sheet(grid))

    # saved notebook ----------------------------------------------------------------------------

    def story(self) -> str:
        """The last pictures as HTML that needs no kernel."""
        return story(self.results)

    def plain(self) -> str:
        """What was drawn, in a few lines."""
        lines = [state_words(self.service)]
        lines += [f"{one.recipe.prompt}: {one.path}" for one in self.results[-8:]]
        return "\n".join(lines)

    def close(self) -> None:
        """Leave the service, which goes on as it is, and free everything on the page."""
        for unlisten in getattr(self, "_unlisten", ()):
            unlisten()
        super().close()
