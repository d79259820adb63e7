"""Ideogram 4: one packed sequence of text and picture; time runs backwards, output is negated.

A second transformer, which saw no text, guides samples; it does not train.

Shapes: B batch, C latent channels (patches of the VAE's), H W latent height and width, h w pixels,
T text tokens, L image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modules.adapters.key_map import Fused, Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts, TextOptions

TOKENS = 512
NATIVE = Native(
    renamer([("layers.{i}.attention.to_out.0", "layers.{i}.attention.o")]),
    fused=(
        Fused(
            tuple(f"layers.{{i}}.attention.to_{leaf}" for leaf in "qkv"),
            "layers.{i}.attention.qkv",
        ),
    ),
)


class Ideogram4(Family):
    """Ideogram 4, conditioned on thirteen layers of a vision-language model."""

    model_types = (ModelType.IDEOGRAM_4,)
    architecture = "Ideogram"
    pipeline = "Ideogram4Pipeline"
    guides = ("unconditional_transformer",)
    lora_formats = lora_formats("transformer", NATIVE)

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> normalised patches [B, C, H, W], 16 times smaller.

        A patch's channels are ordered by place first: that is how the VAE's statistics lie here.
        """
        vae = parts.vae
        latents: Tensor = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        batch, channels, height, width = latents.shape
        patches = latents.view(batch, channels, height // 2, 2, width // 2, 2)
        patches = patches.permute(0, 3, 5, 1, 2, 4)
        patches = patches.reshape(batch, 4 * channels, height // 2, width // 2)
        mean, deviation = space.batch_norm_statistics(vae)
        return (patches - mean) / deviation

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w] in [-1, 1]."""
        vae = parts.vae
        mean, deviation = space.batch_norm_statistics(vae)
        patches = latents.to(vae.device, vae.dtype) * deviation + mean
        batch, channels, height, width = patches.shape
        patches = patches.view(batch, 2, 2, channels // 4, height, width)
        patches = patches.permute(0, 3, 4, 1, 5, 2)
        pixels: Tensor = vae.decode(
            patches.reshape(batch, channels // 4, 2 * height, 2 * width)
        ).sample
        return pixels

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, 13D], "mask": [B, T]}; padding stands before the text.

        Raises:
            ValueError: if a caption is longer than the run's caption length.
        """
        length = parts.text.tokens("text_encoder", TOKENS)
        text, _, segments, _ = parts.pipeline.encode_prompt(
            list(captions), grid_h=1, grid_w=1, max_sequence_length=length, device=parts.device
        )
        return {"text": text[:, :length], "mask": (segments[:, :length] == 1).long()}

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The velocity [B, C, H, W] at sigmas [B]."""
        height, width = noisy.shape[-2:]
        image, text = space.to_tokens(noisy), condition["text"]
        positions, segments, indicator = parts.pipeline._prepare_ids(
            condition["mask"].sum(1).int().tolist(), height, width, text.shape[1], noisy.device
        )
        before = image.new_zeros(len(image), text.shape[1], image.shape[2])
        features = text.new_zeros(len(text), image.shape[1], text.shape[2])
        tokens = parts.denoiser(
            hidden_states=torch.cat([before, image], 1),
            timestep=1 - t,
            encoder_hidden_states=torch.cat([text, features], 1),
            position_ids=positions,
            segment_ids=segments,
            indicator=indicator,
        ).sample
        return -space.from_tokens(tokens[:, text.shape[1] :], height, width)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """The prompt, size and guidance; the second transformer stands for a negative prompt."""
        return {
            "prompt": definition.prompt,
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "guidance_schedule": None,
            "max_sequence_length": parts.text.tokens("text_encoder", TOKENS),
        }

    def spatial(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Tokens [B, L, C] of a picture [h, w] -> latents [B, C, H, W]."""
        return space.from_tokens(latents, height // 16, width // 16)

    def tiny(self) -> Parts:
        """Two transformers of two blocks and a Qwen 3 VL, random weights."""
        from diffusers import Ideogram4Pipeline, Ideogram4Transformer2DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import qwen_tokenizer

        torch.manual_seed(0)
        transformers = [
            Ideogram4Transformer2DModel(
                in_channels=128,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                intermediate_size=32,
                adaln_dim=16,
                llm_features_dim=13 * 16,
                mrope_section=(4, 2, 2),
            )
            for _ in range(2)
        ]
        pipeline = Ideogram4Pipeline(
            transformer=transformers[0],
            unconditional_transformer=transformers[1],
            vae=tiny.flux2_vae(),
            scheduler=tiny.flow_scheduler(),
            text_encoder=tiny.qwen3_vl(layers=36),
            tokenizer=qwen_tokenizer(),
        )
        return Parts(pipeline, self.denoiser, TextOptions(length={"text_encoder": 64}))


VARIANTS = (Ideogram4(),)
