"""Where weights and activations wait until their turn: on the device, or in main memory.

diffusers' group offloading is made for inference: it moves the adapters along with the layers,
whose gradients then have no place to go, copies unchanged weights back, and fetches ahead in one
direction only. This keeps what is frozen where it is and lends copies, forward and backward; what
learns goes to the device itself, and comes home with what it learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from modules.config import ConfigError, Problem, TrainConfig
from modules.families import Parts
from modules.training.waiting import Waiting, waiting


def arrange(parts: Parts, config: TrainConfig) -> dict[str, LayerOffload]:
    """Move every network to the device; the layers that the config offloads stay elsewhere.

    Call it before anything is made trainable, and `gather` after.

    Returns:
        By network: what knows which of its layers are elsewhere.

    Raises:
        ConfigError: if a network has no layers that could wait elsewhere.
    """
    device, home = torch.device(config.train_device), torch.device(config.temp_device)
    offloads = {}
    for name, network in parts.modules().items():
        network.requires_grad_(False)
        section = getattr(config, name, None)
        fraction = section.offload_fraction if section is not None and name != "vae" else 0.0
        if fraction and not LayerOffload.layers_of(network):
            message = (
                f"{name}.offload_fraction is {fraction:g}, but {type(network).__name__} has no "
                "layers that could wait elsewhere."
            )
            fix = f"Set {name}.offload_fraction to 0."
            raise ConfigError([Problem(f"{name}.offload_fraction", "error", message, fix)])
        ahead = config.async_offloading
        offloads[name] = LayerOffload(network, fraction, device, home, ahead)
    return offloads


def gather(parameters: Iterable[nn.Parameter], device: torch.device) -> None:
    """Put what trains on the device: an adapter is made beside the layer that it changes.

    What waits elsewhere stays there.
    """
    for parameter in parameters:
        if waiting(parameter) is None:
            parameter.data = parameter.data.to(device)


def offload_layers(network: nn.Module, device: torch.device, home: torch.device) -> bool:
    """Let everything that is frozen in a network's layers wait at home, from now on.

    Returns:
        Whether that is new; False where nothing more can wait.
    """
    return LayerOffload(network, 1.0, device, home).count > 0


class LayerOffload:
    """Keeps some layers' weights at home but while they compute.

    Frozen weights stay there and lend copies to the device. The copies are what a layer computes
    with, and so what its backward pass finds. They live until nothing needs them, which is soon
    where the layer is checkpointed. Weights that learn, from whenever they begin to, go there
    themselves (`Waiting`), in the backward pass until their gradient is taken. Everything outside
    of the chosen layers stays on the device, and what trained before this was made.

    Args:
        network: with all that may wait frozen; layers that wait already are left alone.
        fraction: share of the layers' bytes that waits at home, spread evenly over the network.
        device: where the network computes.
        home: where weights wait, such as the CPU.
        ahead: fetch a layer's weights while the one before computes (on CUDA).
    """

    def __init__(
        self,
        network: nn.Module,
        fraction: float,
        device: torch.device,
        home: torch.device,
        ahead: bool = False,
    ) -> None:
        self._network = network
        cuda = device.type == "cuda"
        stream = cuda and ahead and fraction
        self._stream = torch.cuda.Stream(device) if stream else None  # type: ignore[no-untyped-call]
        layers = [layer for layer in self.layers_of(network) if _frozen(layer)]
        self._layers = [
            _Layer(layer, device, self._stream)
            for layer in _spread(layers, fraction)
            if not hasattr(layer, "waits_elsewhere")
        ]
        self.count = len(self._layers)
        """Layers that this made wait."""
        self._last = 0
        resting = {id(tensor) for layer in self._layers for tensor in layer.tensors()}

        def put(tensor: Tensor) -> Tensor:
            if id(tensor) not in resting:
                return tensor.to(device)
            rest = tensor.to(home)
            return rest.pin_memory() if cuda and home.type == "cpu" else rest

        # Of `nn.Module.to`, which would take all; pipelines that call that later lose nothing.
        network._apply(put)  # type: ignore[no-untyped-call]
        for index, layer in enumerate(self._layers):
            self._attach(index, layer)

    def move(self, device: torch.device) -> None:
        """Send everything to a device but what waits at home."""
        resting = {id(tensor) for layer in self._layers for tensor in layer.tensors()}
        for layer in self._layers:
            layer.forget()

        def put(tensor: Tensor) -> Tensor:
            return tensor if id(tensor) in resting else tensor.to(device)

        self._network._apply(put)  # type: ignore[no-untyped-call]

    @staticmethod
    def layers_of(network: nn.Module) -> list[nn.Module]:
        """The repeated layers of a network, in its order: those that checkpointing recomputes."""
        own = [module for module in network.modules() if _checkpoints_itself(module)]
        if own:  # their recomputation calls what is inside them, so that is what can be lent
            return [part for module in own for part in _called(module)]
        names = {*_names(network, "_repeated_blocks"), *_names(network, "_no_split_modules")}
        blocks = [module for module in network.modules() if type(module).__name__ in names]
        return [block for block in blocks if not _any_inside(block, names)]

    def _attach(self, index: int, layer: _Layer) -> None:
        layer.module.waits_elsewhere = True  # type: ignore[assignment]

        def enter(*_: Any) -> None:
            layer.enter()
            if self._stream is not None:
                self._fetch_next(index)

        def leave(*_: Any) -> None:
            layer.leave()

        outside: Any = torch.compiler.disable  # no compiler looks into the hooks
        layer.module.register_forward_pre_hook(outside(enter))
        # Also when a recomputation ends early, as it does by an exception.
        layer.module.register_forward_hook(outside(leave), always_call=True)

    def _fetch_next(self, index: int) -> None:
        """Fetch the layer that comes after this one: backwards, the one before it."""
        last = len(self._layers) - 1
        backwards = index == last or (index and index <= self._last)
        self._last = index
        following = index - 1 if backwards else index + 1
        if 0 <= following <= last:
            self._layers[following].fetch()


class _Layer:
    """One layer whose tensors wait at home."""

    def __init__(
        self, module: nn.Module, device: torch.device, stream: torch.cuda.Stream | None
    ) -> None:
        self.module, self._device, self._stream = module, device, stream
        self._slots: list[tuple[dict[str, Any], str]] = []
        """Where the layer looks its tensors up: a table of a module in it, and the name there."""
        for inside in module.modules():
            for table in (inside._parameters, inside._buffers):
                held = [(name, tensor) for name, tensor in table.items() if tensor is not None]
                self._slots += [(table, name) for name, tensor in held if not tensor.requires_grad]
        self._guests = [Waiting(t, device) for t in self.tensors() if isinstance(t, nn.Parameter)]
        """Its parameters, for when they learn."""
        self._copies: list[Tensor] | None = None
        self._versions: list[int] = []
        """Of the tensors when they were copied, to know what has changed since."""
        self._own: list[Tensor] = []
        self._fetched: torch.cuda.Event | None = None

    def tensors(self) -> Iterator[Tensor]:
        """What waits at home."""
        for table, name in self._slots:
            yield table[name]

    @torch.no_grad()
    def fetch(self) -> None:
        """Begin to copy the tensors to the device."""
        if self._copies is not None or self._own:
            return
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            self._versions = self._versions_now()
            self._copies = [
                _like(tensor, tensor.to(self._device, non_blocking=True, copy=True))
                for tensor in self.tensors()
            ]
            if self._stream:
                self._fetched = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._fetched.record(self._stream)

    def forget(self) -> None:
        """Drop the copies that were fetched ahead."""
        self._copies = None

    def enter(self) -> None:
        """Let the layer compute with copies."""
        if self._versions != self._versions_now():
            self._copies = None  # fetched ahead, and then it learned
        self.fetch()
        copies = self._copies or []
        if self._stream and self._fetched is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(self._fetched)
            for copy in copies:
                copy.record_stream(now)  # so that its memory is not reused before it is read
        self._own = list(self.tensors())
        self._fill([self._lent(*pair) for pair in zip(self._own, copies, strict=True)])
        self._copies = None

    def leave(self) -> None:
        """Give the layer its own tensors back; what awaits a gradient is sent home after that."""
        if self._own:
            self._fill(self._own)
            self._own = []
        if torch._C._current_graph_task_id() == -1:  # no backward pass is on its way
            for guest in self._guests:
                guest.sleep()

    def _versions_now(self) -> list[int]:
        return [tensor._version for tensor in self.tensors()]

    @staticmethod
    def _lent(tensor: Tensor, copy: Tensor) -> Tensor:
        """What computes in the place of a tensor: a copy, or itself with the copy's data."""
        guest = waiting(tensor)
        if guest is None or not tensor.requires_grad:
            return copy
        guest.wake(copy)
        return tensor

    def _fill(self, tensors: Sequence[Tensor]) -> None:
        for (table, name), tensor in zip(self._slots, tensors, strict=True):
            table[name] = tensor


