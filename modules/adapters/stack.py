"""Adapters laid over live networks for as long as a block lasts; the networks stay as they are.

A forward hook adds each adapter's change to a layer's output, so that a strength is one number
that costs nothing to change, and weights of any storage type, also those that train, are never
written to. Shapes: R rank, in and out the widths of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.adapters.change import weight_change
from modules.adapters.embedding_files import as_word, unbundled
from modules.adapters.embeddings import Word
from modules.adapters.files import ALPHA, DOWN, UP, read_tensors
from modules.adapters.files import AdapterError as AdapterError
from modules.adapters.reading import read_adapter
from modules.families.base import Family, Parts

WIDTHS = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2", 2048: "stable-diffusion-xl"}
"""Width of the text that cross-attention reads, by architecture."""

MARKS = {
    "double_blocks": "flux",
    "single_transformer_blocks": "flux",
    "joint_blocks": "stable-diffusion-3",
    "noise_refiner": "z-image",
    "_te2_": "stable-diffusion-xl",
}
"""Parts of keys that only one architecture, or its kin, has."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter file, found its places in one model."""

    path: Path
    version: int
    """When the file was written, in nanoseconds."""
    layers: Mapping[str, Mapping[str, Tensor]]
    """By layer, `part.path`: its tensors, by the names that backups use."""
    unplaced: tuple[str, ...]
    """Keys of the file that belong to no layer of the model."""
    words: tuple[Word, ...] = ()
    """Embeddings that trained with it."""


def load_adapter(path: Path, family: Family, parts: Parts) -> LoadedAdapter:
    """Read an adapter file and find the layers that it changes.

    Raises:
        AdapterError: if it is gone, no safetensors file, no adapter, or made for another model.
    """
    whole, metadata = read_tensors(path)
    tensors, bundle = unbundled(whole)
    networks = {
        name: network
        for name, network in parts.modules().items()
        if name in (family.denoiser, *family.text_encoders)
    }
    found = read_adapter(tensors, family, networks)
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in found.tensors.items():
        name, suffix = _split(key)
        layers[name][suffix] = tensor
    if not layers:
        raise AdapterError(_wrong_model(path, family, tensors, metadata, found.unplaced))
    homes = _homes(layers, family, networks)
    for name, of in layers.items():
        if misfit := _misfit(homes[name], of):
            raise AdapterError(
                _wrong_model(path, family, tensors, metadata, [f"{name} ({misfit})"])
            )
    words = [as_word(name, rows, family, parts, str(path)) for name, rows in bundle.items()]
    version = path.stat().st_mtime_ns
    return LoadedAdapter(path, version, dict(layers), tuple(found.unplaced), tuple(words))


@contextmanager
def applied(
    family: Family, parts: Parts, adapters: Sequence[tuple[LoadedAdapter, float]]
) -> Iterator[None]:
    """Inside the block the networks answer as if the adapters were in them.

    Args:
        family: the architecture.
        parts: its networks; none of their weights is touched.
        adapters: each with its strength; 1 is as it was trained, 0 leaves it out.
    """
    changes: dict[str, list[tuple[Mapping[str, Tensor], float]]] = defaultdict(list)
    for adapter, strength in adapters:
        if strength:
            for name, tensors in adapter.layers.items():
                changes[name].append((tensors, strength))
    if not changes:
        yield
        return
    homes = _homes(changes, family, parts.modules())
    handles = []
    try:
        for name, of in changes.items():
            added = [_change(homes[name], tensors, strength) for tensors, strength in of]
            handles.append(homes[name].register_forward_hook(_adding(added)))
        yield
    finally:
        for handle in handles:
            handle.remove()


Change = Callable[[Tensor, Tensor], Tensor]
"""From a layer's input and what it adds to, to the sum."""


