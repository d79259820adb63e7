"""Captions and masks by a model: what it says of each image, joined with what is there already.

A `Captioner` or `Masker` is any function of the right form; `caption_models` and `mask_models` have
some. What is written goes through the journal of the `ConceptStore`, `CHUNK` images a change, so a
run that is stopped keeps what it did and everything can be undone.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, Protocol, get_args

import numpy as np
from PIL import Image

from modules.data.ahead import CachingStopped
from modules.data.images import still
from modules.data.items import DAMAGE
from ot_notebook.services.caption_edits import join_tags, tags_of
from ot_notebook.services.concept_insight import BROKEN, mark_twins
from ot_notebook.services.concept_items import Row
from ot_notebook.services.concept_store import ConceptStore, Where
from ot_notebook.services.mask_models import Mask

CaptionMode = Literal["replace", "fill", "add"]
MaskMode = Literal["replace", "fill", "add", "subtract", "blend"]
CHUNK = 32
"""Images in one entry of the journal."""

TOLD_EVERY = 50
"""Images after which a search tells how far it is."""

BATCH = 8
"""Images that a model sees at once."""


class Captioner(Protocol):
    """Says what is on pictures."""

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """RGB images -> a caption for each."""


class Masker(Protocol):
    """Says where on pictures something is."""

    def __call__(self, images: Sequence[Image.Image]) -> list[Mask]:
        """RGB images -> a mask for each."""


class Annotation:
    """A run in the background.

    Args:
        what: what it does, in words.
        work: does it, and tells of its progress.
        report: hears of progress, on the run's thread.

    Attributes:
        done: images that were looked at.
        total: images that there are to look at.
        skipped: names of images that could not be read.
        result: what came of it, in words.
        error: what ended the run early, None if nothing did.
        ended: whether all is done that will be.
    """

    def __init__(
        self,
        what: str,
        work: Callable[[Annotation], None],
        report: Callable[[Annotation], None] | None,
    ) -> None:
        self.what = what
        self.done = self.total = 0
        self.skipped: list[str] = []
        self.result = ""
        self.error: Exception | None = None
        self.ended = False
        self._stop = threading.Event()
        self._report = report
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Annotation], None]) -> None:
        try:
            work(self)
        except Exception as error:  # noqa: BLE001 - `wait` raises it where somebody hears it
            self.error = error
        self.ended = True
        self.told()

    def told(self) -> None:
        """Let the one who asked know how far it is."""
        if self._report:
            self._report(self)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End after the images that are being looked at; what was written stays."""
        self._stop.set()

    def wait(self) -> Annotation:
        """Return when it has ended.

        Raises:
            Exception: what ended it early.
        """
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self


def caption(
    store: ConceptStore,
    captioner: Captioner,
    where: Where = None,
    mode: CaptionMode = "fill",
    report: Callable[[Annotation], None] | None = None,
) -> Annotation:
    """Caption images in the background.

    Args:
        store: the training set.
        captioner: says what is on a picture.
        where: which images.
        mode: "replace" captions; "fill" where there is none; "add" what the caption does not say.
        report: hears of progress, on the run's thread.

    Raises:
        ValueError: for another mode, or where captions of an image cannot be written.
    """
    _check_mode(mode, get_args(CaptionMode))
    rows = [store.rows[number] for number in store.find(where)]
    rows = [row for row in rows if row.item and not (mode == "fill" and row.caption)]
    for row in rows:
        store.check(row.id)

    def made(images: Sequence[Image.Image], of: Sequence[Row]) -> dict[Any, bytes | None]:
        files: dict[Any, bytes | None] = {}
        for row, said in zip(of, captioner(images), strict=True):
            if not said.strip():
                continue  # a model that says nothing takes no caption away
            old = store.caption(row.id) if mode == "add" else ""
            delimiter = store.concepts[row.concept].text.tag_delimiter or ","
            files[row.caption_path] = _added(old, said, delimiter).encode()
        return files

    work = partial(_annotate, store, rows, made, "Captions")
    return Annotation("A model captions images", work, report)


