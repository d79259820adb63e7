"""The autoencoder: pictures to latents a quarter of their edge, and back.

Shapes: B batch, S edge in pixels, C edge of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.pretrain_emoji.pictures import Picture, on_background
from scripts.pretrain_emoji.stage import Stage

CROP = 32
CHANNELS = (32, 32, 64)
PEAK_RATE = 2.5e-3
KL_WEIGHT = 2e-4


def build() -> Any:
    """The network, with random weights; 0.7 million parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train(
    sources: Sequence[tuple[float, Sequence[Picture]]],
    *,
    steps: int,
    batch_size: int,
    folder: Path,
    device: torch.device,
    seed: int,
    save_every: int,
) -> Any:
    """A trained autoencoder; its `scaling_factor` gives the first source's latents unit spread.

    Args:
        sources: sets of pictures, with how often a picture of each is looked at.
        steps: length of the training.
        batch_size: crops in a step.
        folder: where the checkpoint lies.
        device: where it trains.
        seed: of weights and batches.
        save_every: steps between checkpoints.
    """
    torch.manual_seed(seed)
    vae = build().to(device)
    stage = Stage(
        "vae",
        {"vae": vae},
        {"vae": PEAK_RATE},
        steps=steps,
        warmup=50,
        ema_decay=0.995,
        folder=folder,
        seed=seed,
    )
    pixels = torch.from_numpy(np.stack([p.pixels for _, each in sources for p in each])).to(device)
    weights = torch.cat([torch.full((len(each),), weight) for weight, each in sources]).to(device)

    def loss_of(generator: torch.Generator) -> Tensor:
        crops = random_crops(pixels, weights, batch_size, generator)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(crops).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator, device=device)
            restored = vae.decode(posterior.mean + posterior.std * noise).sample
        return loss(crops, restored.float(), posterior.mean.float(), posterior.logvar.float())

    stage.train(loss_of, save_every)
    latents = encode(vae, as_input([p.pixels for p in sources[0][1]], device))
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return vae


def random_crops(
    pixels: Tensor, weights: Tensor, batch_size: int, generator: torch.Generator
) -> Tensor:
    """Crops [B, 3, CROP, CROP] in [-1, 1], more often of the middle, mirrored half of the time.

    A fifth of them lies on a random colour, and a fifth has its colour channels swapped, so that
    the autoencoder also serves pictures that look unlike emoji.

    Args:
        pixels: uint8 [N, S, S, 4], RGBA.
        weights: how often each picture is drawn, [N].
        batch_size: B.
        generator: source of all randomness, on the pictures' device.
    """
    device, edge = pixels.device, pixels.shape[1]

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    chosen = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
    corner = (rand(2, 2, batch_size).mean(0) * (edge - CROP + 1)).long()  # triangular
    span = torch.arange(CROP, device=device)
    rows, columns = corner[0, :, None] + span, corner[1, :, None] + span  # [B, CROP] each
    crops = pixels[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
    crops = crops.permute(0, 3, 1, 2).float() / 255
    color, alpha = crops[:, :3], crops[:, 3:]

    order = rand(batch_size, 3).argsort(1)
    straight = torch.arange(3, device=device).expand_as(order)
    order = torch.where(rand(batch_size, 1) < 0.2, order, straight)
    color = color.gather(1, order[:, :, None, None].expand_as(color))
    background = torch.where(rand(batch_size, 1) < 0.2, rand(batch_size, 3), 1.0)
    crops = color * alpha + background[:, :, None, None] * (1 - alpha)
    mirrored = rand(batch_size) < 0.5
    return torch.where(mirrored[:, None, None, None], crops.flip(-1), crops) * 2 - 1


def loss(crops: Tensor, restored: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """L1 + squared error + L1 of the differences between neighbours, and a little KL; a scalar.

    The neighbours keep edges sharp where the first two are content with a blur.
    """
    error = restored - crops
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error.abs().mean() + error.square().mean() + edges + KL_WEIGHT * divergence


@torch.no_grad()
def encode(vae: Any, pictures: Tensor, batch_size: int = 64) -> Tensor:
    """Means of the latents, not scaled: [B, 3, S, S] in [-1, 1] -> [B, 4, S/4, S/4]."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(batch_size)])


def as_input(pictures: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Pictures [S, S, 4] on white, as the autoencoder takes them: [B, 3, S, S] in [-1, 1]."""
    colors = torch.from_numpy(on_background(np.stack(pictures))).to(device)
    return colors.permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(vae: Any, pictures: Tensor, batch_size: int = 64) -> float:
    """Mean peak signal-to-noise ratio of restored pictures, in dB."""
    ratios = []
    with torch.no_grad():
        for part in pictures.split(batch_size):
            restored = vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
            error = (restored - part).square().mean((1, 2, 3)) / 4
            ratios.append(-10 * error.log10())
    return float(torch.cat(ratios).mean())
