"""What turns images and captions into what the cache stores, and names that tell them apart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.config import ConceptType, TrainConfig, TrainingMethod
from modules.config.models import Hint
from modules.config.paths import resolve
from modules.data import Dataset, build, scan
from modules.data.cache import space_name
from modules.data.encoder_notes import Settings, note
from modules.data.films import lengths_of
from modules.families.base import Condition, Family, Parts
from modules.training.decoding import together
from modules.training.events import Event, TaskProgress, Warned
from modules.training.method import Method

SAMPLED = 4096
"""Numbers of each tensor that its fingerprint looks at: enough to tell weights apart, and quick."""


class LiveEncoder:
    """Encodes with a family's loaded networks, without gradients.

    Args:
        family: the architecture.
        parts: its networks.
        cache_text: False while what becomes of captions changes, as an encoder or a word trains.
        keep_pictures: whether pictures are kept beside their latents, to learn decoding from.
    """

    def __init__(
        self, family: Family, parts: Parts, cache_text: bool, keep_pictures: bool = False
    ) -> None:
        self._family, self._parts = family, parts
        self._keep_pictures = keep_pictures
        seen = (fingerprint(parts.vae), family.latent_space, "pictures" if keep_pictures else "")
        self.image_identity = "-".join(filter(None, seen))
        self.lanes = 1
        keeps_frames = hasattr(parts.vae, "clear_cache")  # of films: those before, in the module
        if parts.device.type == "cpu" and not keeps_frames:
            self.lanes = max(1, (os.cpu_count() or 1) // torch.get_num_threads())
        self.hint: Hint = "none" if keep_pictures else family.hint  # the denoiser takes no part
        self.hint_identity = f"{self.image_identity}-{self.hint}"
        if self.hint == "depth":
            self.hint_identity = fingerprint(parts.module("depth_estimator"))
        self.text_identity: str | None = None
        if cache_text:
            names = (*family.text_encoders, *family.conditioners)
            held = parts.modules()  # some text encoders can be left out
            encoders = [fingerprint(held[name]) if name in held else "without" for name in names]
            self.text_identity = "-".join([*encoders, parts.text.identity])

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pictures or films in [-1, 1] -> latents on the CPU, and what else is kept.

        [B, 3, h, w] gives [B, C, H, W], and [B, 3, f, h, w] gives [B, C, F, H, W].
        """
        latents = self._family.encode_images(self._parts, pixels).cpu()
        return together(latents, pixels) if self._keep_pictures else latents

    @torch.no_grad()
    def encode_hints(self, pixels: Tensor, mask: Tensor, hide: bool) -> Condition:
        """What the denoiser reads of pictures [B, 3, h, w] and masks [B, 1, h, w], on the CPU."""
        device = self._parts.device
        hints = self._family.encode_hints(self._parts, pixels.to(device), mask.to(device), hide)
        return {name: tensor.cpu() for name, tensor in hints.items()}

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Condition:
        """Captions -> the family's condition, each tensor [B, ...] on the CPU."""
        condition = self._family.encode_text(self._parts, captions)
        return {name: tensor.cpu() for name, tensor in condition.items()}


def fill_cache(
    config: TrainConfig,
    family: Family,
    parts: Parts,
    method: Method,
    emit: Callable[[Event], None],
    should_stop: Callable[[], bool],
    types: Sequence[ConceptType] = (ConceptType.STANDARD, ConceptType.PRIOR_PREDICTION),
) -> Dataset:
    """Read the training set and encode what the cache lacks; every problem is a warning.

    Without `latent_caching` nothing is encoded here: neither images nor captions.

    Args:
        config: concepts, cache folder, resolution and text encoder settings.
        family: the architecture.
        parts: its networks.
        method: what trains; captions are not cached where that changes what becomes of them.
        emit: receives progress and warnings.
        should_stop: asked between images.
        types: the kinds of concept that take part.

    Raises:
        CachingStopped: if told to stop; what was encoded is kept.
        ConfigError: if there is nothing to train on.
    """
    cache_dir = Path(resolve(config.cache_dir))
    films = lengths_of(config, family.film_rate(parts))
    found = scan(config.concepts or [], cache_dir, films=films is not None)
    for problem in found.problems:
        emit(Warned(str(problem)))
    live = method.live_text or any(name in method.trainable for name in family.text_encoders)
    decodes = config.training_method is TrainingMethod.FINE_TUNE_VAE
    keeps = config.latent_caching
    encoder = LiveEncoder(family, parts, keeps and not live and not decodes, decodes)
    if keeps:
        note(cache_dir, Settings.of(config), _spaces(encoder))
    dataset = build(
        found,
        encoder,
        cache_dir if keeps else None,
        resolution=config.resolution,
        quantum=family.pixel_multiple,
        bucketing=config.aspect_ratio_bucketing,
        threads=config.dataloader_threads,
        report=lambda done, total: emit(TaskProgress("caching", done, total)),
        should_stop=should_stop,
        masks=config.masked_training,
        conditioning=config.custom_conditioning_image,
        types=types,
        films=films,
        cache_limit=config.ot.cache_limit,
        warn=lambda problem: emit(Warned(str(problem))),
    )
    for problem in dataset.problems:
        emit(Warned(str(problem)))
    return dataset


def _spaces(encoder: LiveEncoder) -> dict[str, str]:
    """Where in the cache an encoder's encodings are, by kind; empty for captions not cached."""
    text = encoder.text_identity
    return {
        "image": space_name("image", encoder.image_identity),
        "hint": space_name("hint", encoder.hint_identity),
        "text": "" if text is None else space_name("text", text),
    }


def fingerprint(network: nn.Module) -> str:
    """16 hexadecimal digits that differ between networks of other classes, configs or weights.

    And between one whose convolutions wrap around the edges and one whose do not.
    """
    digest = hashlib.sha256(type(network).__name__.encode())
    if any(getattr(layer, "padding_mode", "zeros") != "zeros" for layer in network.modules()):
        digest.update(b"wraps around")
    config: Any = getattr(network, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    public = {key: str(value) for key, value in settings.items() if not key.startswith("_")}
    digest.update(json.dumps(public, sort_keys=True).encode())
    for name, tensor in network.state_dict().items():
        values = tensor.flatten()
        values = values[:: max(1, len(values) // SAMPLED)].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
