"""Captions and masks by a model: what it says of each image, joined with what is there already.

A `Captioner` or `Masker` is any function of the right form; two over `transformers` are here. What
is written goes through the journal of the `ConceptStore`, `CHUNK` images a change, so a run that is
stopped keeps what it did and everything can be undone.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modules.data.images import decode
from modules.data.items import DAMAGE
from modules.data.sources import read
from ot_notebook.services.caption_edits import join_tags, tags_of
from ot_notebook.services.concept_items import Row
from ot_notebook.services.concept_store import ConceptStore, Where

CaptionMode = Literal["replace", "fill", "add"]
MaskMode = Literal["replace", "fill", "add", "subtract", "blend"]
Mask = NDArray[np.float32]
"""[h, w] as large as its image; 1 where it is learnt, 0 where it is not."""

CHUNK = 32
"""Images in one entry of the journal."""

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

    Attributes:
        done: images that are annotated.
        total: images that there are to annotate.
        skipped: names of images that could not be read.
        error: what ended the run early, None if nothing did.
        ended: whether all is done that will be.
    """

    def __init__(
        self, work: Callable[[Annotation], None], report: Callable[[Annotation], None] | None
    ) -> None:
        self.done = self.total = 0
        self.skipped: list[str] = []
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

    return Annotation(lambda run: _annotate(store, rows, made, "Captions", run), report)


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

    return Annotation(lambda run: _annotate(store, rows, made, "Masks", run), report)


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


class TransformersCaptioner:
    """BLIP, BLIP-2, GIT and other models of `transformers` that turn a picture into a text.

    Args:
        model: folder or hub id.
        prompt: the beginning of each caption, for models that go on from one.
        max_tokens: length of a caption at most.
        device: where it runs.

    Raises:
        ValueError: for a chat model, which needs a conversation and not a picture alone.
    """

    def __init__(
        self, model: str, prompt: str = "", max_tokens: int = 60, device: str = "cpu"
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._processor = AutoProcessor.from_pretrained(model)
        if getattr(self._processor, "chat_template", None):
            raise ValueError(f"{model} is a chat model. Name a captioning model such as BLIP.")
        self._model = AutoModelForImageTextToText.from_pretrained(model).eval().to(device)
        self._prompt, self._max_tokens, self._device = prompt, max_tokens, device

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """RGB images -> a caption for each."""
        import torch

        text = {"text": [self._prompt] * len(images)} if self._prompt else {}
        inputs = self._processor(images=list(images), return_tensors="pt", **text)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs.to(self._device), max_new_tokens=self._max_tokens
            )
        said = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(one.split()) for one in said]


class ClipSegMasker:
    """CLIPSeg: finds what a text names.

    Args:
        model: folder or hub id.
        prompt: what to look for, such as "a face".
        threshold: how sure it must be, 0 to 1; None keeps shades.
        device: where it runs.
    """

    def __init__(
        self, model: str, prompt: str, threshold: float | None = 0.5, device: str = "cpu"
    ) -> None:
        from transformers import AutoProcessor, CLIPSegForImageSegmentation

        self._processor = AutoProcessor.from_pretrained(model)
        self._model = CLIPSegForImageSegmentation.from_pretrained(model).eval().to(device)
        self._prompt, self._threshold, self._device = prompt, threshold, device

    def __call__(self, images: Sequence[Image.Image]) -> list[Mask]:
        """RGB images -> a mask for each."""
        import torch

        inputs = self._processor(
            text=[self._prompt] * len(images),
            images=list(images),
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits = self._model(**inputs.to(self._device)).logits
        sure = torch.sigmoid(logits).reshape(len(images), *logits.shape[-2:]).cpu().numpy()
        found = []
        for image, one in zip(images, sure, strict=True):
            scaled = Image.fromarray(one.astype(np.float32)).resize(image.size)
            mask = np.asarray(scaled, np.float32).clip(0, 1)
            if self._threshold is not None:
                mask = (mask >= self._threshold).astype(np.float32)
            found.append(mask)
        return found


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
                images.append(decode(read(row.item.source, row.item.name)))
            except (*DAMAGE, Image.DecompressionBombError):
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
