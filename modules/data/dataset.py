"""From a scan to a training set whose encodings are all at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modules.config import ConceptConfig
from modules.config.enums import ConceptType
from modules.config.problems import error
from modules.data import captions
from modules.data.buckets import Size, Target, targets
from modules.data.cache import Row, Space, key_of
from modules.data.draws import stream
from modules.data.encode import (
    CachingStopped,
    Encoder,
    Picture,
    digest_files,
    encode_captions,
    encode_pictures,
)
from modules.data.findings import DataProblem, Findings
from modules.data.images import View, draw_view
from modules.data.items import Item, Scan


class Variations:
    """Where the encodings of each item's variations are, in arrays rather than objects.

    Args:
        rows: for each item, the place of each of its variations.
    """

    def __init__(self, rows: Sequence[Sequence[Row]]) -> None:
        self.count: NDArray[np.int32] = np.fromiter(map(len, rows), np.int32, len(rows))
        self._first = np.cumsum(self.count, dtype=np.int64) - self.count
        flat = [row for item in rows for row in item]
        self._rows = np.array(flat, np.int32).reshape(-1, 2)

    def at(self, items: NDArray[np.int64], variations: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat position of an item's variation; counts on from the first after the last."""
        return self._first[items] + variations % self.count[items]

    def __getitem__(self, position: int) -> Row:
        shard, row = self._rows[position]
        return int(shard), int(row)


@dataclass(frozen=True)
class Dataset:
    """A training set, encoded. `Batches` delivers it."""

    concepts: tuple[ConceptConfig, ...]
    items: tuple[Item, ...]
    digests: NDArray[np.uint8]
    """SHA-256 of each item's file, [items, 32]."""
    sizes: tuple[Size, ...]
    """The buckets."""
    buckets: NDArray[np.int32]
    """Bucket of each variation, an index into `sizes`, by flat position."""
    crops: NDArray[np.int32]
    """Top and left of each variation's crop in the scaled image, [variations, 2]."""
    images: Variations
    texts: Variations | None
    """None while a text encoder trains: captions are then encoded in the loop."""
    image_shards: dict[int, dict[str, Tensor]]
    text_shards: dict[int, dict[str, Tensor]]
    problems: tuple[DataProblem, ...]

    def __len__(self) -> int:
        return len(self.items)

    def caption(self, index: int, variation: int) -> str:
        """What is said about an item in a variation."""
        concept = self.concepts[self.items[index].concept]
        if self.texts is not None:
            variation %= concept.text_variations
        return _caption(concept, self.items[index], self.digests[index].tobytes(), variation)


