"""What a training set is like, in numbers and by name, before anything is trained on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from modules.config.enums import BalancingStrategy
from modules.data.ahead import ahead
from modules.data.buckets import Bucket, targets
from modules.data.findings import NAMED, DataProblem, printable
from modules.data.images import still
from modules.data.items import DAMAGE, Item, Scan
from modules.data.plan import Framing

ALIKE = 3
"""Bits of 64 in which the hashes of two pictures may differ that count as one."""

BROKEN = -1
"""Stands for the hash of a picture that cannot be decoded."""


@dataclass(frozen=True)
class ConceptReport:
    """One concept in numbers."""

    name: str
    type: str
    images: int
    looks: int
    """Images of it that an epoch shows."""
    captioned: int
    masks: int
    conditioning: int
    size: int
    """Bytes of the image files."""


@dataclass(frozen=True)
class BucketReport:
    """The images that one size would take, were it alone."""

    resolution: str
    bucket: Bucket
    images: int
    upscaled: int
    """Those that are smaller than it."""
    kept: float
    """Share of their area that the crop keeps, on average."""

    @property
    def what(self) -> str:
        """What they are."""
        return "films" if self.bucket.frames > 1 else "images"


@dataclass(frozen=True)
class TokenReport:
    """How long captions are."""

    limit: int | None
    """Tokens that the text encoder reads; None where its tokenizer names no limit."""
    longest: int
    mean: float
    over: tuple[tuple[str, int], ...]
    """Images whose caption is longer than the limit, and its tokens."""


@dataclass(frozen=True)
class DataReport:
    """A training set: what there is, how it would be cut, and what is wrong with it."""

    concepts: tuple[ConceptReport, ...]
    sizes: tuple[tuple[int, int, int], ...]
    """Width, height and number of images of that size, the most frequent first."""
    buckets: tuple[BucketReport, ...]
    tokens: TokenReport | None
    duplicates: tuple[tuple[str, ...], ...]
    """Groups of images that look the same."""
    turned: tuple[str, ...]
    """Images that the camera was turned for; they train upright."""
    problems: tuple[DataProblem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = []
        for concept in self.concepts:
            lines.append(
                f"{printable(concept.name)} ({concept.type}): {concept.images:,} images, "
                f"{concept.looks:,} an epoch, {concept.captioned:,} with captions, "
                f"{concept.size / 2**20:,.1f} MiB"
            )
        for bucket in self.buckets:
            smaller = f", {bucket.upscaled:,} of them smaller" if bucket.upscaled else ""
            lines.append(
                f"{bucket.bucket}: {bucket.images:,} {bucket.what}{smaller}, "
                f"crops keep {bucket.kept:.0%}"
            )
        if self.tokens:
            lines.append(_said(self.tokens))
        if self.turned:
            lines.append(f"turned by the camera, and trained upright: {len(self.turned):,} images")
        lines += [f"look the same: {', '.join(map(printable, g))}" for g in self.duplicates]
        return "\n".join([*lines, *map(str, self.problems)])


def report(
    found: Scan,
    framing: Framing,
    tokens: Callable[[Sequence[str]], Sequence[int]] | None = None,
    limit: int | None = 77,
    duplicates: bool = True,
    threads: int = 2,
    should_stop: Callable[[], bool] = lambda: False,
) -> DataReport:
    """Describe what was scanned.

    Args:
        found: the scan.
        framing: sizes to cut to.
        tokens: counts the tokens of captions as the model's tokenizer does; None leaves it out.
        limit: tokens that the text encoder reads; None for any number.
        duplicates: look for images that look the same, for which each is decoded; so those that
            cannot be are found, too.
        threads: how many decode.
        should_stop: asked between images.

    Raises:
        CachingStopped: if told to stop.
        ValueError: if a resolution is none.
    """
    sizes = Counter((item.width, item.height) for item in found.items)
    broken: list[str] = []
    groups: list[list[int]] = []
    if duplicates:
        failed = lambda index: broken.append(found.items[index].path)  # noqa: E731
        groups = alike(found.items, threads, should_stop, failed=failed)
    return DataReport(
        tuple(_concept(found, index) for index, c in enumerate(found.concepts) if c.enabled),
        tuple((*size, count) for size, count in sizes.most_common()),
        tuple(_buckets(found, framing)),
        _tokens(found.items, tokens, limit) if tokens else None,
        tuple(tuple(found.items[index].path for index in group) for group in groups),
        tuple(item.path for item in found.items if item.turned),
        found.problems + undecodable(broken),
    )


def undecodable(paths: Sequence[str]) -> tuple[DataProblem, ...]:
    """What is wrong with pictures whose beginning is whole, and the rest is not."""
    if not paths:
        return ()
    message, fix = "cannot be decoded, and is left out.", "Mend or remove it."
    return (DataProblem("unreadable image", message, fix, True, tuple(paths)),)


def _concept(found: Scan, index: int) -> ConceptReport:
    concept = found.concepts[index]
    items = [item for item in found.items if item.concept == index]
    looks = int(concept.balancing)
    if concept.balancing_strategy is BalancingStrategy.REPEATS:
        looks = int(len(items) * concept.balancing)
    return ConceptReport(
        concept.name or concept.path,
        concept.type.value,
        len(items),
        looks if items else 0,
        sum(any(item.captions) for item in items),
        sum(item.mask is not None for item in items),
        sum(item.conditioning is not None for item in items),
        sum(item.file.size for item in items),
    )


def _buckets(found: Scan, framing: Framing) -> list[BucketReport]:
    groups: dict[tuple[str, Bucket], list[Item]] = defaultdict(list)
    for item in found.items:
        image = found.concepts[item.concept].image
        text = image.resolution_override if image.enable_resolution_override else framing.resolution
        for target in targets(text, framing.quantum, framing.bucketing):
            size = target.nearest(item.width, item.height)
            frames = framing.films.of(item.film) if item.film and framing.films else 1
            groups[target.text, Bucket(*size, frames)].append(item)
    return [
        BucketReport(
            resolution,
            bucket,
            len(items),
            sum(item.width < bucket.width or item.height < bucket.height for item in items),
            float(np.mean([bucket.size.kept(item.width, item.height) for item in items])),
        )
        for (resolution, bucket), items in sorted(groups.items())
    ]


def _tokens(
    items: Sequence[Item], tokens: Callable[[Sequence[str]], Sequence[int]], limit: int | None
) -> TokenReport | None:
    if not items:
        return None
    counts = [max(tokens(item.captions)) for item in items]  # of its captions the longest
    over = [(i.path, n) for i, n in zip(items, counts, strict=True) if limit and n > limit]
    over.sort(key=lambda one: -one[1])
    return TokenReport(limit, max(counts), float(np.mean(counts)), tuple(over))


def _said(tokens: TokenReport) -> str:
    """How long captions are, in a line."""
    said = f"captions: {tokens.mean:.0f} tokens on average, {tokens.longest} at most"
    if tokens.limit:
        said += f", {len(tokens.over):,} longer than the {tokens.limit} that are read"
    if tokens.over:
        named = [f"{printable(path)} ({count})" for path, count in tokens.over[:NAMED]]
        more = len(tokens.over) - NAMED
        said += f": {', '.join(named)}" + (f" and {more:,} more" if more > 0 else "")
    return said


def alike(
    items: Sequence[Item],
    threads: int = 2,
    should_stop: Callable[[], bool] = lambda: False,
    step: Callable[[], None] = lambda: None,
    failed: Callable[[int], None] = lambda _index: None,
) -> list[list[int]]:
    """Groups of images that look the same, as indices into `items`: their hashes nearly agree.

    Args:
        items: what is compared; each is decoded.
        threads: how many decode.
        should_stop: asked between images.
        step: called after each image.
        failed: told which cannot be decoded.

    Raises:
        CachingStopped: if told to stop.
    """
    hashes: list[int | None] = []
    for value in ahead(_look, items, threads, 64, should_stop):
        if value == BROKEN:
            failed(len(hashes))
        hashes.append(None if value == BROKEN else value)
        step()
    leader = list(range(len(items)))

    def root(index: int) -> int:
        while leader[index] != index:
            leader[index] = index = leader[leader[index]]
        return index

    seen: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, value in enumerate(hashes):
        if value is None:
            continue
        for piece in range(ALIKE + 1):  # of four pieces, three differing bits leave one as it is
            near = seen[piece, (value >> 16 * piece) & 0xFFFF]
            for other in near:
                if ((hashes[other] or 0) ^ value).bit_count() <= ALIKE:
                    leader[root(index)] = root(other)
            near.append(index)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(items)):
        groups[root(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _look(item: Item) -> int | None:
    """Difference hash: 64 bits of whether each of 8 x 8 places is brighter than the one before.

    None for a picture without contrast, which would be like every other such.

    Source: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013.
    """
    try:
        small = still(item).convert("L")
    except (*DAMAGE, ImportError):
        return BROKEN
    grey = np.asarray(small.resize((9, 8), Image.Resampling.BOX)).astype(int)
    if np.ptp(grey) < 8:
        return None
    bits = (grey[:, 1:] > grey[:, :-1]).reshape(16, 4).T.ravel()  # each piece from everywhere
    return int("".join("01"[bit] for bit in bits.astype(int)), 2)
