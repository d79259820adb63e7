"""Networks that have no part in a step wait on `temp_device`: what trains has the device alone.

That is a VAE whose latents, and text encoders whose encoded captions, are in the cache. Samples
and whoever borrows the model find everything on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from modules.data import Dataset
from modules.data.live import Live
from modules.families import Family, Parts
from modules.training.method import Method
from modules.training.placement import LayerOffload


class Parking:
    """Brings networks to the device while they are needed.

    Args:
        networks: those that no step asks.
        device: where the run computes.
        home: where they wait, such as the CPU.
    """

    def __init__(
        self, networks: Mapping[str, LayerOffload], device: torch.device, home: torch.device
    ) -> None:
        self.networks = dict(networks)
        self._device, self._home = device, home
        self._users = 0

    def park(self) -> None:
        """Send them home, and give the device's memory to what trains."""
        for network in self.networks.values():
            network.move(self._home)
        if self.networks and self._device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def fetched(self) -> Iterator[None]:
        """Inside the block, and in blocks inside it, they are on the device."""
        self._users += 1
        try:
            if self._users == 1:
                for network in self.networks.values():
                    network.move(self._device)
            yield
        finally:
            self._users -= 1
            if not self._users:
                self.park()


def idle(family: Family, parts: Parts, method: Method, dataset: Dataset) -> list[str]:
    """Names of the networks that no step asks, once the cache is filled.

    Args:
        family: the architecture.
        parts: its networks.
        method: what trains.
        dataset: says what the cache holds.
    """
    names = parts.modules().keys() - method.networks.keys()
    if parts.encoder_name in method.networks:  # learns from pictures and latents alone
        return sorted(names)
    names -= {family.denoiser}
    drawing = {*family.guides, *parts.beside} - {parts.encoder_name}  # samples alone ask them
    if isinstance(dataset.images, Live):
        names &= drawing
    elif dataset.texts is None:
        names &= drawing | {parts.encoder_name}
    return sorted(names)
