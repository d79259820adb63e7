"""From a scan to a training set whose encodings are all at hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.config import ConceptConfig
from modules.config.enums import ConceptType
from modules.config.problems import error
from modules.data.ahead import CachingStopped, together
from modules.data.buckets import Bucket, Size
from modules.data.cache import Row, Space, prune, space_name
from modules.data.encode import (
    Encoder,
    Mask,
    Picture,
    Progress,
    Shown,
    encode_captions,
    encode_hints,
    encode_masks,
    encode_pictures,
    shown_of,
)
from modules.data.films import Lengths
from modules.data.findings import DataProblem, Findings
from modules.data.images import Circle, View
from modules.data.items import Item, Scan
from modules.data.live import Live
from modules.data.plan import Framing, Planned, Planner, plan
from modules.data.schedule import Indices, Positions

TRAINED = (ConceptType.STANDARD, ConceptType.PRIOR_PREDICTION)
NOWHERE: Row = (-1, -1)
ATTEMPTS = 3
"""How often a cache is filled that another process empties meanwhile."""
GIB = 1 << 30
AnyView = TypeVar("AnyView", tuple[bytes, View], tuple[bytes, View, Circle | None])


class Encodings(Positions):
    """One tensor or more for each variation of each item, on disk until it is used.

    Args:
        space: what holds them.
        rows: for each item, the place of each of its variations.
    """

    def __init__(self, space: Space, rows: Sequence[Sequence[Row]]) -> None:
        super().__init__([len(item) for item in rows])
        flat = np.array([row for item in rows for row in item], np.int32).reshape(-1, 2)
        self._rows = flat
        self._shards = space.load([shard for shard in np.unique(flat[:, 0]).tolist() if shard >= 0])

    def get(self, place: int) -> Mapping[str, Tensor] | None:
        """The tensors at a flat position, each [...]; None where there are none."""
        shard, row = self._rows[place].tolist()
        if shard < 0:
            return None
        return {name: tensor[row] for name, tensor in self._shards[shard].items()}

    def stack(self, places: Indices) -> dict[str, Tensor]:
        """The tensors at some flat positions, each [B, ...], where there surely are some."""
        shards = self._rows[places, 0]
        if (shards == shards[0]).all():  # at once: torch lets go of Python's lock at each call
            index = torch.from_numpy(self._rows[places, 1])
            held = self._shards[int(shards[0])]
            return {name: tensor.index_select(0, index) for name, tensor in held.items()}
        rows = [(self._shards[shard], row) for shard, row in self._rows[places].tolist()]
        return {name: torch.stack([held[name][row] for held, row in rows]) for name in rows[0][0]}


@dataclass(frozen=True)
class Dataset:
    """A training set, encoded. `Batches` delivers it."""

    concepts: tuple[ConceptConfig, ...]
    items: tuple[Item, ...]
    digests: NDArray[np.uint8]
    """SHA-256 of each item's file, [items, 32]."""
    sizes: tuple[Bucket, ...]
    """The buckets."""
    buckets: NDArray[np.int16]
    """Bucket of each image variation, an index into `sizes`, by flat position."""
    crops: NDArray[np.int32]
    """Top and left of its crop in the scaled image, [variations, 2]."""
    images: Encodings | Live
    """In the cache, or encoded when they are needed; what follows is then None."""
    masks: Encodings | None
    hints: Encodings | None
    """What the denoiser reads of each view; None if it reads nothing."""
    texts: Encodings | None
    """None while a text encoder trains: captions are then encoded in the loop."""
    problems: tuple[DataProblem, ...]
    planner: Planner

    def __len__(self) -> int:
        return len(self.items)

    def caption(self, index: int, variation: int) -> str:
        """What is said about an item in a variation."""
        if self.texts is not None:
            variation %= int(self.texts.count[index])
        return self.planner.caption(self.items[index], self.digests[index].tobytes(), variation)


