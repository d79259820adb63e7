"""The text encoder and the denoiser, and the latents that they learn from.

Shapes: N emoji, V variants of each, K captions of each, B batch, L tokens, H W latent edges.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from scripts.pretrain_emoji.captions import MAX_TOKENS, captions, token_ids
from scripts.pretrain_emoji.pictures import Picture
from scripts.pretrain_emoji.stage import Stage
from scripts.pretrain_emoji.vae import as_input, encode

VARIANTS = 6  # two as they are, four resized and moved; every second one mirrored
COMPONENTS = 64  # of the latents that the text encoder is first taught to tell
EMPTY_CAPTIONS = 0.1  # share of the batch, for guidance
SNR_CAP = 5.0


@dataclass(frozen=True)
class Examples:
    """What the networks learn from, on the device where they train."""

    latents: Tensor
    """[N, V, 4, H, W], scaled."""
    tokens: Tensor
    """[N, K, L], int64."""
    empty: Tensor
    """The empty caption, [L]."""
    weights: Tensor
    """How often each emoji is looked at, [N]."""


def examples(
    pictures: Sequence[Picture], vae: Any, tokenizer: Any, device: torch.device, seed: int
) -> Examples:
    """Latents and captions of every picture; `seed` fixes how the variants differ."""
    rng = random.Random(seed)
    latents = [
        encode(vae, as_input([_variant(p.pixels, index, rng) for p in pictures], device))
        for index in range(VARIANTS)
    ]
    return Examples(
        latents=torch.stack(latents, 1) * vae.config.scaling_factor,
        tokens=torch.stack([token_ids(tokenizer, captions(p, rng)) for p in pictures]).to(device),
        empty=token_ids(tokenizer, [""])[0].to(device),
        weights=torch.tensor([picture.weight for picture in pictures], device=device),
    )


def build_text_encoder(tokenizer: Any) -> Any:
    """A small CLIP text encoder with random weights; 0.9 million parameters."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet() -> Any:
    """A small denoiser with random weights; 4 million parameters."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> Any:
    """The noise schedule that the denoiser is trained for and sampled with."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,  # without effect on trailing steps, but pipelines ask for it
    )


def train_text(
    data: Examples,
    text_encoder: Any,
    *,
    steps: int,
    folder: Path,
    seed: int,
    save_every: int,
) -> None:
    """Teach the text encoder which caption belongs to which picture, before any diffusion.

    The state at the caption's end predicts the principal components of the picture's latents, and
    tells it apart from the other pictures of the batch. The denoiser then starts from captions
    that already mean something, which saves a good part of its training.
    """
    device = data.latents.device
    torch.manual_seed(seed)
    targets = principal_components(data.latents[:, 0].flatten(1))
    width = text_encoder.config.hidden_size
    to_target = nn.Linear(width, targets.shape[1]).to(device)
    of_target = nn.Linear(targets.shape[1], targets.shape[1]).to(device)
    networks = {"text": text_encoder, "to_target": to_target, "of_target": of_target}
    stage = Stage(
        "text",
        networks,
        dict.fromkeys(networks, 2e-3),
        steps=steps,
        warmup=30,
        ema_decay=0.9,
        folder=folder,
        seed=seed,
    )
    batch_size = min(128, len(targets))

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(targets), generator=generator, device=device)[:batch_size]
        tokens = _random_captions(data.tokens[chosen], generator)
        states = text_encoder(tokens).last_hidden_state
        ends = (tokens == text_encoder.config.eos_token_id).int().argmax(1)
        told = to_target(states[torch.arange(len(states), device=device), ends])
        residual = (told - targets[chosen]).square().mean() / targets.square().mean()
        alike = F.normalize(told, dim=-1) @ F.normalize(of_target(targets[chosen]), dim=-1).T
        return residual + 0.3 * F.cross_entropy(15 * alike, torch.arange(batch_size, device=device))

    stage.train(loss_of, save_every)


def train(
    data: Examples,
    text_encoder: Any,
    unet: Any,
    *,
    pictures: int,
    batch_size: int,
    learning_rate: float,
    folder: Path,
    seed: int,
    save_every: int,
) -> None:
    """Train denoiser and text encoder by v-prediction, on `pictures` pictures in all."""
    device = data.latents.device
    alphas = build_scheduler().alphas_cumprod.to(device)
    stage = Stage(
        "denoiser",
        {"unet": unet, "text": text_encoder},
        {"unet": learning_rate, "text": learning_rate / 4},
        steps=-(-pictures // batch_size),
        warmup=200,
        ema_decay=0.999,
        folder=folder,
        seed=seed,
    )

    def loss_of(generator: torch.Generator) -> Tensor:
        latents, tokens = random_batch(data, batch_size, generator)
        offset = torch.rand(1, generator=generator, device=device)
        spread = torch.arange(batch_size, device=device) / batch_size
        timesteps = ((offset + spread) % 1 * len(alphas)).long()  # one from each stratum
        noise = torch.randn(latents.shape, generator=generator, device=device)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        states = text_encoder(tokens).last_hidden_state
        with torch.autocast(device.type, torch.bfloat16):
            predicted = unet(noisy, timesteps, states).sample
        error = (predicted.float() - velocity).square().mean((1, 2, 3))
        return (error * min_snr_weight(alphas[timesteps])).mean()

    stage.train(loss_of, save_every)


def min_snr_weight(alpha: Tensor) -> Tensor:
    """Weight of the squared error of v at cumulative alphas [B]; the signal-to-noise ratio caps it.

    Source: Hang et al. 2023, arXiv:2303.09556, in its form for v.
    """
    ratio = alpha / (1 - alpha)
    return ratio.clamp(max=SNR_CAP) / (ratio + 1)


def random_batch(
    data: Examples, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents [B, 4, H, W] and tokens [B, L] of emoji drawn by weight; some captions are empty."""
    device = data.latents.device
    chosen = torch.multinomial(data.weights, batch_size, replacement=True, generator=generator)
    variant = torch.randint(
        data.latents.shape[1], (batch_size,), generator=generator, device=device
    )
    tokens = _random_captions(data.tokens[chosen], generator)
    dropped = torch.rand(batch_size, 1, generator=generator, device=device) < EMPTY_CAPTIONS
    return data.latents[chosen, variant], torch.where(dropped, data.empty, tokens)


def principal_components(rows: Tensor) -> Tensor:
    """Coordinates of rows [N, D] along their first principal axes, [N, <= COMPONENTS].

    Each axis is scaled by the root of its share, so that the large ones do not drown the rest.
    """
    centred = rows - rows.mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    count = min(COMPONENTS, len(rows) - 1)
    coordinates = left[:, :count] * len(rows) ** 0.5  # unit variance
    return coordinates * (sizes[:count] / sizes[0]).sqrt()


def _random_captions(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """One of the captions of each, [B, K, L] -> [B, L]."""
    batch, count, _ = tokens.shape
    which = torch.randint(count, (batch,), generator=generator, device=tokens.device)
    return tokens[torch.arange(batch, device=tokens.device), which]


def _variant(pixels: np.ndarray, index: int, rng: random.Random) -> np.ndarray:
    """A picture [S, S, 4] as it is for the first two indices, then resized and moved a little."""
    if index >= 2:
        edge = len(pixels)
        size = round(edge * rng.uniform(0.82, 1.04))
        small = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
        canvas = Image.new("RGBA", (edge, edge))
        middle = (edge - size) // 2
        canvas.paste(small, (middle + rng.randint(-3, 3), middle + rng.randint(-3, 3)))
        pixels = np.asarray(canvas)
    return pixels[:, ::-1] if index % 2 else pixels
