"""What a run does when memory runs out in the middle of a step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from modules.training.placement import offload_activations, offload_layers

Result = TypeVar("Result")

CHECKPOINTING = (
    ("enable_gradient_checkpointing", "is_gradient_checkpointing"),
    ("activation_checkpointing_enable", "is_activation_checkpointing"),
    ("gradient_checkpointing_enable", "is_gradient_checkpointing"),
)
"""What turns checkpointing on and says that it is: of diffusers, of transformers, of its past."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


class MemoryLadder:
    """Tries a step again with less memory, rung by rung, and stays on the rung that held.

    Each rung leaves the batch that a step learns from as it is: first caches are emptied, then a
    forward pass takes half of the images at a time, and so on down to one, then activations are
    recomputed instead of kept, and what is still kept of them, and at last frozen layers, wait in
    main memory.

    Args:
        networks: what trains, by name.
        batch_size: images of a forward pass.
        tell: called with what was done, in words.
        device: where the networks compute.
        home: main memory; None where the device computes in it.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        batch_size: int,
        tell: Callable[[str], None],
        device: torch.device,
        home: torch.device | None,
    ) -> None:
        self._networks, self._batch_size, self._tell = networks, batch_size, tell
        self._device, self._home = device, home
        self._emptied = False
        self.pieces = 1
        """Into how many pieces a batch is cut."""

    def hold(self, step: Callable[[int], Result], undo: Callable[[], None]) -> Result:
        """Call `step(pieces)` until it fits; `undo` takes back what a failed try left behind.

        Raises:
            Exception: what the step raised, where no rung is left or it is not about memory.
        """
        while True:
            try:
                result = step(self.pieces)
            except Exception as error:
                if not is_out_of_memory(error) or not (done := self._climb()):
                    raise
                undo()
                error.__traceback__ = None  # its frames hold the tensors that did not fit
                self._tell(f"Out of memory: {done}. The batch that a step learns from is the same.")
            else:
                return result
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _climb(self) -> str | None:
        """Do the next thing that saves memory, and say what; None if nothing is left."""
        if not self._emptied:
            self._emptied = True
            return "emptied the caches and tried the step again"
        if self.pieces < self._batch_size:
            self.pieces = min(2 * self.pieces, self._batch_size)
            size = -(-self._batch_size // self.pieces)
            return f"a forward pass now takes {size} of {self._batch_size} images at a time"
        if names := self._where(recompute):
            return f"turned gradient_checkpointing on for {names}"
        if self._home is None:
            return None
        device, home = self._device, self._home
        if names := self._where(offload_activations):
            return f"turned activation_offloading on for {names}"
        if names := self._where(lambda network: offload_layers(network, device, home)):
            return f"set offload_fraction to 1 for {names}"
        return None

    def _where(self, change: Callable[[nn.Module], bool]) -> str:
        """The networks, in words, that a change made any different."""
        return " and ".join(name for name, network in self._networks.items() if change(network))


def recompute(network: nn.Module) -> bool:
    """Recompute activations in the backward pass instead of keeping them: less memory, slower.

    Returns:
        Whether that is new; False where it was on before, or the network cannot.
    """
    for name, state in CHECKPOINTING:
        if hasattr(network, name):
            if getattr(network, state, False):
                return False
            getattr(network, name)()
            for layer in network.modules():
                if getattr(layer, "gradient_checkpointing", False):
                    # transformers looks at the mode, which stays as it is for what is inside: of
                    # a network that does not train but lets gradients through, dropout stays off
                    layer.training = True
            return True
    return False
