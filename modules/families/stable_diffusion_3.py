"""Stable Diffusion 3 and 3.5: a flow transformer over two streams, text and picture.

Two CLIP encoders give tokens and a pooled vector, T5 gives more tokens. An encoder that is left out
counts as zeros.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.adapters.key_map import Fused, Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig
from modules.families.base import Condition, Family, Parts, WordTable

CLIP_TOKENS = 77
CLIPS = ("text_encoder", "text_encoder_2")
"""Those whose states stand side by side; zeros take the place of one that is left out."""

BLOCK = "transformer_blocks.{i}"
STREAMS = {
    "x_block": ("to_q", "to_k", "to_v"),
    "context_block": tuple(f"add_{k}_proj" for k in "qkv"),
}
NATIVE = Native(
    renamer(
        [
            (f"{BLOCK}.attn.to_out.0", "joint_blocks.{i}.x_block.attn.proj"),
            (f"{BLOCK}.attn.to_add_out", "joint_blocks.{i}.context_block.attn.proj"),
            (f"{BLOCK}.attn2.to_out.0", "joint_blocks.{i}.x_block.attn2.proj"),
            (f"{BLOCK}.ff.net.0.proj", "joint_blocks.{i}.x_block.mlp.fc1"),
            (f"{BLOCK}.ff.net.2", "joint_blocks.{i}.x_block.mlp.fc2"),
            (f"{BLOCK}.ff_context.net.0.proj", "joint_blocks.{i}.context_block.mlp.fc1"),
            (f"{BLOCK}.ff_context.net.2", "joint_blocks.{i}.context_block.mlp.fc2"),
            (f"{BLOCK}.norm1.linear", "joint_blocks.{i}.x_block.adaLN_modulation.1"),
            (f"{BLOCK}.norm1_context.linear", "joint_blocks.{i}.context_block.adaLN_modulation.1"),
            (f"{BLOCK}.attn.norm_q", "joint_blocks.{i}.x_block.attn.ln_q"),
            (f"{BLOCK}.attn.norm_k", "joint_blocks.{i}.x_block.attn.ln_k"),
            (f"{BLOCK}.attn2.norm_q", "joint_blocks.{i}.x_block.attn2.ln_q"),
            (f"{BLOCK}.attn2.norm_k", "joint_blocks.{i}.x_block.attn2.ln_k"),
            (f"{BLOCK}.attn.norm_added_q", "joint_blocks.{i}.context_block.attn.ln_q"),
            (f"{BLOCK}.attn.norm_added_k", "joint_blocks.{i}.context_block.attn.ln_k"),
            ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
            ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
            ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
            ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
            ("pos_embed.proj", "x_embedder.proj"),
            ("pos_embed.pos_embed", "pos_embed"),
            ("norm_out.linear", "final_layer.adaLN_modulation.1"),
            ("proj_out", "final_layer.linear"),
        ]
    ),
    fused=(
        *(
            Fused(
                tuple(f"{BLOCK}.attn.{leaf}" for leaf in leaves),
                f"joint_blocks.{{i}}.{stream}.attn.qkv",
            )
            for stream, leaves in STREAMS.items()
        ),
        Fused(
            tuple(f"{BLOCK}.attn2.to_{leaf}" for leaf in "qkv"),
            "joint_blocks.{i}.x_block.attn2.qkv",
        ),
    ),
    swapped=("norm_out.linear",),
    swapped_if_double=(f"{BLOCK}.norm1_context.linear",),
)


@dataclass
class StableDiffusion3(Family):
    """SD 3 medium, or 3.5 medium and large."""

    model_types: tuple[ModelType, ...]
    architecture: str
    dual_attention: bool = False
    """Whether the first blocks of the toy model attend twice, as those of 3.5 medium do."""

    pipeline = "StableDiffusion3Pipeline"
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    trainable_encoders = text_encoders
    optional_encoders = text_encoders
    words = {  # noqa: RUF012 - read only
        "text_encoder": WordTable("clip_l", -2),
        "text_encoder_2": WordTable("clip_g", -2),
        "text_encoder_3": WordTable("t5", -1),
    }
    skipping_encoders = ("text_encoder", "text_encoder_2")
    lora_formats = lora_formats(
        "transformer",
        NATIVE,
        kohya_encoders={name: f"lora_te{index + 1}" for index, name in enumerate(text_encoders)},
        comfy_encoders=dict(zip(text_encoders, ("clip_l", "clip_g", "t5xxl"), strict=True)),
        legacy="lora_transformer",
        encoders=text_encoders,
    )
    single_file = {  # noqa: RUF012 - read only
        "transformer": ("model.diffusion_model.", "denoiser"),
        "vae": ("first_stage_model.", "vae"),
        "text_encoder": ("text_encoders.clip_l.transformer.", "clip"),
        "text_encoder_2": ("text_encoders.clip_g.transformer.", "clip"),
        "text_encoder_3": ("text_encoders.t5xxl.transformer.", "t5"),
    }

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, 77 + T, D], "pooled": [B, D]}: CLIP side by side, T5 behind."""
        pipeline, device = parts.pipeline, parts.device
        encoded = [_clip(parts, name, captions) for name in CLIPS if getattr(pipeline, name)]
        states, pools = [state for state, _ in encoded], [pooled for _, pooled in encoded]
        width = parts.denoiser.config.pooled_projection_dim
        if missing := width - sum(pooled.shape[-1] for pooled in pools):
            like = states[0] if states else torch.zeros(0, device=device)
            first = pipeline.text_encoder is None
            pools.insert(0 if first else 1, like.new_zeros(len(captions), missing))
            if first:  # what the second lacks are zeros in any case
                states.insert(0, like.new_zeros(len(captions), CLIP_TOKENS, missing))
        clip, pooled = torch.cat(states, -1), torch.cat(pools, -1)
        t5 = pipeline._get_t5_prompt_embeds(
            list(captions), max_sequence_length=CLIP_TOKENS, device=device, dtype=clip.dtype
        )
        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return {"text": torch.cat([clip, t5], 1), "pooled": pooled}

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The velocity [B, C, H, W] at sigmas [B]."""
        output = parts.denoiser(
            hidden_states=noisy,
            timestep=t * 1000,
            encoder_hidden_states=condition["text"],
            pooled_projections=condition["pooled"],
        )
        return cast(Tensor, output.sample)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of texts, so that an encoder that was left out is not asked."""
        arguments: dict[str, Any] = {
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "max_sequence_length": CLIP_TOKENS,
        }
        for lead, text in (("", definition.prompt), ("negative_", definition.negative_prompt)):
            encoded = self.encode_text(parts, [text])
            arguments[f"{lead}prompt_embeds"] = encoded["text"].to(parts.dtype)
            arguments[f"{lead}pooled_prompt_embeds"] = encoded["pooled"].to(parts.dtype)
        return arguments

    def tiny(self) -> Parts:
        """Two blocks, two CLIPs and a T5, random weights."""
        from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import clip_tokenizer, t5_tokenizer

        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=96,
            pooled_projection_dim=32 + 48,
            out_channels=16,
            pos_embed_max_size=96,
            qk_norm="rms_norm" if self.dual_attention else None,
            dual_attention_layers=(0,) if self.dual_attention else (),
        )
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer,
            vae=tiny.kl_vae(
                16,
                use_quant_conv=False,
                use_post_quant_conv=False,
                shift_factor=0.0609,
                scaling_factor=1.5305,
            ),
            scheduler=tiny.flow_scheduler(shift=3.0),
            text_encoder=tiny.clip(projection=True),
            tokenizer=clip_tokenizer(),
            text_encoder_2=tiny.clip(projection=True, width=48),  # converters go by it
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=tiny.t5(96),
            tokenizer_3=t5_tokenizer(),
        )
        return Parts(pipeline, self.denoiser)


def _clip(parts: Parts, name: str, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """A CLIP's hidden states [B, 77, D] and pooled vectors [B, D].

    The pipeline's own method for this needs the first CLIP even to ask the second.
    """
    encoder: Any = parts.module(name)
    tokenizer = getattr(parts.pipeline, name.replace("text_encoder", "tokenizer"))
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=CLIP_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    output = encoder(tokens.to(parts.device), output_hidden_states=True)
    return output.hidden_states[-2 - parts.text.skip(name)], output[0]


VARIANTS = (
    StableDiffusion3((ModelType.STABLE_DIFFUSION_3,), "stable-diffusion-v3-medium"),
    StableDiffusion3((ModelType.STABLE_DIFFUSION_35,), "stable-diffusion-v3.5", True),
)