def mask(
    store: ConceptStore,
    masker: Masker,
    where: Where = None,
    mode: MaskMode = "fill",
    report: Callable[[Annotation], None] | None = None,
) -> Annotation:
    """Mask images in the background.

    Args:
        store: the training set.
        masker: says where on a picture something is.
        where: which images.
        mode: "replace" masks; "fill" where there is none; "add" to what is learnt or "subtract"
            from it; "blend" old and new half and half.
        report: hears of progress, on the run's thread.

    Raises:
        ValueError: for another mode.
    """
    _check_mode(mode, get_args(MaskMode))
    rows = [store.rows[number] for number in store.find(where)]
    rows = [row for row in rows if row.item and not (mode == "fill" and row.masked)]

    def made(images: Sequence[Image.Image], of: Sequence[Row]) -> dict[Any, bytes | None]:
        files: dict[Any, bytes | None] = {}
        for row, image, new in zip(of, images, masker(images), strict=True):
            old = _mask_of(store.mask(row.id), image.size)
            files[row.mask_path] = _png(combine(old, new, mode))
        return files

    return Annotation(
        "A model masks images", partial(_annotate, store, rows, made, "Masks"), report
    )


def duplicates(
    store: ConceptStore, report: Callable[[Annotation], None] | None = None
) -> Annotation:
    """Look for images that look the same, in the background; `Row.twins` has their groups."""
    rows = store.rows

    def work(run: Annotation) -> None:
        run.total = sum(row.item is not None for row in rows)

        def step() -> None:
            run.done += 1
            if run.done % TOLD_EVERY == 0:
                run.told()

        try:
            found = mark_twins(rows, step, lambda: run.stopping)
            run.result = f"{found:,} images look like another." if found else "All differ."
            broken = sum(row.item is not None and BROKEN in row.problems for row in rows)
            if broken:
                run.result += f" {broken:,} cannot be decoded: see the report."
        except CachingStopped:
            run.result = "The search for duplicates was stopped."

    return Annotation("Looking for duplicates", work, report)


def combine(old: Mask | None, new: Mask, mode: MaskMode) -> Mask:
    """A mask out of an image's own, if it has one, and a new one.

    An image without a mask is learnt as a whole: that is what is subtracted from. To what is not
    masked yet nothing can be added, so there `add` and `blend` take the new mask.
    """
    if mode == "subtract":
        whole = np.ones_like(new) if old is None else old
        return (whole - new).clip(0, 1).astype(np.float32)
    if old is None or mode == "replace":
        return new
    if mode == "fill":
        return old
    joined = np.maximum(old, new) if mode == "add" else (old + new) / 2
    return joined.astype(np.float32)


def _annotate(
    store: ConceptStore,
    rows: Sequence[Row],
    made: Callable[[Sequence[Image.Image], Sequence[Row]], dict[Any, bytes | None]],
    what: str,
    run: Annotation,
) -> None:
    run.total = len(rows)
    run.told()
    files: dict[Any, bytes | None] = {}
    try:
        for images, of in _batches(rows, run):
            if run.stopping:
                break
            files |= made(images, of)
            if len(files) >= CHUNK:
                store.write(files, f"{what} by a model: {len(files)} images")
                files = {}
            run.done += len(of)
            run.result = f"{run.done:,} of {run.total:,} images annotated."
            run.told()
    finally:
        if files:  # also what was made before a model failed
            store.write(files, f"{what} by a model: {len(files)} images")


def _batches(rows: Sequence[Row], run: Annotation) -> Iterator[tuple[list[Image.Image], list[Row]]]:
    for first in range(0, len(rows), BATCH):
        images, of = [], []
        for row in rows[first : first + BATCH]:
            assert row.item is not None  # noqa: S101 - rows without one are left out above
            try:
                images.append(still(row.item))  # of a film its first frame
            except (*DAMAGE, Image.DecompressionBombError, ImportError):
                run.skipped.append(row.name)  # gone or damaged since the scan
            else:
                of.append(row)
        if of:
            yield images, of


def _check_mode(mode: str, modes: Sequence[str]) -> None:
    if mode not in modes:
        raise ValueError(f"mode is {mode!r}, but must be one of {', '.join(modes)}.")


def _added(old: str, said: str, delimiter: str) -> str:
    """`old` and the tags of `said` that it does not have, on its first line."""
    if not old.strip():
        return said
    first, *rest = old.strip().split("\n")
    have = {tag.casefold() for tag in tags_of(first, delimiter)}
    new = [tag for tag in tags_of(said, delimiter) if tag.casefold() not in have]
    return "\n".join([join_tags([*tags_of(first, delimiter), *new], delimiter), *rest])


def _mask_of(png: bytes | None, size: tuple[int, int]) -> Mask | None:
    if png is None:
        return None
    with Image.open(io.BytesIO(png)) as picture:
        grey = picture.convert("L").resize(size)
    return (np.asarray(grey, np.float32) / 255).astype(np.float32)


def _png(mask: Mask) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((mask * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
