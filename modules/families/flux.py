"""Flux.1: a flow transformer over 2x2 patches of a 16-channel latent.

Conditioned on T5's tokens, CLIP's pooled vector and, as its weights were distilled, a guidance.
Fill weights also read the masked picture and the mask.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.adapters.key_map import Fused, Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts, TextOptions, WordTable
from modules.families.inpainting import inpainting_hints, pictures

TOKENS = 512
"""The most text tokens that the model was trained on."""

RULES = [
    ("transformer_blocks.{i}.attn.to_out.0", "double_blocks.{i}.img_attn.proj"),
    ("transformer_blocks.{i}.attn.to_add_out", "double_blocks.{i}.txt_attn.proj"),
    ("transformer_blocks.{i}.attn.norm_q", "double_blocks.{i}.img_attn.norm.query_norm"),
    ("transformer_blocks.{i}.attn.norm_k", "double_blocks.{i}.img_attn.norm.key_norm"),
    ("transformer_blocks.{i}.attn.norm_added_q", "double_blocks.{i}.txt_attn.norm.query_norm"),
    ("transformer_blocks.{i}.attn.norm_added_k", "double_blocks.{i}.txt_attn.norm.key_norm"),
    ("transformer_blocks.{i}.ff.net.0.proj", "double_blocks.{i}.img_mlp.0"),
    ("transformer_blocks.{i}.ff.net.2", "double_blocks.{i}.img_mlp.2"),
    ("transformer_blocks.{i}.ff_context.net.0.proj", "double_blocks.{i}.txt_mlp.0"),
    ("transformer_blocks.{i}.ff_context.net.2", "double_blocks.{i}.txt_mlp.2"),
    ("transformer_blocks.{i}.norm1.linear", "double_blocks.{i}.img_mod.lin"),
    ("transformer_blocks.{i}.norm1_context.linear", "double_blocks.{i}.txt_mod.lin"),
    ("single_transformer_blocks.{i}.attn.norm_q", "single_blocks.{i}.norm.query_norm"),
    ("single_transformer_blocks.{i}.attn.norm_k", "single_blocks.{i}.norm.key_norm"),
    ("single_transformer_blocks.{i}.proj_out", "single_blocks.{i}.linear2"),
    ("single_transformer_blocks.{i}.norm.linear", "single_blocks.{i}.modulation.lin"),
    ("context_embedder", "txt_in"),
    ("x_embedder", "img_in"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
]
FUSED = (
    Fused(
        tuple(f"transformer_blocks.{{i}}.attn.to_{leaf}" for leaf in "qkv"),
        "double_blocks.{i}.img_attn.qkv",
    ),
    Fused(
        tuple(f"transformer_blocks.{{i}}.attn.add_{leaf}_proj" for leaf in "qkv"),
        "double_blocks.{i}.txt_attn.qkv",
    ),
    Fused(
        (
            *(f"single_transformer_blocks.{{i}}.attn.to_{leaf}" for leaf in "qkv"),
            "single_transformer_blocks.{i}.proj_mlp",
        ),
        "single_blocks.{i}.linear1",
        widths=(1, 1, 1, 4),
    ),
)
SCALES = ("query_norm", "key_norm")
NATIVE = Native(renamer(RULES), FUSED, swapped=("norm_out.linear",), scales=SCALES)


@dataclass
class Flux(Family):
    """Flux.1, whether it paints freely (dev) or into a masked picture (Fill)."""

    model_types: tuple[ModelType, ...]
    architecture: str
    pipeline: str = "FluxPipeline"

    text_encoders = ("text_encoder", "text_encoder_2")
    trainable_encoders = text_encoders
    words = {  # noqa: RUF012 - read only
        "text_encoder": WordTable("clip_l"),
        "text_encoder_2": WordTable("t5", -1),
    }
    lora_formats = lora_formats(
        "transformer",
        NATIVE,
        kohya_encoders={"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        comfy_encoders={"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
        legacy="lora_transformer",
        encoders=text_encoders,
    )

    def encode_hints(
        self, parts: Parts, pixels: Tensor, mask: Tensor, hide: bool = True
    ) -> Condition:
        """{"kept": [B, C, H, W], "mask": [B, 64, H, W]} for Fill: latents of what is kept.

        Unlike the latents, the mask is not shrunk: each of its 8x8 pixels is a channel, 0 or 1.
        """
        if self.hint == "none":
            return {}
        kept = inpainting_hints(parts.vae, pixels, mask, hide)["kept"]
        return {"kept": kept, "mask": F.pixel_unshuffle(mask.to(torch.uint8), 8)}

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D], "pooled": [B, D]}; no mask, as the model attends to padding."""
        text, pooled, _ = parts.pipeline.encode_prompt(
            list(captions),
            list(captions),
            device=parts.device,
            max_sequence_length=parts.text.tokens("text_encoder_2", TOKENS),
        )
        return {"text": text, "pooled": pooled}

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
        text = condition["text"]
        guided = parts.denoiser.config.guidance_embeds
        if self.hint == "inpainting":
            shown = (condition["kept"].to(noisy), condition["mask"].to(noisy))
            noisy = torch.cat([noisy, *shown], 1)
        tokens = parts.denoiser(
            hidden_states=space.to_patches(noisy),
            timestep=t,
            guidance=noisy.new_full((len(noisy),), parts.guidance) if guided else None,
            pooled_projections=condition["pooled"],
            encoder_hidden_states=text,
            txt_ids=noisy.new_zeros(text.shape[1], 3),
            img_ids=patch_positions(height // 2, width // 2).to(noisy),
        ).sample
        return space.from_patches(tokens, height, width)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of the prompt; with distilled guidance nothing is negated."""
        encoded = self.encode_text(parts, [definition.prompt])
        arguments: dict[str, Any] = {
            "prompt_embeds": encoded["text"].to(parts.dtype),
            "pooled_prompt_embeds": encoded["pooled"].to(parts.dtype),
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "max_sequence_length": parts.text.tokens("text_encoder_2", TOKENS),
        }
        if self.hint == "inpainting":
            arguments["image"], arguments["mask_image"] = pictures(definition)
        return arguments

    def spatial(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Tokens [B, L, 4C] of a picture [h, w] -> latents [B, C, H, W]."""
        return space.from_patches(latents, height // 8, width // 8)

    def tiny(self) -> Parts:
        """One double and one single block, a CLIP and a T5, random weights."""
        import diffusers

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import clip_tokenizer, t5_tokenizer

        torch.manual_seed(0)
        transformer = diffusers.FluxTransformer2DModel(
            in_channels=4 * (16 + 16 + 64) if self.hint == "inpainting" else 64,
            out_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        )
        pipeline = getattr(diffusers, self.pipeline)(
            transformer=transformer,
            vae=tiny.flux_vae(),
            scheduler=tiny.flow_scheduler(shift=3.0, use_dynamic_shifting=True),
            text_encoder=tiny.clip(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=tiny.t5(),
            tokenizer_2=t5_tokenizer(),
        )
        return Parts(pipeline, self.denoiser, TextOptions(length={"text_encoder_2": 24}))


def patch_positions(rows: int, columns: int) -> Tensor:
    """Rotary positions (0, row, column) of every patch, [rows * columns, 3]."""
    return torch.cartesian_prod(torch.zeros(1), torch.arange(0.0, rows), torch.arange(0.0, columns))


VARIANTS = (
    Flux((ModelType.FLUX_DEV_1,), "Flux.1-dev"),
    Flux((ModelType.FLUX_FILL_DEV_1,), "Flux.1-fill-dev", "FluxFillPipeline"),
)
