"""Which images an epoch shows and in which batches; the seed and the epoch decide all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from modules.config import ConceptConfig
from modules.config.enums import BalancingStrategy, Leftovers
from modules.config.problems import error
from modules.data.buckets import Bucket
from modules.data.draws import permutation
from modules.data.items import Item

Indices = NDArray[np.int32]
"""Half of numpy's usual: there is one for each image."""
Counts = NDArray[np.int64]


class Positions:
    """Variations of each item, one after the other.

    Args:
        counts: how many each item has.
    """

    def __init__(self, counts: Sequence[int] | Indices) -> None:
        self.count: Indices = np.array(counts, np.int32)
        """Variations of each item."""
        self._first: Indices = np.cumsum(self.count, dtype=np.int32) - self.count

    def at(self, items: Indices, variations: Indices) -> Indices:
        """Flat position of an item's variation; counts on from the first after the last."""
        return self._first[items] + variations % self.count[items]


class TrainingSet(Protocol):
    """What of a `Dataset` decides the order."""

    @property
    def concepts(self) -> Sequence[ConceptConfig]:
        """Their shares, by balancing."""

    @property
    def items(self) -> Sequence[Item]:
        """The images."""

    @property
    def sizes(self) -> Sequence[Bucket]:
        """The buckets."""

    @property
    def buckets(self) -> NDArray[np.int16]:
        """Bucket of each variation, an index into `sizes`, by flat position."""

    @property
    def images(self) -> Positions:
        """Where the variations are."""


@dataclass(frozen=True)
class Epoch:
    """Item and variation of every place of every batch, each [batches, images of a batch]."""

    items: Indices
    variations: Indices


@dataclass(frozen=True)
class BucketPlan:
    """What an epoch does with the images of one size."""

    bucket: Bucket
    images: int
    """Images of this size that the epoch shows, repeats counted."""
    batches: int
    again: int
    """Further looks at some of them that fill the last batch (PAD)."""
    waiting: int
    """Looks that are put off to a later epoch (ROTATE)."""
    dropped: int
    """Images that this epoch leaves out (DROP)."""


@dataclass(frozen=True)
class _Looks:
    """What an epoch shows, in no order yet."""

    items: Indices
    variations: Indices
    buckets: NDArray[np.int16]


