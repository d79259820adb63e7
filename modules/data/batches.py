"""Batches in an order that the seed alone decides, from any position on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.config.enums import BalancingStrategy
from modules.data.dataset import Dataset
from modules.data.draws import permutation


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one size with their captions."""

    latents: Tensor
    """[B, C, H, W]."""
    condition: dict[str, Tensor] | None
    """Encoded captions, each [B, ...]; None while a text encoder trains."""
    captions: list[str]
    loss_weight: Tensor
    """Factor of each image's loss, [B]."""
    size: Tensor
    """[B, 6] pixels: original height and width, top and left of the crop, height and width."""
    items: tuple[int, ...]
    """Which images they are, indices into the data set's `items`."""


@dataclass(frozen=True)
class _Looks:
    """What an epoch shows: item and variation of each look, in no order yet."""

    items: NDArray[np.int64]
    variations: NDArray[np.int64]
    buckets: NDArray[np.int32]


class Batches(Iterator[Batch]):
    """Endless batches of a training set, epoch after epoch; all of a batch are of one size.

    Args:
        dataset: what to deliver.
        batch_size: images of a batch.
        seed: decides the order; the same seed makes the same batches.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        self._data, self._size, self._seed = dataset, batch_size, seed
        self.epoch = 0
        """Epoch of the next batch."""
        self.position = 0
        """Batches of that epoch that were delivered."""
        self._planned: tuple[int, list[NDArray[np.int64]], _Looks] | None = None
        self._weights = np.array(
            [dataset.concepts[item.concept].loss_weight for item in dataset.items], np.float32
        )
        self._members = [
            np.array([i for i, item in enumerate(dataset.items) if item.concept == concept])
            for concept in range(len(dataset.concepts))
        ]

    def __next__(self) -> Batch:
        batches, looks = self._plan(self.epoch)
        batch = self._collate(looks, batches[self.position])
        self.position += 1
        if self.position == len(batches):
            self.epoch, self.position = self.epoch + 1, 0
        return batch

    def batches_in(self, epoch: int) -> int:
        """Batches of an epoch."""
        looks = self._looks(epoch)
        return int(np.ceil(np.bincount(looks.buckets) / self._size).sum())

    def state_dict(self) -> dict[str, int]:
        """The position, for a backup."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _looks(self, epoch: int) -> _Looks:
        items, variations = [], []
        for concept, members in zip(self._data.concepts, self._members, strict=True):
            if not len(members):
                continue
            count = int(concept.balancing)
            if concept.balancing_strategy is BalancingStrategy.REPEATS:
                count = int(len(members) * concept.balancing)
            looks = np.arange(epoch * count, (epoch + 1) * count)
            items.append(members[looks % len(members)])
            variations.append(looks // len(members))
        item, variation = np.concatenate(items), np.concatenate(variations)
        return _Looks(item, variation, self._data.buckets[self._data.images.at(item, variation)])

    def _plan(self, epoch: int) -> tuple[list[NDArray[np.int64]], _Looks]:
        """Looks of each batch of an epoch, in order."""
        if self._planned is None or self._planned[0] != epoch:
            looks = self._looks(epoch)
            batches = []
            for bucket in np.unique(looks.buckets):
                members = np.flatnonzero(looks.buckets == bucket)
                members = members[permutation(len(members), self._seed, epoch, int(bucket))]
                missing = -len(members) % self._size
                members = np.append(members, np.resize(members, missing))
                batches += list(members.reshape(-1, self._size))
            order = permutation(len(batches), self._seed, epoch, len(self._data.sizes))
            self._planned = epoch, [batches[i] for i in order], looks
        return self._planned[1], self._planned[2]

    def _collate(self, looks: _Looks, chosen: NDArray[np.int64]) -> Batch:
        data = self._data
        items, variations = looks.items[chosen], looks.variations[chosen]
        positions = data.images.at(items, variations)
        rows = [data.images[position] for position in positions]
        latents = torch.stack([data.image_shards[shard]["latents"][row] for shard, row in rows])
        condition = None
        if data.texts is not None:
            rows = [data.texts[position] for position in data.texts.at(items, variations)]
            condition = {
                name: torch.stack([data.text_shards[shard][name][row] for shard, row in rows])
                for name in data.text_shards[rows[0][0]]
            }
        pairs = list(zip(items.tolist(), variations.tolist(), strict=True))
        size = data.sizes[looks.buckets[chosen[0]]]
        shapes = [(data.items[i].height, data.items[i].width) for i, _ in pairs]
        return Batch(
            latents,
            condition,
            [data.caption(item, variation) for item, variation in pairs],
            torch.from_numpy(self._weights[items]),
            torch.tensor(
                [
                    (*s, *c, *size)
                    for s, c in zip(shapes, data.crops[positions].tolist(), strict=True)
                ]
            ),
            tuple(items.tolist()),
        )