def build(
    found: Scan,
    encoder: Encoder,
    cache_dir: Path | None,
    *,
    resolution: str,
    quantum: int,
    bucketing: bool,
    threads: int,
    report: Callable[[int, int], None],
    should_stop: Callable[[], bool],
    masks: bool = False,
    conditioning: bool = False,
    types: Sequence[ConceptType] = TRAINED,
    films: Lengths | None = None,
    cache_limit: float = 0.0,
    warn: Callable[[DataProblem], None] = lambda _problem: None,
) -> Dataset:
    """Encode what the cache lacks of the images to train on, and say where everything is.

    Args:
        found: what to train on.
        encoder: the networks.
        cache_dir: folder of the cache, which runs may share; None to encode each batch anew.
        resolution: `512`, several as `512,768`, or width and height as `768x512`.
        quantum: edges are multiples of this many pixels.
        bucketing: train at several shapes; otherwise crop to squares.
        threads: how many read and decode images.
        report: receives how many encodings are done, of how many.
        should_stop: asked between images.
        masks: read the mask beside each image.
        conditioning: show an inpainting model the conditioning image beside each image, whole.
        types: the kinds of concept that take part.
        films: how long films are; None where none were listed.
        cache_limit: GiB above which what was not used for longest leaves the cache; 0 for none.
        warn: receives what becomes of files later, where each batch is encoded anew.

    Raises:
        CachingStopped: if told to stop; what was encoded is kept.
        ConfigError: if nothing is left to train on, the cache cannot be written, or a setting
            cannot work.
    """
    findings = Findings()
    framing = Framing.for_hint(
        encoder.hint,
        resolution,
        quantum,
        bucketing,
        masks=masks,
        conditioning=conditioning,
        films=films,
    )
    planner, planned = plan(found.only(*types), framing, threads, should_stop, findings)
    if framing.conditioning:
        planned = _with_conditioning(planned, findings)
    if cache_dir is None:
        images = Live(encoder, planner, framing, planned, _sizes(planned), threads, warn)
        return _dataset(found.concepts, planned, planner, findings, images)
    for _ in range(ATTEMPTS):
        fill = _Fill(encoder, cache_dir, framing, planned, threads, findings, report, should_stop)
        fill.run()
        with suppress(FileNotFoundError):  # another process removed a shard: encode anew
            dataset = fill.dataset(found.concepts, planner)
            prune(cache_dir, int(cache_limit * GIB), keep=fill.shards())
            return dataset
    message = f"cache_dir is {cache_dir}, where files vanish as soon as they are written."
    raise error("cache_dir", message, "Raise ot.cache_limit, or choose a folder of its own.")


