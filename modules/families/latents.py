"""Between pixels and the space of the loss: what each kind of VAE does to its latents.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def encode_scaled(vae: Any, pixels: Tensor) -> Tensor:
    """[B, 3, h, w] -> latents [B, C, H, W]: the posterior's mean, shifted and scaled."""
    encoded = vae.encode(pixels.to(vae.device, vae.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return cast(Tensor, (latents - shift) * vae.config.scaling_factor)


def decode_scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, H, W] -> [B, 3, h, w], the way back of encode_scaled."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor + shift
    return cast(Tensor, vae.decode(latents).sample)


def encode_normalised(vae: Any, pixels: Tensor) -> Tensor:
    """[B, 3, h, w] -> [B, C, H, W], films as films: each channel by its mean and deviation."""
    pixels = pixels.to(vae.device, vae.dtype)
    latents = as_films(lambda film: cast(Tensor, vae.encode(film).latent_dist.mode()), pixels)
    mean, deviation = _channel_statistics(vae, latents)
    return (latents - mean) / deviation


def decode_normalised(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, H, W] -> [B, 3, h, w], the way back of encode_normalised; films as films."""
    latents = latents.to(vae.device, vae.dtype)
    mean, deviation = _channel_statistics(vae, latents)
    return as_films(lambda film: cast(Tensor, vae.decode(film).sample), latents * deviation + mean)


def as_films(work: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """What films [B, C, F, H, W] come to; pictures [B, C, H, W] are films of one frame there."""
    if pictures.ndim == 5:
        return work(pictures)
    return work(pictures.unsqueeze(2)).squeeze(2)


def encode_patched(vae: Any, pixels: Tensor, epsilon: float | None = None) -> Tensor:
    """[B, 3, h, w] -> [B, 4C, H/2, W/2]: 2x2 patches as channels, by the VAE's batch norm.

    `epsilon` takes the place of the one that the VAE's settings name for its batch norm.
    """
    latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    mean, deviation = batch_norm_statistics(vae, epsilon)
    return (torch.nn.functional.pixel_unshuffle(latents, 2) - mean) / deviation


def decode_patched(vae: Any, latents: Tensor, epsilon: float | None = None) -> Tensor:
    """Latents [B, 4C, H/2, W/2] -> [B, 3, h, w], the way back of encode_patched."""
    mean, deviation = batch_norm_statistics(vae, epsilon)
    latents = latents.to(vae.device, vae.dtype) * deviation + mean
    return cast(Tensor, vae.decode(torch.nn.functional.pixel_shuffle(latents, 2)).sample)


def to_patches(latents: Tensor) -> Tensor:
    """[B, C, H, W] -> tokens [B, H*W/4, 4C]: 2x2 patches, row by row."""
    return to_tokens(torch.nn.functional.pixel_unshuffle(latents, 2))


def from_patches(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [B, L, 4C] -> [B, C, H, W], the way back of to_patches for latents [H, W]."""
    return torch.nn.functional.pixel_shuffle(from_tokens(tokens, height // 2, width // 2), 2)


def to_tokens(latents: Tensor) -> Tensor:
    """[B, C, H, W] -> tokens [B, H*W, C], row by row."""
    return latents.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [B, H*W, C] -> [B, C, H, W]."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)


def _channel_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = vae.config.latents_mean, vae.config.latents_std
    shape = (1, -1, *[1] * (like.ndim - 2))
    return like.new_tensor(mean).view(shape), like.new_tensor(deviation).view(shape)


def batch_norm_statistics(vae: Any, epsilon: float | None = None) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of 2x2 patches, [1, 4C, 1, 1], as the VAE keeps them."""
    norm = vae.bn
    epsilon = vae.config.batch_norm_eps if epsilon is None else epsilon
    deviation = torch.sqrt(norm.running_var + epsilon)
    mean = norm.running_mean.view(1, -1, 1, 1).to(vae.dtype)
    return mean, deviation.view(1, -1, 1, 1).to(vae.dtype)