class Schedule:
    """The order of a training set.

    Args:
        dataset: its images and their buckets.
        batch_size: images of a batch, of all ranks together.
        seed: decides the order.
        leftovers: what becomes of images that fill no batch of their size.

    Raises:
        ConfigError: if no epoch would have a batch.
    """

    def __init__(
        self, dataset: TrainingSet, batch_size: int, seed: int, leftovers: Leftovers
    ) -> None:
        self._data, self._size, self._seed, self._leftovers = dataset, batch_size, seed, leftovers
        concepts = np.array([item.concept for item in dataset.items])
        self._members = [
            np.flatnonzero(concepts == c).astype(np.int32) for c in range(len(dataset.concepts))
        ]
        self._counts = [self._looks_of(c) for c in range(len(dataset.concepts))]
        self._sums: list[Counts] = [np.zeros(len(dataset.sizes), np.int64)]
        self._fixed = self._is_fixed()
        self._looks = lru_cache(maxsize=2)(self._draw_looks)
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        """Batches of an epoch, as an `Epoch`."""
        if not sum(self._counts):
            message = "Every concept's balancing comes to less than one image an epoch."
            raise error("concepts", message, "Raise the balancing of one.")
        if leftovers is Leftovers.DROP and not self.batches_in(0):
            most = max(int(count) for count in self._bucket_counts(0))
            message = f"batch_size is {batch_size}, but no size has more than {most} images."
            fix = f"Set it to {most} or less, or ot.leftovers to PAD."
            raise error("batch_size", message, fix)

    def batches_in(self, epoch: int) -> int:
        """Batches of an epoch."""
        return int(self._batch_counts(epoch).sum())

    def buckets(self, epoch: int) -> list[BucketPlan]:
        """What an epoch does with each size."""
        plans = []
        counts, batches = self._bucket_counts(epoch), self._batch_counts(epoch)
        before = self._before(epoch) % self._size
        for bucket, images, count, carried in zip(
            self._data.sizes, counts.tolist(), batches.tolist(), before.tolist(), strict=True
        ):
            places = count * self._size
            rotate = self._leftovers is Leftovers.ROTATE
            waiting = images + carried - places if rotate else 0
            again = max(0, places - images) if self._leftovers is Leftovers.PAD else 0
            dropped = images - places if self._leftovers is Leftovers.DROP else 0
            plans.append(BucketPlan(bucket, images, count, again, waiting, dropped))
        return plans

    def _looks_of(self, concept: int) -> int:
        """How often an epoch looks at images of a concept."""
        config, images = self._data.concepts[concept], len(self._members[concept])
        if not images:
            return 0
        if config.balancing_strategy is BalancingStrategy.SAMPLES:
            return int(config.balancing)
        return int(images * config.balancing)

    def _is_fixed(self) -> bool:
        """Whether every epoch has as many images of each size."""
        first = self._data.images.at(
            np.arange(len(self._data.items), dtype=np.int32), np.zeros(1, np.int32)
        )
        alike = np.repeat(self._data.buckets[first], self._data.images.count)
        whole = all(
            count % len(members) == 0
            for count, members in zip(self._counts, self._members, strict=True)
            if len(members)
        )
        return whole and bool((alike == self._data.buckets).all())

    def _draw_looks(self, epoch: int) -> _Looks:
        """Each concept's images in turn, over the epochs: all of them before one comes again."""
        items, variations = [], []
        for config, members, count in zip(
            self._data.concepts, self._members, self._counts, strict=True
        ):
            if not count:
                continue
            looks = np.arange(epoch * count, (epoch + 1) * count)
            cycles, places = looks // len(members), looks % len(members)
            if count % len(members):  # a part of them: another one in each round
                for cycle in np.unique(cycles):
                    here = cycles == cycle
                    order = permutation(len(members), config.seed & 0xFFFFFFFF, int(cycle))
                    places[here] = order[places[here]]
            items.append(members[places])
            variations.append(cycles.astype(np.int32))
        item, variation = np.concatenate(items), np.concatenate(variations)
        return _Looks(item, variation, self._data.buckets[self._data.images.at(item, variation)])

    def _bucket_counts(self, epoch: int) -> Counts:
        looks = self._looks(0 if self._fixed else epoch)
        return np.bincount(looks.buckets, minlength=len(self._data.sizes))

    def _before(self, epoch: int) -> Counts:
        """Images of each size in all epochs before."""
        if self._fixed:
            return self._bucket_counts(0) * epoch
        while len(self._sums) <= epoch:
            self._sums.append(self._sums[-1] + self._bucket_counts(len(self._sums) - 1))
        return self._sums[epoch]

    def _batch_counts(self, epoch: int) -> Counts:
        if self._leftovers is Leftovers.ROTATE:
            return self._before(epoch + 1) // self._size - self._before(epoch) // self._size
        counts = self._bucket_counts(epoch)
        if self._leftovers is Leftovers.PAD:
            counts = counts + self._size - 1
        return counts // self._size

    def _epoch(self, epoch: int) -> Epoch:
        found = []
        for bucket in range(len(self._data.sizes)):
            pairs = self._filled(epoch, bucket)
            whole = len(pairs) // self._size * self._size
            found.append(pairs[:whole].reshape(-1, self._size, 2))
        batches = np.concatenate(found)
        order = permutation(len(batches), self._seed, epoch, len(self._data.sizes))
        return Epoch(batches[order, :, 0], batches[order, :, 1])

    def _filled(self, epoch: int, bucket: int) -> Indices:
        """Images of a size as the epoch's batches take them, item and variation, [looks, 2]."""
        pairs = self._order(epoch, bucket)
        match self._leftovers:
            case Leftovers.PAD:
                return np.concatenate([pairs, self._more(pairs, epoch, bucket)])
            case Leftovers.ROTATE:
                return np.concatenate([*self._carried(epoch, bucket), pairs])
        return pairs

    def _order(self, epoch: int, bucket: int) -> Indices:
        looks = self._looks(epoch)
        chosen = np.flatnonzero(looks.buckets == bucket)
        chosen = chosen[permutation(len(chosen), self._seed, epoch, bucket)]
        return np.stack([looks.items[chosen], looks.variations[chosen]], axis=1)

    def _more(self, pairs: Indices, epoch: int, bucket: int) -> Indices:
        """What fills the last batch: others of the size, each in its turn over the epochs."""
        missing = -len(pairs) % self._size
        if not missing:
            return pairs[:0]
        by_item = pairs[np.argsort(pairs[:, 0], kind="stable")]
        turn = np.roll(permutation(len(pairs), self._seed, bucket), -epoch * missing)
        candidates = by_item[turn]
        last = pairs[len(pairs) // self._size * self._size :, 0]
        fresh = candidates[~np.isin(candidates[:, 0], last)]
        return np.resize(fresh if len(fresh) >= missing else candidates, (missing, 2))

    def _carried(self, epoch: int, bucket: int) -> Sequence[Indices]:
        """Images of earlier epochs that still wait for a batch."""
        waiting = int(self._before(epoch)[bucket]) % self._size
        parts: list[Indices] = []
        while waiting:
            epoch -= 1
            part = self._order(epoch, bucket)[-waiting:]
            parts.insert(0, part)
            waiting -= len(part)
        return parts
