"""What the inference service answers: pictures, what there is of them, and how it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modules.config import ModelType
from ot_notebook.services.inference_recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

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
class Preview:
    """What there is of a picture after a step, a cell of its latents to a pixel."""

    image: Image = field(repr=False)
    step: int
    total: int

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


def blank(image: Image) -> Iterator[str]:
    """A word on a picture without content: what no number could be made of becomes black."""
    extremes: Any = image.convert("RGB").getextrema()  # a pair for each colour
    if all(low == high for low, high in extremes):
        yield (
            "The picture is of one colour: the model's numbers may have overflowed. Try "
            'dtype="FLOAT_32", another scheduler, or less guidance.'
        )
