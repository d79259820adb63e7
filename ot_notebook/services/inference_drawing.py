"""From a request to results: a model draws it, and the gallery keeps what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ot_notebook.services.inference_gallery import InferenceGallery
from ot_notebook.services.inference_model import InferenceModel, Stack
from ot_notebook.services.inference_recipe import Recipe
from ot_notebook.services.inference_request import Request
from ot_notebook.services.inference_result import Cancelled, Preview, Result, blank

if TYPE_CHECKING:
    from PIL.Image import Image

    from modules.families import Family, Parts


CANCELLED = "The picture was cancelled before it was done. Nothing was kept."
OVER = (
    "The run whose model this is has ended, or is about to. Load the run, or its folder, to draw "
    "with what it has trained."
)


@dataclass(frozen=True)
class _Drawn:
    """One picture, or film, that nothing keeps yet."""

    frames: Sequence[Image]
    recipe: Recipe
    seconds: float
    notes: tuple[str, ...]
    frames_per_second: int


class Drawing:
    """Draws requests one after the other; the caller sees to it that none comes in between.

    Args:
        gallery: keeps the pictures.
        say: told what is being done, as changes of `Status`.
        stopped: whether the picture shall end.
        kept: called with each picture that the gallery has taken up.
    """

    def __init__(
        self,
        gallery: InferenceGallery,
        say: Callable[..., None],
        stopped: Callable[[InferenceModel], bool],
        kept: Callable[[Result], None],
    ) -> None:
        self._gallery, self._say, self._stopped, self._tell = gallery, say, stopped, kept

    def say(self, words: str) -> None:
        """Tell what is done in between."""
        self._say(state="drawing", done=0, total=0, words=words)

    def draw(
        self,
        model: InferenceModel,
        requests: Sequence[Request],
        stack: Stack,
        words: str = "",
        preview: Callable[[Preview], None] | None = None,
    ) -> list[Result]:
        """Pictures side by side; for want of memory the first alone, so ask for the rest again.

        Args:
            model: draws them.
            requests: alike but for their seeds.
            stack: adapters to lay over the networks.
            words: what the steps are counted of, for people.
            preview: called with what there is of the first after each step.

        Raises:
            Cancelled: if it was to stop before they were done.
        """
        drawn = self._drawn(model, requests, stack, words, preview)
        return [self._kept(one) for one in drawn]

    @contextmanager
    def keeping(self) -> Iterator[Callable[..., list[Future[Result]]]]:
        """Inside the block pictures are written while the next are drawn.

        Gives a function that takes what `draw` takes. The block ends when all are written.
        """
        with ThreadPoolExecutor(1, "ot-inference-keep") as writer:

            def draw(*given: Any) -> list[Future[Result]]:
                return [writer.submit(self._kept, one) for one in self._drawn(*given)]

            yield draw

    def _drawn(
        self,
        model: InferenceModel,
        requests: Sequence[Request],
        stack: Stack,
        words: str = "",
        preview: Callable[[Preview], None] | None = None,
    ) -> list[_Drawn]:
        begun, steps = 0.0, requests[0].steps

        def show(image: Image, step: int) -> None:
            if preview is not None:
                preview(Preview(image, step, steps))

        def draw(family: Family, parts: Parts) -> tuple[list[list[Image]] | None, int]:
            nonlocal begun
            begun = time.monotonic()
            found = model.draw(
                family,
                parts,
                requests,
                stack,
                report=lambda done, total: self._say(done=done, total=total),
                should_stop=stop,
                preview=show if preview is not None else None,
            )
            return found, family.film_rate(parts)

        def stop() -> bool:
            return self._stopped(model)

        self._say(state="drawing", done=0, total=steps, words=words)
        answer = None if stop() else model.use(draw, stop)
        if answer is None or answer[0] is None:
            raise Cancelled(OVER if model.stopping() else CANCELLED)
        pictures, rate = answer[0], answer[1]
        seconds = (time.monotonic() - begun) / len(pictures)
        notes = tuple(model.notes(requests[0], stack))
        return [
            _Drawn(frames, model.recipe(request, stack), seconds, notes, rate)
            for request, frames in zip(requests, pictures, strict=False)
        ]

    def _kept(self, drawn: _Drawn) -> Result:
        image, film = drawn.frames[0], None
        path = self._gallery.keep(image, drawn.recipe)
        if len(drawn.frames) > 1:
            film = self._gallery.keep_film(path, drawn.frames, drawn.frames_per_second)
        result = Result(
            image=image,
            recipe=drawn.recipe,
            path=path,
            seconds=drawn.seconds,
            notes=(*drawn.notes, *blank(image)),
            frames=tuple(drawn.frames) if film else (),
            film=film,
        )
        self._tell(result)
        return result