def offload_activations(network: nn.Module, pinned: bool = False) -> bool:
    """Keep what checkpointing saves, the inputs of the layers, in main memory.

    Args:
        network: with gradient checkpointing on.
        pinned: copy them back while the device computes (on CUDA).

    Returns:
        Whether that is new; False where nothing is checkpointed, or it was so before.
    """
    new = False
    for module in network.modules():
        checkpoint = getattr(module, "_gradient_checkpointing_func", None)
        if checkpoint is not None and not hasattr(checkpoint, "saves_on_cpu"):
            module._gradient_checkpointing_func = _saving_on_cpu(checkpoint, pinned)  # type: ignore[assignment]
            new = True
    return new


def _saving_on_cpu(checkpoint: Callable[..., Any], pinned: bool) -> Callable[..., Any]:
    # torch's own save_on_cpu gives every tensor back contiguous, and a recomputation that reads
    # other strides may take other steps, which torch refuses.
    def away(tensor: Tensor) -> tuple[torch.device, Tensor]:
        kept = torch.empty_like(tensor, device="cpu", pin_memory=pinned and tensor.is_cuda)
        if kept.stride() != tensor.stride():  # a small tensor that was expanded
            return tensor.device, tensor
        return tensor.device, kept.copy_(tensor, non_blocking=pinned)  # in the stream's order

    def back(kept: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = kept
        return tensor.to(device, non_blocking=pinned)

    def save(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(away, back):
            return checkpoint(*args, **kwargs)

    save.saves_on_cpu = True  # type: ignore[attr-defined]
    return save


def _spread(layers: Sequence[nn.Module], fraction: float) -> Iterator[nn.Module]:
    """As many of the layers as make up that share of their bytes, evenly over the network."""
    due = 0.0
    for layer in layers:
        size = sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))
        due += size * fraction
        if due >= size / 2:
            due -= size
            yield layer


def _frozen(layer: nn.Module) -> bool:
    tensors = (*layer.parameters(), *layer.buffers())
    return any(not tensor.requires_grad for tensor in tensors)


def _like(tensor: Tensor, copy: Tensor) -> Tensor:
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def _names(network: nn.Module, attribute: str) -> Iterable[str]:
    return getattr(network, attribute, None) or ()


def _checkpoints_itself(module: nn.Module) -> bool:
    return any(each.__name__ == "GradientCheckpointingLayer" for each in type(module).__mro__)


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a forward pass calls first: a list is none, its items are."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from _called(child)
        elif any(True for _ in child.parameters()):
            yield child


def _any_inside(module: nn.Module, names: set[str]) -> bool:
    return any(
        type(inside).__name__ in names for inside in module.modules() if inside is not module
    )
