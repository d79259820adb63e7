"""Draws pictures with a model of one's own choice, or with the one that trains in this kernel."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modules.config import DataType, ModelType, SampleConfig
from ot_notebook.services.inference_gallery import InferenceGallery
from ot_notebook.services.inference_model import (
    InferenceModel,
    Loras,
    Stack,
    live_model,
    open_model,
    random_seed,
)
from ot_notebook.services.inference_recipe import Recipe
from ot_notebook.services.trainer_service import TrainerService, trainer

if TYPE_CHECKING:
    from PIL.Image import Image

    from modules.families import Family, Parts
    from ot_notebook.services.inference_grid import Axis, Grid

State = Literal["empty", "loading", "ready", "drawing"]


class NoModelError(RuntimeError):
    """Something was asked of a service that has no model; the text says how to load one."""


class Cancelled(RuntimeError):  # noqa: N818 - an answer, not a defect
    """The picture was cancelled before it was done."""


@dataclass(frozen=True)
class Result:
    """A picture and everything that decided it."""

    image: Image = field(repr=False)
    recipe: Recipe
    path: Path | None
    """Where the gallery keeps it."""
    seconds: float
    """Time that it took, without waiting."""
    notes: tuple[str, ...] = ()
    """What the user should know, such as a prompt that was cut off."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Its settings, as its PNG holds them."""
        return self.recipe.to_dict()

    def _repr_png_(self) -> bytes | None:
        return self.image._repr_png_()


