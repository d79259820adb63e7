"""The pictures that an inference panel holds: those drawn since, and before them the gallery's."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from ot_notebook.services.inference_gallery import InferenceGallery, Picture
from ot_notebook.services.inference_recipe import read_recipe
from ot_notebook.services.inference_request import read_picture
from ot_notebook.services.inference_result import Result
from ot_notebook.widgets.inference_pictures import small

HISTORY = 60
"""Pictures that a page holds; all of them stay in the gallery."""

EARLIER = 50
"""Pictures of the gallery that a new panel begins with."""

TOLD_EACH = 10
"""Of those, after how many the page is told."""


class History:
    """Pictures by number: those drawn since count up from 0, those of the gallery down from -1.

    Args:
        gallery: holds them all.
    """

    def __init__(self, gallery: InferenceGallery) -> None:
        self._gallery = gallery
        self._drawn: dict[int, Result] = {}
        self._known: dict[Path, int] = {}
        self._own: set[int] = set()
        self._earlier: dict[int, Picture] = {}
        self._tiles: dict[int, dict[str, Any]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._sought = False
        self._closed = False

    @property
    def results(self) -> list[Result]:
        """The last `HISTORY` pictures of one's own, oldest first."""
        with self._lock:
            return [self._drawn[number] for number in sorted(self._own)[-HISTORY:]]

    def add(self, result: Result, own: bool = True) -> int:
        """Take up a picture, once, and give its number.

        Args:
            result: the picture.
            own: whether it was asked for here.
        """
        with self._lock:
            if result.path not in self._known:
                number = self._known[result.path] = next(self._numbers)
                self._drawn[number] = replace(
                    result, frames=()
                )  # its file has them: they are large
            number = self._known[result.path]
            self._own |= {number} if own else set()
            return number

    def trim(self, wanted: Collection[int | None]) -> None:
        """Let go of pictures drawn before the last `HISTORY`, but for those that are `wanted`."""
        with self._lock:
            for number in list(self._drawn)[:-HISTORY]:
                if number not in wanted:
                    del self._known[self._drawn.pop(number).path]
                    self._own.discard(number)

    def __getitem__(self, number: int) -> Result:
        """A picture; one of the gallery is read anew.

        Raises:
            ValueError: if there is none of this number, or its file is gone.
        """
        return self._drawn.get(number) or _opened(self._found(number))

    def told(self, number: int) -> Picture:
        """File and settings of a picture, without reading it.

        Raises:
            ValueError: if there is none of this number.
        """
        drawn = self._drawn.get(number)
        return Picture(drawn.path, drawn.recipe) if drawn is not None else self._found(number)

    def tiles(self) -> list[dict[str, Any]]:
        """The last `HISTORY` pictures small, newest first: each made once."""
        with self._lock:
            earlier = [at for at, one in self._earlier.items() if one.path not in self._known]
            shown = [*list(self._drawn)[-HISTORY:][::-1], *earlier][:HISTORY]
            self._tiles = {at: self._tiles.get(at) or small(self._drawn[at], at) for at in shown}
            return list(self._tiles.values())

    def seek(self, told: Callable[[], None]) -> None:
        """Read the newest pictures of the gallery, once, on a thread of its own.

        Args:
            told: called when there are more of them.
        """
        if not self._sought:
            self._sought = True
            threading.Thread(
                target=self._seek, args=(told,), name="ot-inference-history", daemon=True
            ).start()

    def close(self) -> None:
        """Read no further."""
        self._closed = True

    def _seek(self, told: Callable[[], None]) -> None:
        number = -1
        for path in self._gallery.newest(EARLIER):
            if self._closed:
                return
            try:
                picture = Picture(path, read_recipe(path))
                tile = small(_opened(picture), number)
            except (OSError, ValueError):
                continue  # a picture of someone else's, or one that is gone
            with self._lock:
                self._earlier[number], self._tiles[number] = picture, tile
            if number % TOLD_EACH == 0:
                told()
            number -= 1
        told()

    def _found(self, number: int) -> Picture:
        try:
            return self._earlier[number]
        except KeyError:
            raise ValueError(f"There is no picture {number} here any more.") from None


def _opened(picture: Picture) -> Result:
    film = picture.path.with_suffix(".mp4")
    return Result(
        image=read_picture("image", picture.path),
        recipe=picture.recipe,
        path=picture.path,
        seconds=0.0,
        film=film if film.is_file() else None,
    )
