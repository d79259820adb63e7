"""What is tried when a picture does not fit into the device's memory, one thing after the other."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from modules.families import Parts

Answer = TypeVar("Answer")

OUT = (
    "The picture does not fit into the device's memory, though {tried}. Draw it smaller, load the "
    'model with dtype="BFLOAT_16", or end what else uses the device.'
)


class MemoryLadder:
    """Climbs one rung for each time that memory runs out, and stays there.

    Layers are moved one by one, by diffusers' group offloading, and not whole networks: our
    families call text encoders and the VAE themselves, which only the former's hooks notice.

    Args:
        owned: whether the networks are ours alone; those of a run are not moved.
    """

    def __init__(self, owned: bool) -> None:
        self._owned = owned
        self.apart = False
        """Whether pictures are drawn one at a time."""
        self._offloaded = self._tiled = False
        self._several = False
        """Whether what is being done is pictures side by side."""

    @property
    def taken(self) -> tuple[str, ...]:
        """What was done so far, in words."""
        steps = [
            (self.apart, "pictures are drawn one at a time"),
            (self._offloaded, "layers wait in main memory until they are used"),
            (self._tiled, "the VAE works on tiles"),
        ]
        return tuple(words for done, words in steps if done)

    def attempt(self, parts: Parts, action: Callable[[], Answer]) -> Answer:
        """Do something, again and again with less memory, until it fits.

        Raises:
            MemoryError: if there is nothing left to try.
        """
        import torch

        while True:
            try:
                with self._standing(parts):
                    return action()
            except torch.OutOfMemoryError as error:
                traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
                gc.collect()
                torch.cuda.empty_cache()
                if not self._climb(parts):
                    tried = " and ".join(self.taken) or "nothing else could be tried"
                    raise MemoryError(OUT.format(tried=tried)) from error

    def share(self, seeds: Sequence[int]) -> Sequence[int]:
        """The first of the pictures: as many as are drawn side by side."""
        self._several = len(seeds) > 1
        return seeds[:1] if self.apart else seeds

    def offload(self, parts: Parts) -> None:
        """Keep layers in main memory, and bring each to the device only while it works."""
        import torch

        place = parts.device
        parts.pipeline.enable_group_offload(
            onload_device=place,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=place.type == "cuda",
        )
        self._offloaded = True

    def _climb(self, parts: Parts) -> bool:
        if self._several and not self.apart:
            self.apart = True
            return True
        if self._owned and not self._offloaded:
            self.offload(parts)
            return True
        if not self._tiled and hasattr(parts.vae, "enable_tiling"):
            self._tiled = True
            return True
        return False

    @contextmanager
    def _standing(self, parts: Parts) -> Iterator[None]:
        """Tiles only inside the block: a run's VAE must encode as it did."""
        if not self._tiled or parts.vae.use_tiling:
            yield
            return
        parts.vae.enable_tiling()
        try:
            yield
        finally:
            parts.vae.disable_tiling()