def _adding(changes: Sequence[Change]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for change in changes:
            output = change(given[0], output)
        return output

    return hook


def _change(home: nn.Module, tensors: Mapping[str, Tensor], strength: float) -> Change:
    """What an adapter adds to a layer's output, at a strength."""
    layer = _base(home)
    if "dora_scale" in tensors or DOWN not in tensors:
        weight: Any = layer.weight
        base = weight.detach().reshape(_shape(layer))
        return _by_weight(layer, weight_change(tensors, base, strength))
    down, up = tensors[DOWN], tensors[UP]
    factor = strength * float(tensors[ALPHA]) / down.shape[0]
    if isinstance(layer, nn.Linear):
        down, up = down.flatten(1), up.flatten(1)
    down, up = _beside(layer, down), _beside(layer, up)

    def low_rank(inputs: Tensor, output: Tensor) -> Tensor:
        inner = _through(layer, inputs, down.to(inputs))
        if isinstance(layer, nn.Linear):
            return output + F.linear(inner, up.to(inputs)) * factor
        return output + F.conv2d(inner, up.to(inputs)) * factor

    return low_rank


def _by_weight(layer: nn.Module, delta: Tensor) -> Change:
    """Add what a change of the whole weight gives."""

    def whole(inputs: Tensor, output: Tensor) -> Tensor:
        return output + _through(layer, inputs, delta.to(inputs))

    return whole


def _through(layer: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """A layer with another weight and no bias; a first matrix has the layer's own geometry."""
    if isinstance(layer, nn.Conv2d):
        padding = layer.padding
        return F.conv2d(inputs, weight, None, layer.stride, padding, layer.dilation)
    return F.linear(inputs, weight)


def _homes(
    names: Mapping[str, Any], family: Family, networks: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """The module of each layer, `part.path` as files name it."""
    return {
        name: module
        for part, network in networks.items()
        for path, module in network.named_modules()
        if (name := f"{part}.{family.adapter_name(part, path)}") in names
    }


def _base(home: nn.Module) -> nn.Module:
    """The layer itself, where an adapter that trains is wrapped around it."""
    base = getattr(home, "base_layer", home)
    return base if isinstance(base, nn.Module) else home


def _beside(layer: nn.Module, tensor: Tensor) -> Tensor:
    weight: Any = layer.weight
    return tensor.to(weight.device)


def _shape(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
    raise TypeError(f"{type(layer).__name__} takes no adapter")


def _misfit(home: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """How an adapter's shape differs from what its layer takes; empty if it does not."""
    layer = _base(home)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return f"no place for an adapter on {type(layer).__name__}"
    outputs, inputs = _shape(layer)[:2]
    if DOWN in tensors and UP in tensors:
        found = tensors[UP].shape[0], tensors[DOWN].shape[1]
        return (
            ""
            if found == (outputs, inputs)
            else f"{found[1]} to {found[0]}, not {inputs} to {outputs} values"
        )
    try:
        weight_change(tensors, torch.empty(_shape(layer)))
    except (RuntimeError, KeyError) as error:
        return str(error)
    return ""


def _split(key: str) -> tuple[str, str]:
    for suffix in (DOWN, UP, "oft_R.weight", "oft_R.scaled_oft"):
        if key.endswith(f".{suffix}"):
            return key[: -len(suffix) - 1], suffix
    name, _, suffix = key.rpartition(".")
    return name, suffix


def _wrong_model(
    path: Path,
    family: Family,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    odd: Sequence[str],
) -> str:
    """Says of what architecture a file is, as far as it tells, and what of it does not fit."""
    if not any(mark in key for key in tensors for mark in ("lora", "hada_", "lokr_", "oft_")):
        return (
            f"{path} holds no adapter: its keys are such as {next(iter(tensors), 'none at all')}. "
            f"Give it to load() if it is a model."
        )
    made = _made_for(tensors, metadata)
    of = f"an adapter for {made}" if made else "an adapter for another architecture"
    return (
        f"{path} is {of}, but the model is {family.architecture}: {len(odd)} of {len(tensors)} "
        f"keys do not fit, such as {odd[0]}. Load a model of its own architecture."
    )


def _made_for(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    named = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version")
    if named:
        return named.split("/")[0]
    for key, tensor in tensors.items():
        cross = key.replace("_", ".").endswith(
            ("attn2.to.k.lora.down.weight", "attn2.to.k.lora.A.weight")
        )
        if cross and tensor.shape[1] in WIDTHS:
            return WIDTHS[tensor.shape[1]]
    for mark, name in MARKS.items():
        if any(mark in key for key in tensors):
            return name
    return ""
