"""A Stable Diffusion of 60 million parameters with random weights, and pictures to train it on.

Every part has the topology of SD 1.5 at a quarter to a third of its width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from modules import TrainConfig

WIDTHS = (96, 192, 320, 320)
TEXT = 256


def save_model(folder: Path) -> int:
    """Write the pipeline as a diffusers folder; the parameters of its UNet."""
    import diffusers
    import transformers

    from modules.families.tiny_tokenizers import clip_tokenizer

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=32,
        block_out_channels=WIDTHS,
        cross_attention_dim=TEXT,
        attention_head_dim=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT,
            intermediate_size=4 * TEXT,
            num_hidden_layers=12,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
    )
    parts: dict[str, Any] = {
        "unet": unet, "vae": vae, "text_encoder": text_encoder,
        "tokenizer": tokenizer, "scheduler": scheduler,
    }  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    return sum(parameter.numel() for parameter in unet.parameters())


def save_pictures(folder: Path, count: int = 24, size: int = 256) -> list[Path]:
    """Write pictures of noise with captions."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    files = []
    for number in range(count):
        small = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        file = folder / f"{number:02}.png"
        Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(file)
        file.with_suffix(".txt").write_text(f"a picture of number {number}")
        files.append(file)
    return files


def config_of(folder: Path, name: str) -> TrainConfig:
    """The settings that diffusers' script has by default, in float32."""
    config, _ = TrainConfig.load(
        {
            "model_type": "STABLE_DIFFUSION_15",
            "training_method": "LORA",
            "base_model_name": str(folder / "model"),
            "workspace_dir": str(folder / name),
            "cache_dir": str(folder / "cache"),
            "output_model_destination": str(folder / name / "lora.safetensors"),
            "output_model_format": "DIFFUSERS_LORA",
            "concepts": [{"name": "pictures", "path": str(folder / "pictures")}],
            "train_device": "cpu",
            "train_dtype": "FLOAT_32",
            "tensorboard": False,
            "resolution": "256",
            "batch_size": 2,
            "epochs": 10_000,
            "learning_rate": 1e-4,
            "learning_rate_warmup_steps": 0,
            "lora_rank": 16,
            "lora_alpha": 16.0,
            "layer_filter": "to_k,to_q,to_v,to_out.0",
            "layer_filter_preset": "custom",
            "unet": {"gradient_checkpointing": False},
            "text_encoder": {"train": False, "gradient_checkpointing": False},
            "sample_after_unit": "NEVER",
            "backup_after_unit": "NEVER",
            "samples": [],
        }
    )
    return config