@dataclass(frozen=True)
class Status:
    """What the service does, at one moment."""

    state: State = "empty"
    model: str = ""
    """Name of the model, for people."""
    model_type: ModelType | None = None
    done: int = 0
    """Steps of the picture, or pictures of a grid, that are done."""
    total: int = 0
    words: str = ""
    """What `done` counts."""


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
        self._trainer = service
        self._model: InferenceModel | None = None
        self._loras: Stack = ()
        self._line = _Line()
        self._cancel = threading.Event()
        self._listeners: tuple[Callable[[], None], ...] = ()

    # ---------------------------------------------------------------- model

    def load(
        self,
        model: object = "live",
        model_type: ModelType | str | None = None,
        *,
        loras: Loras = (),
        dtype: DataType | str | None = None,
        device: str | None = None,
    ) -> InferenceService:
        """Take up a model, in place of the one before; gives the service itself.

        Args:
            model: a diffusers folder, a single file, a hub id, a run, a run's workspace, a backup,
                or "live": the model that trains in this kernel, used between two steps.
            model_type: needed where the model does not tell what it is.
            loras: adapter files and their strengths.
            dtype: in which weights are kept; by default what suits the device.
            device: such as "cuda"; by default the fastest there is.

        Raises:
            ConfigError: if there is no such model, or it cannot be loaded.
            AdapterError: if a LoRA is gone, damaged or of another architecture.
            CommandRefused: for "live" while no run takes steps.
        """
        with self._line.turn():
            self._drop()
            self._say(state="loading", words=f"Loading {model}")
            try:
                if isinstance(model, TrainerService) or model == "live":
                    service = model if isinstance(model, TrainerService) else self._trainer
                    self._model = live_model(service or trainer())
                else:
                    self._model, trained = open_model(model, model_type, dtype, device)
                    loras = [*([(trained, 1.0)] if trained else []), *loras]
                self._loras = self._need().fit(loras)
            except BaseException:
                self._drop()
                raise
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
            self._loras = self._need().fit(loras)
            self._rest()

    @property
    def loras(self) -> Stack:
        """Adapter files and strengths in use."""
        return self._loras

    @property
    def defaults(self) -> dict[str, Any]:
        """What `generate` takes for settings that it is not given.

        Raises:
            NoModelError: if no model is loaded.
        """
        model = self._need()
        recipe = model.recipe(model.defaults, ())
        return {name: value for name, value in recipe.settings().items() if name != "seed"}

    def unload(self) -> None:
        """Let go of the model and give its memory back; waits for requests before it."""
        with self._line.turn():
            self._drop()
            self._rest()

    # ---------------------------------------------------------------- pictures

    def generate(self, prompt: str = "", *, loras: Loras | None = None, **settings: Any) -> Result:
        """Draw one picture, and keep it in the gallery.

        The same settings give the same picture as diffusers' own pipeline.

        Args:
            prompt: what to draw.
            loras: adapters and strengths for this picture alone.
            settings: negative_prompt, seed (random where it is missing or None), width, height,
                steps, cfg_scale, scheduler; see `defaults`.

        Raises:
            NoModelError: if no model is loaded.
            ConfigError: for a setting that no picture, or none of this model, can have.
            AdapterError: if a LoRA does not fit.
            Cancelled: if `cancel` was called, or the run whose model it is stops.
        """
        with self._line.turn():
            self._cancel.clear()
            model = self._need()
            definition = model.definition(prompt, **settings)
            stack = self._loras if loras is None else model.fit(loras)
            try:
                return self._draw(model, definition, stack)
            finally:
                self._rest()

    def grid(self, prompt: str = "", *, x: Axis, y: Axis | None = None, **settings: Any) -> Grid:
        """Draw every combination of the values of one or two settings, all else alike.

        Args:
            prompt: what to draw, where it is on no axis.
            x: name and values of the setting across, such as {"cfg_scale": [1, 3, 7]}. Any
                setting of `generate`, or "lora" for the strength of the first LoRA, "lora:NAME"
                for that of another.
            y: the same for the setting downwards.
            settings: as for `generate`.

        Returns:
            The labelled image, a table with a row for each picture, and their results. After
            `cancel`, those that were done.
        """
        from ot_notebook.services.inference_grid import plan, sheet

        with self._line.turn():
            self._cancel.clear()
            model = self._need()
            cells = plan(prompt, x, y, {"seed": random_seed(), **settings}, self._loras)
            checked = [
                (cell, model.definition(**cell.settings), model.fit(cell.loras)) for cell in cells
            ]  # all of them, before the first is drawn
            results = []
            try:
                for number, (cell, definition, stack) in enumerate(checked):
                    count = f"Picture {number + 1} of {len(checked)}"
                    results.append((cell, self._draw(model, definition, stack, count)))
            except Cancelled:
                if not results:
                    raise
            finally:
                self._rest()
            return sheet(results, x, y, self.gallery.folder / "grids", len(checked))

    def cancel(self) -> None:
        """End the picture, or the grid, that is being drawn, within one step."""
        self._cancel.set()

    def check(self, prompt: str = "", **settings: Any) -> None:
        """Find out whether `generate` would take these settings; nothing is drawn.

        Raises:
            NoModelError: if no model is loaded.
            ConfigError: for a setting that no picture, or none of this model, can have.
        """
        self._need().definition(prompt, **settings)

    def as_python(self, recipe: Recipe) -> str:
        """Plain diffusers code that draws the picture of a recipe."""
        from ot_notebook.services.inference_code import diffusers_code

        return diffusers_code(recipe)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` whenever `status` changes, on whatever thread; the answer ends it."""
        self._listeners = (*self._listeners, listener)

        def remove() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return remove

    # ---------------------------------------------------------------- inside

    def _draw(
        self, model: InferenceModel, definition: SampleConfig, stack: Stack, words: str = ""
    ) -> Result:
        """One picture; the caller has its turn."""
        begun = 0.0

        def draw(family: Family, parts: Parts) -> Image | None:
            from modules.adapters.stack import applied
            from modules.sampling.sampler import sample

            nonlocal begun
            begun = time.monotonic()
            adapters = [(model.adapter(path, family, parts), at) for path, at in stack]
            with applied(family, parts, adapters):
                return sample(
                    family,
                    parts,
                    definition,
                    report=lambda done, total: self._say(done=done, total=total),
                    should_stop=self._stopped,
                )

        self._say(state="drawing", done=0, total=definition.diffusion_steps, words=words)
        image = None if self._stopped() else model.use(draw, self._stopped)
        if image is None:
            raise Cancelled("The picture was cancelled before it was done.")
        seconds = time.monotonic() - begun
        recipe = model.recipe(definition, stack)
        path = self.gallery.keep(image, recipe)
        return Result(image, recipe, path, seconds, tuple(model.notes(definition, stack)))

    def _stopped(self) -> bool:
        return self._cancel.is_set() or (self._model is not None and self._model.stopping())

    def _need(self) -> InferenceModel:
        if self._model is None:
            raise NoModelError(
                "No model is loaded. Load one first: ot.inference().load(ot.assets.model()), a "
                'folder, a file, a hub id, a run, or "live" while a run trains.'
            )
        return self._model

    def _drop(self) -> None:
        self._model, self._loras = None, ()
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()

    def _rest(self) -> None:
        """Nothing is being done: say what there is."""
        model = self._model
        self._say(
            state="ready" if model else "empty",
            model=model.name if model else "",
            model_type=model.model_type if model else None,
            done=0,
            total=0,
            words="",
        )

    def _say(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
        for listener in self._listeners:
            listener()


class _Line:
    """Whoever came first is served first."""

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn; it ends with the block."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting[0] is ticket)
            yield
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()


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
