"""What takes a while to learn about a training set: its cache, buckets, images that are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.config import ConceptConfig
from modules.data.items import Scan
from modules.data.report import alike
from ot_notebook.services.concept_items import Row
from ot_notebook.services.concept_run import RunFacts

if TYPE_CHECKING:
    from modules.data.freshness import State
    from modules.data.outlook import BucketOutlook
    from modules.data.sources import Entry

BROKEN = "unreadable image"
"""The problem of an image that cannot be decoded."""


class CacheLook:
    """How a cache has each image; what was found out is kept until caption or mask change.

    Args:
        concepts: of the rows.
        run: whose cache it is.

    Raises:
        ConfigError: if a resolution is none, or a caption rule cannot work.
    """

    def __init__(self, concepts: Sequence[ConceptConfig], run: RunFacts) -> None:
        from modules.data.freshness import Freshness  # brings torch, which reads shards

        place = run.cache_dir or Path()
        self._freshness = Freshness(concepts, run.framing, place, run.encoders)
        self._known: dict[tuple[int, Path], tuple[str, Entry | None, State]] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing was ever encoded into this cache."""
        return self._freshness.empty

    def state(self, row: Row) -> State:
        """`fresh`, `stale`, `new` or `error`; see `modules.data.freshness`."""
        if row.item is None:
            return "error"
        place = row.concept, row.path
        known = self._known.get(place)
        if known is None or known[:2] != (row.caption, row.item.mask):
            item = replace(row.item, captions=tuple(row.caption.split("\n")))
            known = self._known[place] = (
                row.caption,
                row.item.mask,
                self._freshness.state(item),
            )
        return known[2]

    def go_through(self, rows: Sequence[Row]) -> None:
        """Find out about each, and keep what was learned of the files for the next run."""
        for row in rows:
            self.state(row)
        self._freshness.save()


def bucket_outlook(
    rows: Sequence[Row], concepts: Sequence[ConceptConfig], run: RunFacts
) -> list[BucketOutlook]:
    """Each size that images of enabled concepts train at, and what an epoch does with it.

    Raises:
        ConfigError: if no epoch would have a batch, or a resolution is none.
    """
    from modules.data.outlook import outlook

    items = [row.item for row in rows if row.item and concepts[row.concept].enabled]
    found = Scan(tuple(concepts), tuple(items), ())
    return outlook(found, run.framing, run.batch_size, run.seed, run.leftovers)


def told(one: BucketOutlook, batch_size: int) -> dict[str, Any]:
    """A bucket as plain values, with words for when its images train."""
    plan = asdict(one.plan)
    del plan["bucket"]
    looks = plan.pop("images")
    return {
        "bucket": str(one.bucket),
        "images": one.images,
        "smaller": one.smaller,
        "kept": one.kept,
        "looks": looks,
        **plan,
        "when": _when(one, batch_size),
    }


def _when(one: BucketOutlook, batch_size: int) -> str:
    plan = one.plan
    if not plan.images:
        return "does not train: its concepts' balancing comes to less than one image"
    many = "" if plan.batches == 1 else "es"
    words = f"{plan.batches:,} batch{many} of {batch_size} an epoch"
    if plan.again:
        words += f"; {plan.again:,} of the places show an image again"
    if plan.waiting:
        words += f"; {plan.waiting:,} wait for the next epoch"
    if plan.dropped:
        words += f"; {plan.dropped:,} are left out, others in each epoch"
    return words


def mark_twins(
    rows: Sequence[Row],
    step: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Number the groups of images that look the same in `Row.twins`; gives how many images.

    Those that cannot be decoded get a problem.

    Args:
        rows: what is compared; each image is decoded.
        step: called after each image.
        should_stop: asked between images.

    Raises:
        CachingStopped: if told to stop; nothing is marked then.
    """
    seen = [row for row in rows if row.item]
    broken: list[int] = []
    groups = alike([row.item for row in seen if row.item], 2, should_stop, step, broken.append)
    for row in rows:
        row.twins = 0
    for index in broken:
        problems = seen[index].problems
        seen[index].problems = tuple(dict.fromkeys((*problems, BROKEN)))
    for number, group in enumerate(groups, 1):
        for index in group:
            seen[index].twins = number
    return sum(map(len, groups))
