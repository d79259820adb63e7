"""Lumina Image 2: one stream of text and picture tokens; time runs backwards, output is negated.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from modules.adapters.key_map import Fused, Native, lora_formats, renamer
from modules.config import ModelType
from modules.families.base import Condition, Family, Parts

BLOCKS = ("layers", "noise_refiner", "context_refiner")
NATIVE = Native(
    renamer(
        [
            ("time_caption_embed.caption_embedder", "cap_embedder"),
            ("time_caption_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
            ("time_caption_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
            ("norm_out.linear_1", "final_layer.adaLN_modulation.1"),
            ("norm_out.linear_2", "final_layer.linear"),
            ("context_refiner.{i}.norm1", "context_refiner.{i}.attention_norm1"),
            ("*.norm1.linear", "adaLN_modulation.1"),
            ("*.norm1.norm", "attention_norm1"),
            ("*.norm2", "attention_norm2"),
            ("*.attn.to_out.0", "attention.out"),
            ("*.attn.norm_q", "attention.q_norm"),
            ("*.attn.norm_k", "attention.k_norm"),
            ("*.linear_1", "w1"),
            ("*.linear_2", "w2"),
            ("*.linear_3", "w3"),
        ]
    ),
    fused=tuple(
        Fused(
            tuple(f"{block}.{{i}}.attn.to_{leaf}" for leaf in "qkv"),
            f"{block}.{{i}}.attention.qkv",
            widths=(3, 1, 1),  # three queries share a key and a value
        )
        for block in BLOCKS
    ),
)


class Lumina2(Family):
    """Lumina Image 2."""

    model_types = (ModelType.LUMINA_2,)
    architecture = "lumina-2"
    pipeline = "Lumina2Pipeline"
    lora_formats = lora_formats("transformer", NATIVE)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D], "mask": [B, T]}."""
        text, mask, *_ = parts.pipeline.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            device=parts.device,
            max_sequence_length=self.tokens,
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
        output = parts.denoiser(
            hidden_states=noisy,
            timestep=1 - t,
            encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition["mask"].long(),
        )
        return cast(Tensor, -output.sample)

    def tiny(self) -> Parts:
        """Two blocks, refiners of both kinds and a Gemma, random weights."""
        from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import gemma_tokenizer

        torch.manual_seed(0)
        transformer = Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=16,
            hidden_size=24,
            num_layers=2,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=16,
            scaling_factor=1.0,
            axes_dim_rope=(4, 2, 2),
            cap_feat_dim=8,
        )
        pipeline = Lumina2Pipeline(
            transformer=transformer,
            vae=tiny.flux_vae(),
            scheduler=tiny.flow_scheduler(),
            text_encoder=tiny.gemma2(),
            tokenizer=gemma_tokenizer(),
        )
        return Parts(pipeline, self.denoiser)


VARIANTS = (Lumina2(),)
