"""What turns images and captions into what the cache stores, and names that tell them apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modules.families.base import Condition, Family, Parts

SAMPLED = 4096
"""Numbers of each tensor that its fingerprint looks at: enough to tell weights apart, and quick."""


class LiveEncoder:
    """Encodes with a family's loaded networks, without gradients.

    Args:
        family: the architecture.
        parts: its networks.
        layer_skip: text encoder layers to leave out.
        cache_text: False while a text encoder trains, as its output then changes.
    """

    def __init__(self, family: Family, parts: Parts, layer_skip: int, cache_text: bool) -> None:
        self._family, self._parts, self._layer_skip = family, parts, layer_skip
        self.image_identity = fingerprint(parts.vae)
        self.text_identity: str | None = None
        if cache_text:
            encoders = [fingerprint(parts.module(name)) for name in family.text_encoders]
            self.text_identity = "-".join([*encoders, f"skip{layer_skip}"])

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> latents [B, C, H, W] on the CPU."""
        return self._family.encode_images(self._parts, pixels).cpu()

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Condition:
        """Captions -> the family's condition, each tensor [B, ...] on the CPU."""
        condition = self._family.encode_text(self._parts, captions, self._layer_skip)
        return {name: tensor.cpu() for name, tensor in condition.items()}


def fingerprint(network: nn.Module) -> str:
    """16 hexadecimal digits that differ between networks of other classes, configs or weights."""
    digest = hashlib.sha256(type(network).__name__.encode())
    config = getattr(network, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    public = {key: str(value) for key, value in settings.items() if not key.startswith("_")}
    digest.update(json.dumps(public, sort_keys=True).encode())
    for name, tensor in network.state_dict().items():
        values = tensor.flatten()
        values = values[:: max(1, len(values) // SAMPLED)].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
