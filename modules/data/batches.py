"""Batches in an order that the seed alone decides, made ready while the last one trains."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.config.enums import ConceptType, Leftovers
from modules.config.problems import error
from modules.data.dataset import Dataset, Encodings
from modules.data.live import Encoded, Live
from modules.data.schedule import BucketPlan, Indices, Schedule

READY = 2
"""Batches that are made, or being made, before they are asked for."""
TOGETHER = 4
"""Batches that are made in one go: to wake the thread that does costs more than a cached batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one size, or films of one size and length, with their captions."""

    latents: Tensor
    """[B, C, H, W]; of films [B, C, F, H, W]."""
    condition: dict[str, Tensor] | None
    """Encoded captions, each [B, ...]; None while a text encoder trains."""
    captions: list[str]
    loss_weight: Tensor
    """Factor of each image's loss, [B]."""
    size: Tensor
    """[B, 6] pixels: original height and width, top and left of the crop, height and width."""
    prior: Tensor
    """Whether the image is of a PRIOR_PREDICTION concept, [B], bool."""
    items: tuple[int, ...]
    """Which images they are, indices into the data set's `items`."""
    mask: Tensor | None = None
    """[B, 1, H, W] in 0 ... 1, all 1 for an image without; None where none of the set has one."""
    hints: dict[str, Tensor] | None = None
    """What the denoiser reads of the pictures themselves, each [B, ...]; None for nothing."""


_Made = tuple[Callable[[], Batch | None], int, int]
"""What gives a batch, and epoch and position after it."""


