"""What an architecture must offer for the shared trainer to train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from modules.config import ModelFormat, ModelType, TrainConfig

Condition = dict[str, Tensor]
"""Encoded captions by name, each [B, ...]: what the cache stores and `predict` reads."""

Objective = Literal["epsilon", "v_prediction", "flow"]
"""What the denoiser predicts, and so how latents are noised and what the loss compares."""


@dataclass
class Parts:
    """The loaded networks of one model: a diffusers pipeline and the name of its denoiser.

    Sampling uses the pipeline as it is, so that samples come from the very modules that train.
    """

    pipeline: Any
    denoiser_name: str

    @property
    def denoiser(self) -> nn.Module:
        """The network that trains: a UNet or a transformer."""
        return self.module(self.denoiser_name)

    @property
    def vae(self) -> nn.Module:
        """The network between pixels and latents."""
        return self.module("vae")

    @property
    def scheduler(self) -> Any:
        """The model's own noise schedule, as its folder describes it."""
        return self.pipeline.scheduler

    def module(self, name: str) -> nn.Module:
        """A network by its pipeline name, such as "text_encoder"."""
        module = getattr(self.pipeline, name)
        assert isinstance(module, nn.Module), f"{name} is {type(module).__name__}, not a network"
        return module

    def modules(self) -> dict[str, nn.Module]:
        """Every network by its pipeline name."""
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if isinstance(part, nn.Module)}


class Family(Protocol):
    """One architecture, over the diffusers pipeline of that architecture.

    Shapes: B batch, C latent channels, H W latent height and width, h w pixels.
    """

    model_types: tuple[ModelType, ...]
    denoiser: str
    text_encoders: tuple[str, ...]
    pixel_multiple: int
    layer_presets: Mapping[str, str]
    lora_prefixes: Mapping[ModelFormat, Mapping[str, str]]
    """For each adapter format the family can write: the key prefix of each part."""

    def load(self, config: TrainConfig) -> Parts:
        """Load the networks that `config` names.

        Raises:
            ConfigError: if the source is missing or holds another architecture.
        """

    def objective(self, parts: Parts) -> Objective:
        """What these weights predict."""

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> latents [B, C, H, W] in the space of the loss."""

    def encode_text(self, parts: Parts, captions: Sequence[str], layer_skip: int) -> Condition:
        """Encode captions as the pipeline does for a prompt; `layer_skip` is the clip skip."""

    def predict(self, parts: Parts, noisy: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """The denoiser's output [B, C, H, W] at noisy latents and timesteps [B] in 0..999."""

    def tiny(self) -> Parts:
        """The real classes at toy size with random weights, for tests."""