def build(
    found: Scan,
    encoder: Encoder,
    cache_dir: Path,
    *,
    resolution: str,
    quantum: int,
    bucketing: bool,
    threads: int,
    report: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> Dataset:
    """Encode what the cache lacks of the images to train on, and say where everything is.

    Args:
        found: what to train on; images of VALIDATION concepts are left out.
        encoder: the networks.
        cache_dir: folder of the cache; runs may share one.
        resolution: `512`, several as `512,768`, or width and height as `768x512`.
        quantum: edges are multiples of this many pixels.
        bucketing: train at several shapes; otherwise crop to squares.
        threads: how many read and decode images.
        report: receives how many encodings are done, of how many.
        should_stop: asked between images.

    Raises:
        CachingStopped: if told to stop; what was encoded is kept.
        ConfigError: if nothing is left to train on, or the resolution is none.
    """
    findings = Findings()
    chosen = found.only(ConceptType.STANDARD, ConceptType.PRIOR_PREDICTION)
    plan = _plan(chosen, resolution, quantum, bucketing, threads, should_stop, findings)
    images = Space(cache_dir / f"image-{_short(encoder.image_identity)}")
    texts = None
    if encoder.text_identity is not None:
        texts = Space(cache_dir / f"text-{_short(encoder.text_identity)}")

    pictures = list(_missing_pictures(plan, images))
    sayings = {} if texts is None else _missing_captions(plan, texts)
    total = sum(len(picture.views) for picture in pictures) + len(sayings)
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    if pictures:
        with images.writing(should_stop) as go:
            if not go:
                raise CachingStopped
            pictures = list(_missing_pictures(plan, images))  # another process may have been here
            encode_pictures(pictures, encoder, images, threads, findings, step, should_stop)
    if texts is not None and sayings:
        with texts.writing(should_stop) as go:
            if not go:
                raise CachingStopped
            sayings = _missing_captions(plan, texts)
            encode_captions(sayings.items(), encoder, texts, step, should_stop)
    if should_stop():
        raise CachingStopped
    return _assemble(found.concepts, plan, images, texts, findings)


@dataclass(frozen=True, slots=True)
class _Planned:
    """An item with all that is drawn about it."""

    item: Item
    digest: bytes
    views: tuple[View, ...]
    image_keys: tuple[bytes, ...]
    captions: tuple[str, ...]
    text_keys: tuple[bytes, ...]


def _plan(
    found: Scan,
    resolution: str,
    quantum: int,
    bucketing: bool,
    threads: int,
    should_stop: Callable[[], bool],
    findings: Findings,
) -> list[_Planned]:
    allowed: dict[int, tuple[Target, ...]] = {}
    for index, concept in enumerate(found.concepts):
        own = concept.image.enable_resolution_override
        text = concept.image.resolution_override if own else resolution
        try:
            allowed[index] = targets(text, quantum, bucketing)
        except ValueError as failure:
            field = f"concepts.{index}.image.resolution_override" if own else "resolution"
            raise error(field, str(failure), "") from None
    plan = []
    digests = digest_files(found.items, threads, should_stop, findings)
    for item, digest in zip(found.items, digests, strict=True):
        if digest:
            plan.append(_draw(found.concepts[item.concept], item, digest, allowed[item.concept]))
    return plan


def _draw(
    concept: ConceptConfig, item: Item, digest: bytes, allowed: tuple[Target, ...]
) -> _Planned:
    views, texts = [], []
    for variation in range(concept.image_variations):
        names = (concept.seed, digest.hex(), variation)
        target = allowed[0] if len(allowed) == 1 else stream("size", *names).choice(allowed)
        size = target.nearest(item.width, item.height)
        views.append(draw_view(concept.image, item.width, item.height, size, *names))
    for variation in range(concept.text_variations):
        texts.append(_caption(concept, item, digest, variation))
    return _Planned(
        item,
        digest,
        tuple(views),
        tuple(key_of("image", digest, view.changes()) for view in views),
        tuple(texts),
        tuple(key_of("text", text) for text in texts),
    )


def _caption(concept: ConceptConfig, item: Item, digest: bytes, variation: int) -> str:
    if not captions.varies(concept.text, item.captions):
        return captions.vary(concept.text, item.captions, stream())
    rng = stream("caption", concept.seed, digest.hex(), variation)
    return captions.vary(concept.text, item.captions, rng)


def _missing_pictures(plan: Sequence[_Planned], space: Space) -> Iterator[Picture]:
    """What to encode: a file is decoded once for all views of one size, a view encoded once."""
    seen: set[bytes] = set()
    for planned in plan:
        by_size: dict[Size, list[tuple[bytes, View]]] = {}
        for key, view in zip(planned.image_keys, planned.views, strict=True):
            if key not in space and key not in seen:
                seen.add(key)
                by_size.setdefault(view.size, []).append((key, view))
        for views in by_size.values():
            yield Picture(planned.item, planned.digest, tuple(views))


def _missing_captions(plan: Sequence[_Planned], space: Space) -> dict[bytes, str]:
    pairs = (pair for p in plan for pair in zip(p.text_keys, p.captions, strict=True))
    return {key: text for key, text in pairs if key not in space}


def _assemble(
    concepts: tuple[ConceptConfig, ...],
    plan: Sequence[_Planned],
    images: Space,
    texts: Space | None,
    findings: Findings,
) -> Dataset:
    usable = [p for p in plan if all(key in images for key in p.image_keys)]
    if not usable:
        raise error(
            "concepts",
            "No image is left to train on.",
            "Add a concept with images, enable one, or mend what the warnings name.",
        )
    views = [view for planned in usable for view in planned.views]
    sizes = tuple(sorted({view.size for view in views}))
    number = {size: index for index, size in enumerate(sizes)}
    image_rows = [[images[key] for key in p.image_keys] for p in usable]
    text_rows = None
    if texts is not None:
        text_rows = [[texts[key] for key in p.text_keys] for p in usable]
    return Dataset(
        concepts,
        tuple(planned.item for planned in usable),
        np.frombuffer(b"".join(p.digest for p in usable), np.uint8).reshape(-1, 32),
        sizes,
        np.array([number[view.size] for view in views], np.int32),
        np.array([(view.top, view.left) for view in views], np.int32),
        Variations(image_rows),
        None if text_rows is None else Variations(text_rows),
        _open_shards(images, image_rows),
        {} if texts is None or text_rows is None else _open_shards(texts, text_rows),
        findings.problems(),
    )


def _open_shards(space: Space, rows: Sequence[Sequence[Row]]) -> dict[int, dict[str, Tensor]]:
    return space.load(sorted({shard for item in rows for shard, _ in item}))


def _short(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
