"""Krea 2: a flow transformer that fuses twelve layers of a vision-language model.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modules.adapters.key_map import Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts, TextOptions

TOKENS = 512
LEAVES = [
    ("*.attn.to_q", "attn.wq"),
    ("*.attn.to_k", "attn.wk"),
    ("*.attn.to_v", "attn.wv"),
    ("*.attn.to_out.0", "attn.wo"),
    ("*.attn.to_gate", "attn.gate"),
    ("*.attn.norm_q", "attn.qknorm.qnorm"),
    ("*.attn.norm_k", "attn.qknorm.knorm"),
    ("*.ff.gate", "mlp.gate"),
    ("*.ff.up", "mlp.up"),
    ("*.ff.down", "mlp.down"),
    ("*.norm1", "prenorm"),
    ("*.norm2", "postnorm"),
]
NATIVE = Native(
    renamer(
        [
            ("transformer_blocks.{i}.scale_shift_table", "blocks.{i}.mod.lin"),
            ("transformer_blocks", "blocks"),
            ("text_fusion", "txtfusion"),
            ("img_in", "first"),
            ("time_embed.linear_1", "tmlp.0"),
            ("time_embed.linear_2", "tmlp.2"),
            ("time_mod_proj", "tproj.1"),
            ("txt_in.norm", "txtmlp.0"),
            ("txt_in.linear_1", "txtmlp.1"),
            ("txt_in.linear_2", "txtmlp.3"),
            ("final_layer.linear", "last.linear"),
            ("final_layer.norm", "last.norm"),
            ("final_layer.scale_shift_table", "last.modulation.lin"),
            *LEAVES,
        ]
    ),
    scales=("qknorm.qnorm", "qknorm.knorm", "prenorm", "postnorm", "txtmlp.0", "last.norm"),
    flat=("transformer_blocks.{i}.scale_shift_table",),
)


class Krea2(Family):
    """Krea 2."""

    model_types = (ModelType.KREA_2,)
    architecture = "Krea-2"
    pipeline = "Krea2Pipeline"
    lora_formats = lora_formats("transformer", NATIVE)

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> normalised latents [B, C, H, W]: a single frame."""
        return space.encode_normalised(parts.vae, pixels)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w] in [-1, 1]."""
        return space.decode_normalised(parts.vae, latents)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, 12, D], "mask": [B, T]}."""
        text, mask = parts.pipeline.encode_prompt(
            list(captions),
            device=parts.device,
            max_sequence_length=parts.text.tokens("text_encoder", TOKENS),
        )
        return {"text": text, "mask": mask}

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
        tokens = parts.denoiser(
            hidden_states=space.to_patches(noisy),
            timestep=t,
            encoder_hidden_states=text,
            position_ids=parts.pipeline.prepare_position_ids(
                text.shape[1], height // 2, width // 2, noisy.device
            ),
            encoder_attention_mask=condition["mask"].bool(),
        ).sample
        return space.from_patches(tokens, height, width)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """The texts, size and guidance."""
        return {
            "prompt": definition.prompt,
            "negative_prompt": definition.negative_prompt,
            "height": definition.height,
            "width": definition.width,
            # This pipeline counts from 0 what all others count from 1.
            "guidance_scale": max(0.0, definition.cfg_scale - 1),
            "max_sequence_length": parts.text.tokens("text_encoder", TOKENS),
        }

    def spatial(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Tokens [B, L, 4C] of a picture [h, w] -> latents [B, C, H, W]."""
        return space.from_patches(latents, height // 8, width // 8)

    def tiny(self) -> Parts:
        """Two blocks, a text block of each kind and a Qwen 3 VL, random weights."""
        from diffusers import Krea2Pipeline, Krea2Transformer2DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import qwen_tokenizer

        torch.manual_seed(0)
        transformer = Krea2Transformer2DModel(
            in_channels=64,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=12,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
            rope_theta=1000.0,
        )
        pipeline = Krea2Pipeline(
            transformer=transformer,
            vae=tiny.qwen_image_vae(),
            scheduler=tiny.flow_scheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=1.15,
                base_image_seq_len=256,
                max_image_seq_len=6400,
            ),
            text_encoder=tiny.qwen3_vl(layers=36),
            tokenizer=qwen_tokenizer(),
        )
        return Parts(pipeline, self.denoiser, TextOptions(length={"text_encoder": 64}))


VARIANTS = (Krea2(),)
