"""What the inference service answers: pictures, what there is of them, and how it stands."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modules.config import ModelType
from ot_notebook.services.inference_recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FILM = 8 * 2**20
"""Largest film that a page or a notebook holds, in bytes; about a minute."""

State = Literal["empty", "loading", "ready", "drawing"]


class NoModelError(RuntimeError):
    """Something was asked of a service that has no model; the text says how to load one."""


class Cancelled(RuntimeError):  # noqa: N818 - an answer, not a defect
    """The picture was cancelled before it was done."""


@dataclass(frozen=True)
class Result:
    """A picture, or a film, and everything that decided it."""

    image: Image = field(repr=False)
    """The picture; of a film its first frame."""
    recipe: Recipe
    path: Path
    """Where the gallery keeps it."""
    seconds: float
    """Time that it took, without waiting."""
    notes: tuple[str, ...] = ()
    """What the user should know, such as a prompt that was cut off."""
    frames: tuple[Image, ...] = field(default=(), repr=False)
    """All pictures of a film; none where there is one picture."""
    film: Path | None = None
    """Its MP4 file; where imageio-ffmpeg is missing, the folder of its frames."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Its settings, as its PNG holds them."""
        return self.recipe.to_dict()

    def _repr_png_(self) -> bytes | None:
        return self.image._repr_png_()

    def _repr_html_(self) -> str | None:
        data = film_bytes(self.film)
        if not data:
            return None  # a picture shows itself
        return (
            f'<video controls loop muted width="{self.image.width}" '
            f'aria-label="{escape(self.recipe.prompt)}" '
            f'src="data:video/mp4;base64,{base64.b64encode(data).decode()}"></video>'
        )


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
    loaded: int = 0
    """How many models were loaded so far: another number is another model."""


def film_bytes(film: Path | None) -> bytes:
    """An MP4 file that a page may hold; empty for a longer one, a folder, and none."""
    try:
        if film is None or not film.is_file() or film.stat().st_size > MAX_FILM:
            return b""
        return film.read_bytes()
    except OSError:  # it went in between
        return b""


def blank(image: Image) -> Iterator[str]:
    """A word on a picture without content: what no number could be made of becomes black."""
    extremes: Any = image.convert("RGB").getextrema()  # a pair for each colour
    if all(low == high for low, high in extremes):
        yield (
            "The picture is of one colour: the model's numbers may have overflowed. Try "
            'dtype="FLOAT_32", another scheduler, or less guidance.'
        )
