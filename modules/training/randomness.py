"""Everything random in a run, apart from everything random around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

MIX = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: spreads consecutive numbers apart


class Randomness:
    """A run's generators, and the seeding of layers that draw for themselves.

    Dropout draws from torch's global generators, which a notebook draws from as well, and the
    optimizers of adv_optm from one that lives as long as the process. They are seeded anew before
    every forward pass, from the pass's place in the run alone, so that a resumed run draws what the
    straight one would have.

    Args:
        device: where the loop runs.
        seed: the run's.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._seed = seed
        self.generator = torch.Generator(device).manual_seed(seed)
        """Noise, timesteps and dropped captions."""
        self.rounding = torch.Generator(device).manual_seed((seed - MIX) % 2**63)
        """Rounding of weights: apart, so that it moves no noise."""
        self._layers = [torch.default_generator]
        self._devices: list[torch.device] = []
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            index = torch.cuda.current_device() if device.index is None else device.index
            self._layers.append(torch.cuda.default_generators[index])
            self._devices.append(torch.device("cuda", index))
        self._device = self._devices[0] if self._devices else device

    def seed_layers(self, step: int, index: int) -> None:
        """Seed what draws for itself in forward pass `index` of optimizer step `step`."""
        seed = (self._seed + (step * 65536 + index + 1) * MIX) % 2**63
        for generator in self._layers:
            generator.manual_seed(seed)
        library = sys.modules.get("adv_optm.util.param_update")  # None if none of them trains
        if library is not None and hasattr(library, "get_generator"):
            library.get_generator(self._device).manual_seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the generators are."""
        return {"generator": self.generator.get_state(), "rounding": self.rounding.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> str | None:
        """Go on drawing from there; says so where that is another kind of device."""
        if state["generator"].shape != self.generator.get_state().shape:
            return (
                f"The backup was written on another kind of device than {self._device.type}, whose "
                f"generators are others: noise is drawn anew from here."
            )
        self.generator.set_state(state["generator"])
        self.rounding.set_state(state["rounding"])
        return None

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Leave the global generators as they were before the block."""
        with torch.random.fork_rng(self._devices):
            yield