class _Fill:
    """One filling of the cache."""

    def __init__(
        self,
        encoder: Encoder,
        cache_dir: Path,
        framing: Framing,
        planned: list[Planned],
        threads: int,
        findings: Findings,
        report: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._encoder, self._planned, self._findings = encoder, planned, findings
        self._framing = framing
        self._images = Space(cache_dir / space_name("image", encoder.image_identity))
        self._masks = Space(cache_dir / "mask")
        self._hints = Space(cache_dir / space_name("hint", encoder.hint_identity))
        self._texts = None
        if encoder.text_identity is not None:
            self._texts = Space(cache_dir / space_name("text", encoder.text_identity))
        self._done, self._total, self._report = 0, 0, report
        self._counting, self._halted = threading.Lock(), threading.Event()
        self._should_stop = should_stop
        stop = lambda: self._halted.is_set() or should_stop()  # noqa: E731
        self._progress = Progress(threads, findings, self._step, stop)

    def run(self) -> None:
        """Encode what is missing.

        Raises:
            CachingStopped: if told to stop; what was encoded is kept.
        """
        pictures, captions = sum(len(p.views) for p in self._pictures()), len(self._captions())
        hints = sum(len(shown.views) for shown in self._shown())
        self._total = pictures + captions + hints

        def look() -> None:
            if pictures:
                with self._images.writing(self._progress.should_stop):
                    # asked again: another process may have encoded them while this one waited
                    encode_pictures(self._pictures(), self._encoder, self._images, self._progress)
            if hints:
                with self._hints.writing(self._progress.should_stop):
                    hide = not self._framing.conditioning
                    encode_hints(self._shown(), self._encoder, self._hints, self._progress, hide)

        def listen() -> None:
            if captions and self._texts is not None:
                with self._texts.writing(self._progress.should_stop):
                    missing = self._captions().items()
                    encode_captions(missing, self._encoder, self._texts, self._progress)

        if self._encoder.lanes > 1 and captions and (pictures or hints):
            together([look, listen], self._halted.set)
        else:
            look()
            listen()
        self._grids = self._latent_grids()
        if masks := list(self._missing_masks()):
            self._total = self._done + sum(len(mask.places) for mask in masks)
            with self._masks.writing(self._progress.should_stop):
                encode_masks(self._missing_masks(), self._masks, self._progress)
        if self._should_stop():
            raise CachingStopped

    def shards(self) -> set[Path]:
        """The files that hold what this run uses."""
        spaces = [self._images, self._masks, self._hints, self._texts]
        return {path for space in spaces if space for path in space.loaded}

    def dataset(self, concepts: tuple[ConceptConfig, ...], planner: Planner) -> Dataset:
        """What the cache now holds of the plan."""
        usable = [p for p in self._planned if self._complete(p)]
        self._hint_at_unused_captions(usable)
        images = [[self._images[key] for key in p.image_keys()] for p in usable]
        texts = None
        if self._texts is not None:
            rows = [[self._texts[key] for key in p.text_keys()] for p in usable]
            texts = Encodings(self._texts, rows)
        return _dataset(
            concepts,
            usable,
            planner,
            self._findings,
            Encodings(self._images, images),
            self._optional(self._masks, [self._mask_keys(p) for p in usable], usable),
            self._optional(self._hints, [self._hint_keys(p) for p in usable], usable),
            texts,
        )

    def _step(self, count: int) -> None:
        with self._counting:
            self._done += count
            self._report(self._done, self._total)

    def _pictures(self) -> Iterator[Picture]:
        """What to encode: a file is decoded once for all views of one size, a view encoded once."""
        seen: set[bytes] = set()
        for planned in self._planned:
            item = planned.item
            views = zip(planned.image_keys(), planned.views, strict=True)
            for missing in _by_bucket(views, self._images, seen):
                yield Picture(item, planned.digests.image, missing)

    def _shown(self) -> Iterator[Shown]:
        """What to encode of hints: those that many images share once."""
        seen: set[bytes] = set()
        for planned in self._planned:
            keys, views = self._hint_keys(planned), planned.shown_views()
            places = zip(keys, views, planned.circles, strict=False)
            for missing in _by_bucket(places, self._hints, seen):
                yield shown_of(planned, self._framing.hint, missing)

    def _captions(self) -> dict[bytes, str]:
        if self._texts is None:
            return {}
        named = (zip(p.text_keys(), p.captions, strict=True) for p in self._planned)
        pairs = (pair for pairs in named for pair in pairs)
        return {key: text for key, text in pairs if key not in self._texts}

    def _latent_grids(self) -> dict[Size, tuple[int, int]]:
        """Height and width of the latents of each size, as far as masks need it."""
        grids: dict[Size, tuple[int, int]] = {}
        for planned in self._planned:
            if planned.digests.mask:
                for key, view in zip(planned.image_keys(), planned.views, strict=True):
                    if view.size not in grids and key in self._images:
                        height, width = self._images.shape(key, "latents")[-2:]
                        grids[view.size] = height, width
        return grids

    def _hint_keys(self, planned: Planned) -> list[bytes]:
        return planned.hint_keys(self._framing.hint)

    def _mask_keys(self, planned: Planned) -> list[bytes]:
        if not planned.digests.mask:
            return []
        return planned.mask_keys([self._grids[view.size] for view in planned.views])

    def _missing_masks(self) -> Iterator[Mask]:
        for planned in self._planned:
            item = planned.item
            if item.mask and all(view.size in self._grids for view in planned.views):
                keys = self._mask_keys(planned)
                grids = (self._grids[view.size] for view in planned.views)
                places = zip(keys, planned.views, planned.circles, grids, strict=False)
                missing = tuple(place for place in places if place[0] not in self._masks)
                if missing:
                    size = item.width, item.height
                    yield Mask(item.source, item.mask.name, planned.digests.mask, size, missing)

    def _complete(self, planned: Planned) -> bool:
        """Whether all that belongs to an item was encoded; what was not is in the findings."""
        spaces = {
            self._images: planned.image_keys(),
            self._masks: self._mask_keys(planned),
            self._hints: self._hint_keys(planned),
        }
        return all(key in space for space, keys in spaces.items() for key in keys)

    def _optional(
        self, space: Space, keys: Iterable[Sequence[bytes]], usable: Sequence[Planned]
    ) -> Encodings | None:
        rows = [
            [space[key] for key in found] or [NOWHERE] * len(planned.views)
            for found, planned in zip(keys, usable, strict=True)
        ]
        if all(row == NOWHERE for item in rows for row in item):
            return None
        return Encodings(space, rows)

    def _hint_at_unused_captions(self, usable: Sequence[Planned]) -> None:
        """Several captions beside an image, of which a cache of one variation uses but one."""
        if self._texts is None:
            return
        for planned in usable:
            if len(set(planned.item.captions)) > 1 and len(planned.captions) == 1:
                message = "has several captions, of which one is cached and used."
                fix = "Set text_variations of its concept to as many as shall be used."
                self._findings.add("unused captions", planned.item.path, message, fix)


def _sizes(planned: Sequence[Planned]) -> tuple[Bucket, ...]:
    return tuple(sorted({view.bucket for each in planned for view in each.views}))


def _dataset(
    concepts: tuple[ConceptConfig, ...],
    planned: Sequence[Planned],
    planner: Planner,
    findings: Findings,
    images: Encodings | Live,
    masks: Encodings | None = None,
    hints: Encodings | None = None,
    texts: Encodings | None = None,
) -> Dataset:
    """The images that were planned, and where their encodings are.

    Raises:
        ConfigError: if there are none.
    """
    if not planned:
        reasons = " ".join(map(str, findings.problems()))
        message = f"No image is left to train on. {reasons}".rstrip()
        raise error("concepts", message, "Add a concept with images, or enable one.")
    views, sizes = [view for each in planned for view in each.views], _sizes(planned)
    number = {bucket: index for index, bucket in enumerate(sizes)}
    return Dataset(
        concepts,
        tuple(each.item for each in planned),
        np.frombuffer(b"".join(each.digests.image for each in planned), np.uint8).reshape(-1, 32),
        sizes,
        np.array([number[view.bucket] for view in views], np.int16),
        np.array([(view.top, view.left) for view in views], np.int32),
        images,
        masks,
        hints,
        texts,
        findings.problems(),
        planner,
    )


def _by_bucket(
    views: Iterable[AnyView], space: Space, seen: set[bytes]
) -> Iterator[tuple[AnyView, ...]]:
    """Views whose key neither the cache nor `seen` has, together where they are of one bucket.

    So a file is decoded once for all of them.
    """
    by_bucket: dict[Bucket, list[AnyView]] = {}
    for each in views:
        key, view = each[0], each[1]
        if key not in space and key not in seen:
            seen.add(key)
            by_bucket.setdefault(view.bucket, []).append(each)
    return map(tuple, by_bucket.values())


def _with_conditioning(planned: list[Planned], findings: Findings) -> list[Planned]:
    """The items that have a conditioning image."""
    for one in planned:
        if not one.digests.conditioning:
            message = "has no conditioning image beside it, and is left out."
            fix = "Add one of the same name that ends in -condlabel.png."
            findings.add("unsupported", one.item.path, message, fix, skipped=True)
    return [one for one in planned if one.digests.conditioning]
