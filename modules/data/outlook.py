"""What an epoch would do with each size of a training set, before anything is encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modules.config import ConceptConfig
from modules.config.enums import ConceptType, Leftovers
from modules.data.buckets import Bucket
from modules.data.items import Item, Scan
from modules.data.plan import Framing, Planner
from modules.data.schedule import BucketPlan, Positions, Schedule

TRAINED = (ConceptType.STANDARD, ConceptType.PRIOR_PREDICTION)


@dataclass(frozen=True)
class BucketOutlook:
    """The images of one size, and when they train."""

    bucket: Bucket
    images: int
    """Images that take this size in some variation, each counted once."""
    smaller: int
    """Those that are smaller than it."""
    kept: float
    """Share of their area that the crop keeps, on average."""
    plan: BucketPlan
    """What the first epoch does with them."""


@dataclass(frozen=True)
class _Outlined:
    concepts: Sequence[ConceptConfig]
    items: Sequence[Item]
    sizes: Sequence[Bucket]
    buckets: NDArray[np.int16]
    images: Positions


def outlook(
    found: Scan, framing: Framing, batch_size: int, seed: int, leftovers: Leftovers
) -> list[BucketOutlook]:
    """Each size that images train at, in ascending order; empty if there are no images.

    A size that is drawn, of several resolutions, may be drawn otherwise in the run, and a crop to
    the mask is not foreseen.

    Args:
        found: what to train on.
        framing: the run's sizes.
        batch_size: images of a batch, of all ranks together.
        seed: decides the order.
        leftovers: what becomes of images that fill no batch of their size.

    Raises:
        ConfigError: if no epoch would have a batch, or a resolution is none.
    """
    items = found.only(*TRAINED).items
    if not items:
        return []
    planner = Planner(found.concepts, framing)
    count = np.array([found.concepts[i.concept].image_variations for i in items], np.int32)
    taken = [
        [planner.bucket(item, _stand_in(item), variation) for variation in range(variations)]
        for item, variations in zip(items, count.tolist(), strict=True)
    ]
    sizes = sorted({bucket for row in taken for bucket in row})
    number = {bucket: index for index, bucket in enumerate(sizes)}
    buckets = np.array([number[bucket] for row in taken for bucket in row], np.int16)
    images = Positions(count)
    outlined = _Outlined(found.concepts, items, sizes, buckets, images)
    plans = Schedule(outlined, batch_size, seed, leftovers).buckets(0)
    members: list[list[Item]] = [[] for _ in sizes]
    for item, row in zip(items, taken, strict=True):
        for bucket in set(row):
            members[number[bucket]].append(item)
    return [
        BucketOutlook(
            bucket,
            len(here),
            sum(item.width < bucket.width or item.height < bucket.height for item in here),
            float(np.mean([bucket.size.kept(item.width, item.height) for item in here])),
            plan,
        )
        for bucket, here, plan in zip(sizes, members, plans, strict=True)
    ]


def _stand_in(item: Item) -> bytes:
    """In place of the file's digest, for which it would have to be read."""
    return hashlib.sha256(item.path.encode("utf-8", "surrogatepass")).digest()