class Batches(Iterator[Batch]):
    """Endless batches of a training set, epoch after epoch; all of a batch are of one size.

    Args:
        dataset: what to deliver.
        batch_size: images of a batch on each rank.
        seed: decides the order; the same seed makes the same batches.
        leftovers: what becomes of images that fill no batch of their size.
        rank: which share of each batch this process takes.
        ranks: how many share one; positions count batches of all of them together.
        pin: put batches where a GPU can fetch them by itself.

    Raises:
        ConfigError: if no epoch would have a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        leftovers: Leftovers = Leftovers.PAD,
        rank: int = 0,
        ranks: int = 1,
        pin: bool = False,
    ) -> None:
        self.epoch = 0
        """Epoch of the next batch."""
        self.position = 0
        """Batches of that epoch that were delivered."""
        self._data, self._pin = dataset, pin
        self._mine = slice(rank * batch_size, (rank + 1) * batch_size)
        self._schedule = Schedule(dataset, batch_size * ranks, seed, leftovers)
        self._order = _fingerprint(dataset, batch_size * ranks, seed, leftovers)
        concepts = [dataset.concepts[item.concept] for item in dataset.items]
        weights = [concept.loss_weight for concept in concepts]
        self._weights = np.array(weights, np.float32)
        self._prior = np.array([c.type is ConceptType.PRIOR_PREDICTION for c in concepts])
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next = (0, 0)
        self._together = 1 if isinstance(dataset.images, Live) else TOGETHER
        self._ready: deque[_Made] = deque()
        self._coming: deque[Future[list[_Made]]] = deque()

    def __next__(self) -> Batch:
        left_out = 0
        while True:
            while len(self._ready) + len(self._coming) * self._together <= READY:
                self._coming.append(self._pool.submit(self._make_some))
            if not self._ready:
                self._ready.extend(self._coming.popleft().result())
            finish, self.epoch, self.position = self._ready.popleft()
            if (batch := finish()) is not None:
                return batch
            left_out += 1
            if left_out > self._schedule.batches_in(self.epoch):
                message = "None of the images can be read any more."
                raise error("concepts", message, "See that their folders are there, and resume.")

    def batches_in(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self._schedule.batches_in(epoch)

    def buckets(self, epoch: int = 0) -> list[BucketPlan]:
        """What an epoch does with the images of each size."""
        return self._schedule.buckets(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position, for a backup."""
        return {"epoch": self.epoch, "position": self.position, "order": self._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> str:
        """Go on from a position.

        Returns:
            What could not be taken up: if images, batch size or seed have changed since, the epoch
            begins anew. Empty if all was.
        """
        self._ready.clear()
        while self._coming:
            self._coming.pop().cancel()
        self._pool.submit(lambda: None).result()  # none is being made any more
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        note = ""
        if state.get("order") != self._order and self.position:
            note = (
                f"The training set, the batch size or the seed is another than in the backup, so "
                f"epoch {self.epoch + 1} begins anew."
            )
            self.position = 0
        self._next = (self.epoch, self.position)
        return note

    def _make_some(self) -> list[_Made]:
        return [self._make() for _ in range(self._together)]

    def _make(self) -> _Made:
        """What gives the next batch, and the position after it; runs on the pool's one thread.

        What takes time is done already, but for encodings that no cache holds: the networks belong
        to the thread that trains. None stands for a batch of which no file could be read.
        """
        epoch, position = self._next
        while position >= self._schedule.batches_in(epoch):
            epoch, position = epoch + 1, 0
        order = self._schedule.epoch(epoch)
        finish = self._begun(
            order.items[position, self._mine], order.variations[position, self._mine]
        )
        position += 1
        if position >= self._schedule.batches_in(epoch):
            epoch, position = epoch + 1, 0
        self._next = epoch, position
        return finish, epoch, position

    def _begun(self, items: Indices, variations: Indices) -> Callable[[], Batch | None]:
        images = self._data.images
        if isinstance(images, Live):
            seen, findings = images.read(items, variations)

            def encode() -> Batch | None:
                found = images.encode(seen, findings)
                return None if found is None else self._collate(found)

            return encode
        places = images.at(items, variations)
        latents, data = images.stack(places)["latents"], self._data
        batch = self._collate(
            Encoded(
                items,
                variations,
                self._data.crops[places].tolist(),
                latents,
                None if data.masks is None else _masks(data.masks, places, latents),
                None if data.hints is None else data.hints.stack(places),
            )
        )
        return lambda: batch

    def _collate(self, found: Encoded) -> Batch:
        data, items, variations = self._data, found.items, found.variations
        condition = None
        if data.texts is not None:
            condition = data.texts.stack(data.texts.at(items, variations))
        places = data.images.at(items, variations)
        bucket = data.sizes[data.buckets[places[0]]]
        sizes = [
            (data.items[item].height, data.items[item].width, *crop, *bucket.size)
            for item, crop in zip(items.tolist(), found.crops, strict=True)
        ]
        pairs = zip(items.tolist(), variations.tolist(), strict=True)
        batch = Batch(
            found.latents,
            condition,
            [data.caption(item, variation) for item, variation in pairs],
            torch.from_numpy(self._weights[items]),
            torch.tensor(sizes),
            torch.from_numpy(self._prior[items]),
            tuple(items.tolist()),
            found.mask,
            found.hints,
        )
        return _pinned(batch) if self._pin else batch


def _masks(encodings: Encodings, places: Indices, latents: Tensor) -> Tensor:
    masks = torch.ones(len(latents), 1, *latents.shape[-2:])
    for mask, place in zip(masks, places.tolist(), strict=True):
        if row := encodings.get(place):
            mask.copy_(row["mask"]).div_(255)
    return masks


def _pinned(batch: Batch) -> Batch:
    return replace(
        batch,
        latents=batch.latents.pin_memory(),
        condition=_all_pinned(batch.condition),
        hints=_all_pinned(batch.hints),
        mask=batch.mask if batch.mask is None else batch.mask.pin_memory(),
    )


def _all_pinned(tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    return tensors and {name: tensor.pin_memory() for name, tensor in tensors.items()}


def _fingerprint(dataset: Dataset, *settings: object) -> str:
    """Differs wherever the order of the batches does."""
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(dataset.digests.tobytes())
    digest.update(dataset.buckets.tobytes())
    shares: Sequence[object] = [
        (concept.balancing, concept.balancing_strategy, concept.seed)
        for concept in dataset.concepts
    ]
    digest.update(repr(shares).encode())
    return digest.hexdigest()[:16]
