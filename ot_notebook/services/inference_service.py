"""Draws pictures with a model of one's own choice, or with the one that trains in this kernel."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from modules.config import DataType, ModelType
from ot_notebook.services.inference_drawing import Drawing
from ot_notebook.services.inference_gallery import InferenceGallery
from ot_notebook.services.inference_held import Held, Wanted
from ot_notebook.services.inference_line import Line
from ot_notebook.services.inference_model import Embeddings, InferenceModel, Loras, Stack
from ot_notebook.services.inference_recipe import Recipe
from ot_notebook.services.inference_request import Request, random_seed, read_picture, refused
from ot_notebook.services.inference_result import Cancelled as Cancelled
from ot_notebook.services.inference_result import NoModelError as NoModelError
from ot_notebook.services.inference_result import Preview, Status
from ot_notebook.services.inference_result import Result as Result
from ot_notebook.services.inference_stream import stream
from ot_notebook.services.readers import Readers
from ot_notebook.services.trainer_service import TrainerService

if TYPE_CHECKING:
    from PIL.Image import Image

    from modules.training.events import SampleImage
    from ot_notebook.services.inference_grid import Axis, Grid
    from ot_notebook.services.inference_saves import Save
    from ot_notebook.services.run import Run

MAX_BATCH = 64
"""Pictures of one batch; a grid or a loop draws more."""


class InferenceService:
    """One model, and requests to draw with it; from any thread, served one after another.

    Args:
        folder: where the gallery keeps every picture.
        service: whose model "live" is; this kernel's trainer by default.

    Example:
        >>> inf = ot.inference()
        >>> inf.load(ot.assets.model(), loras=[("line-art.safetensors", 0.8)])
        >>> inf.generate("a red apple", seed=1).image
    """

    def __init__(
        self,
        folder: str | Path = Path("workspace") / "inference",
        service: TrainerService | None = None,
    ) -> None:
        self.gallery = InferenceGallery(Path(folder).absolute())
        """Every picture that was drawn."""
        self.status = Status()
        """What it does now; read-only."""
        self._held = Held(service)
        self._drawing = Drawing(self.gallery, self._say, self._stopped, self._kept)
        self._line = Line()
        self._cancel = threading.Event()
        self._readers = Readers(self._warn)
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._followers: tuple[Callable[[Result], None], ...] = ()

    # ---------------------------------------------------------------- model

    def load(
        self,
        model: object = "live",
        model_type: ModelType | str | None = None,
        *,
        loras: Loras = (),
        embeddings: Embeddings = (),
        dtype: DataType | str | None = None,
        device: str | None = None,
        offload: bool = False,
    ) -> InferenceService:
        """Take up a model, in place of the one before; gives the service itself.

        The one before stays where there is no such model.

        Args:
            model: a diffusers folder, a single file, a hub id, a run, a run's workspace, a backup,
                or "live": the model that trains in this kernel, used between two steps.
            model_type: needed where the model does not tell what it is.
            loras: adapter files and their strengths.
            embeddings: embedding files; prompts call each by its name without the suffix, or by
                the word of a pair, such as ("<cat>", "cat.safetensors").
            dtype: in which weights are kept; by default what suits the device.
            device: such as "cuda"; by default the fastest there is.
            offload: keep layers in main memory until they are used: far less of the device's, but
                slower. It is done by itself where a picture does not fit.

        Raises:
            ConfigError: if there is no such model, or it cannot be loaded.
            AdapterError: if a LoRA or an embedding is gone, damaged or of another architecture.
            CommandRefused: for "live" while no run takes steps.
        """
        wanted = Wanted(model, model_type, loras, embeddings, dtype, device, offload)
        with self._line.turn():
            self._say(state="loading", words=f"Loading {model}")
            try:
                self._held.take(wanted)
                self._say(loaded=self.status.loaded + 1)
            finally:
                self._rest()
        return self

    def set_loras(self, loras: Loras) -> None:
        """Use these adapters and strengths from the next picture on; nothing is loaded twice.

        Raises:
            NoModelError: if no model is loaded.
            AdapterError: if a file is gone, damaged or of another architecture; all stays as it is.
        """
        with self._line.turn():
            self._held.loras = self._held.need().fit(loras)
            self._rest()

    def set_embeddings(self, embeddings: Embeddings) -> None:
        """Let prompts hold these words from the next picture on, and no others.

        Args:
            embeddings: as for `load`.

        Raises:
            NoModelError: if no model is loaded.
            AdapterError: if a file is gone, damaged or made for another model; all stays as it is.
        """
        with self._line.turn():
            self._held.need().teach(embeddings)
            self._rest()

    def lay_over(self, loras: Loras, embeddings: tuple[tuple[str, str], ...]) -> None:
        """Use these adapters and these words from the next picture on: all of them, or none.

        Args:
            loras: as for `load`.
            embeddings: words and their files; those that are in use are not read again.

        Raises:
            NoModelError, ConfigError, AdapterError: as for both alone; all stays as it is.
        """
        with self._line.turn():
            model = self._held.need()
            stack = model.fit(loras)
            if embeddings != tuple((word, str(path)) for word, path in model.embeddings):
                model.teach(embeddings)
            self._held.loras = stack
            self._rest()

    @property
    def source(self) -> str:
        """The model in use, as recipes name it; empty where there is none."""
        return self._held.model.source if self._held.model is not None else ""

    @property
    def loras(self) -> Stack:
        """Adapter files and strengths in use."""
        return self._held.loras

    @property
    def embeddings(self) -> tuple[tuple[str, Path], ...]:
        """Words that prompts may hold, and their files."""
        model = self._held.model
        return model.embeddings if model is not None else ()

    @property
    def defaults(self) -> dict[str, Any]:
        """What `generate` takes for settings that it is not given.

        Raises:
            NoModelError: if no model is loaded.
        """
        rules = self._held.need().rules
        usual = rules.request().definition
        names = {name: name for name in ("prompt", "negative_prompt", "width", "height")}
        names |= {"steps": "diffusion_steps", "cfg_scale": "cfg_scale"}
        names |= {"frames": "frames"} if rules.frame_step else {}
        found = {name: getattr(usual, field) for name, field in names.items()}
        if not rules.own_scheduler:
            found["scheduler"] = usual.noise_scheduler.value
        return found | ({"clip_skip": rules.clip_skip} if rules.deepest_skip else {})

    @property
    def abilities(self) -> dict[str, bool]:
        """Whether the model can begin with an "image", and paint into a "mask" of it.

        Raises:
            NoModelError: if no model is loaded.
        """
        rules = self._held.need().rules
        return {"image": rules.begins_with(False), "mask": rules.begins_with(True)}

    def keep_picture(self, name: str, given: object) -> Path:
        """Keep a picture to begin with, or a mask, in the gallery; gives its file.

        Args:
            name: "image" or "mask", for what is refused.
            given: a file, an open one, a picture, or a result.

        Raises:
            ConfigError: if it is none of these, or holds no picture.
        """
        if isinstance(given, Result):
            given = given.image
        if isinstance(given, str | Path):
            given = Path(given).expanduser()
        if isinstance(given, Path | io.BytesIO):
            given = read_picture(name, given)
        if not callable(getattr(given, "tobytes", None)) or not hasattr(given, "mode"):
            kind = type(given).__name__
            raise refused(name, f"{name} is a {kind}.", "Give a file, a picture or a result.")
        return self.gallery.source(cast("Image", given))

    def unload(self) -> None:
        """Let go of the model and give its memory back; waits for requests before it."""
        with self._line.turn():
            self._held.drop()
            self._rest()

    # ---------------------------------------------------------------- pictures

    def generate(
        self,
        prompt: str = "",
        *,
        loras: Loras | None = None,
        preview: Callable[[Preview], None] | None = None,
        **settings: Any,
    ) -> Result:
        """Draw one picture, or one film, and keep it in the gallery.

        The same settings give the same picture as diffusers' own pipeline.

        Args:
            prompt: what to draw; Stable Diffusion and SDXL read weights, such as (red fox:1.3).
            loras: adapters and strengths for this picture alone.
            preview: called on the drawing thread with what there is after each step.
            settings: negative_prompt, seed (random where it is missing or None), width, height,
                steps, cfg_scale, scheduler, clip_skip (text layers to leave out); see `defaults`.
                image (a file, a picture, or a result) to begin with, mask (white where to paint)
                and strength (0 to 1, how much of the image goes). frames of a film, for models of
                films: its MP4 file is the result's `film`.

        Raises:
            NoModelError: if no model is loaded.
            ConfigError: for a setting that no picture, or none of this model, can have.
            AdapterError: if a LoRA does not fit.
            Cancelled: if `cancel` was called, or the run whose model it is stops.
        """
        return self.batch(prompt, 1, loras=loras, preview=preview, **settings)[0]

    def batch(
        self,
        prompt: str = "",
        n: int = 4,
        *,
        loras: Loras | None = None,
        preview: Callable[[Preview], None] | None = None,
        **settings: Any,
    ) -> list[Result]:
        """Draw several pictures at once, of one seed after the other; see `generate`.

        Each is what `generate` draws with its seed, but for what a wider matrix rounds otherwise.

        Args:
            prompt: what to draw.
            n: how many; side by side where the model draws from text alone.
            loras: as for `generate`.
            preview: called with what there is of the first.
            settings: as for `generate`.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_BATCH:
            raise refused("n", f"n is {n!r}, but must lie between 1 and {MAX_BATCH}.", "Use 4.")
        with self._line.turn():
            self._cancel.clear()
            model = self._held.need()
            request = self._request(model, prompt, settings)
            stack = self._held.loras if loras is None else model.fit(loras)
            wanted = [request.with_seed(request.definition.seed + at) for at in range(n)]
            results: list[Result] = []
            try:
                while left := wanted[len(results) :]:
                    some = left[: model.together(request, len(left))]
                    words = f"Picture {len(results) + 1} of {n}" if len(some) == 1 < n else ""
                    results += self._drawing.draw(model, some, stack, words, preview)
            except Cancelled:
                if not results:
                    raise
            finally:
                self._rest()
            return results

    def stream(
        self, prompt: str = "", *, every: int = 1, **settings: Any
    ) -> Iterator[Preview | Result]:
        """Draw one picture, and give what there is of it on the way; its `Result` comes last.

        Leaving the loop cancels the picture.

        Args:
            prompt: what to draw.
            every: steps from one preview to the next.
            settings: as for `generate`.

        Example:
            >>> for shown in ot.inference().stream("a red apple", every=2):
            ...     display(shown.image)
        """
        return stream(self, prompt, every, settings)

    def grid(
        self,
        prompt: str = "",
        *,
        x: Axis,
        y: Axis | None = None,
        z: Axis | None = None,
        **settings: Any,
    ) -> Grid:
        """Draw every combination of the values of up to three settings, all else alike.

        Pictures that differ in nothing but their seed are drawn side by side, a few at a time: each
        is what `generate` draws, but for what a wider matrix rounds otherwise.

        Args:
            prompt: what to draw, where it is on no axis.
            x: name and values of the setting across, such as {"cfg_scale": [1, 3, 7]}. Any
                setting of `generate`, "lora" for the strength of the first LoRA, "lora:NAME"
                for that of another, or "save" with what `saves` gives.
            y: the same for the setting downwards.
            z: the same for one from sheet to sheet.
            settings: as for `generate`.

        Returns:
            The labelled image, a table with a row for each picture, and their results. After
            `cancel`, those that were done.
        """
        from ot_notebook.services import inference_grid as grids

        if z and not y:
            raise refused("z", "z is given without y.", "Give the second axis as y=.")
        axes = [axis for axis in (x, y, z) if axis is not None]
        with self._line.turn():
            self._cancel.clear()
            given = {"seed": random_seed(), **settings}
            try:
                cells = grids.plan(prompt, axes, given, self._held.loras)
                drawn = grids.draw(self._held, self._drawing, self._asked, cells)
            finally:
                self._rest()
            return grids.sheet(drawn, axes, self.gallery.folder / "grids", len(cells))

    def samples(self, count: int) -> list[SampleImage]:
        """The last samples of the run of this kernel's trainer, newest first."""
        return self._held.trainer.history.samples[: -count - 1 : -1]

    def saves(self, run: Run | str | Path | None = None) -> list[Save]:
        """What a run (by itself, its id or its workspace; else the newest) has kept on its way.

        One prompt and seed over all of it shows when the run was best:

        Example:
            >>> inf.grid("a red apple", x={"save": inf.saves()}, seed=1)

        Raises:
            ConfigError: if there is no such run, or it has kept nothing.
        """
        from ot_notebook.services.inference_saves import saves_of

        return saves_of(run)

    def cancel(self) -> None:
        """End the picture, or the grid, that is being drawn, within one step."""
        self._cancel.set()

    def check(self, prompt: str = "", **settings: Any) -> None:
        """Find out whether `generate` would take these settings; nothing is drawn.

        Raises:
            NoModelError: if no model is loaded.
            ConfigError: for a setting that no picture, or none of this model, can have.
        """
        self._request(self._held.need(), prompt, settings)

    def as_python(self, recipe: Recipe) -> str:
        """Plain diffusers code that draws the picture of a recipe."""
        from ot_notebook.services.inference_code import diffusers_code

        return diffusers_code(recipe)

    def as_comfy(self, recipe: Recipe) -> str:
        """A ComfyUI workflow, in the format of its API, that draws the picture of a recipe."""
        from ot_notebook.services.inference_comfy import comfy_workflow

        return comfy_workflow(recipe)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` whenever `status` changes, on whatever thread; the answer ends it.

        If it raises, that is reported, and nothing else is affected.
        """
        self._readers.forget()
        self._listeners = (*self._listeners, listener)

        def remove() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return remove

    def follow(self, follower: Callable[[Result], None]) -> Callable[[], None]:
        """Call `follower` with each picture once it is kept, whoever asked for it.

        It is called on whatever thread, while others may wait for it; the answer ends it. If it
        raises, that is reported, and nothing else is affected.
        """
        self._readers.forget()
        self._followers = (*self._followers, follower)

        def remove() -> None:
            self._followers = tuple(one for one in self._followers if one is not follower)

        return remove

    # ---------------------------------------------------------------- inside

    def _request(self, model: InferenceModel, prompt: str, settings: dict[str, Any]) -> Request:
        """The picture that is asked for, checked; pictures to begin with are kept."""
        kept = dict(settings)
        for name in ("image", "mask"):
            if kept.get(name) is not None:
                kept[name] = self.keep_picture(name, kept[name])
        return model.rules.request(prompt, **kept)

    def _asked(self, model: InferenceModel, settings: Mapping[str, Any]) -> Request:
        """The same for a cell of a grid, whose prompt is one of its settings."""
        others = {name: value for name, value in settings.items() if name != "prompt"}
        return self._request(model, settings["prompt"], others)

    def _stopped(self, model: InferenceModel) -> bool:
        return self._cancel.is_set() or model.stopping()

    def _rest(self) -> None:
        """Nothing is being done: say what there is."""
        model = self._held.model
        self._say(
            state="ready" if model else "empty",
            model=model.name if model else "",
            model_type=model.model_type if model else None,
            done=0,
            total=0,
            words="",
        )

    def _kept(self, result: Result) -> None:
        for follower in self._followers:
            self._readers.call(follower, result)

    def _say(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
        for listener in self._listeners:
            self._readers.call(listener)

    def _warn(self, text: str) -> None:
        """Tell it where one looks: in the kernel's log, and in the cell that draws."""
        self._held.trainer.history.note(text, "warning")
        warnings.warn(text, RuntimeWarning, stacklevel=2)


if "_service" not in globals():  # `%autoreload` runs this file again; the model must survive it
    _service: InferenceService | None = None
_making = threading.Lock()


def inference() -> InferenceService:
    """This kernel's inference service: always the same one."""
    global _service  # noqa: PLW0603 - a kernel draws with one model, whoever asks
    with _making:
        if _service is None:
            _service = InferenceService()
        return _service
