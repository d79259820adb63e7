"""Sana: a linear-attention flow transformer over latents that are 32 times smaller than pixels.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from modules.adapters.key_map import lora_formats
from modules.config import ModelType, SampleConfig
from modules.families.base import Condition, Family, Parts, WordTable


class Sana(Family):
    """Sana, conditioned on Gemma's tokens without the instructions that its demo puts before."""

    model_types = (ModelType.SANA,)
    architecture = "sana"
    pipeline = "SanaPipeline"
    trainable_encoders = ("text_encoder",)
    words = {"text_encoder": WordTable("gemma", -1)}  # noqa: RUF012 - read only
    lora_formats = lora_formats(
        "transformer",
        None,
        kohya_encoders={"text_encoder": "lora_te"},
        encoders=trainable_encoders,
    )

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D], "mask": [B, T]}."""
        text, mask, *_ = parts.pipeline.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            device=parts.device,
            max_sequence_length=self.tokens,
            complex_human_instruction=None,
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
            noisy,
            encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition["mask"],
            timestep=t * 1000 * parts.denoiser.config.timestep_scale,
        )
        return cast(Tensor, output.sample)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings and masks in place of texts, and the size as asked, not a trained one."""
        arguments: dict[str, Any] = {
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "max_sequence_length": self.tokens,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
            "negative_prompt": None,
        }
        for lead, text in (("", definition.prompt), ("negative_", definition.negative_prompt)):
            encoded = self.encode_text(parts, [text])
            arguments[f"{lead}prompt_embeds"] = encoded["text"].to(parts.dtype)
            arguments[f"{lead}prompt_attention_mask"] = encoded["mask"]
        return arguments

    def tiny(self) -> Parts:
        """One block and a Gemma, random weights; its VAE shrinks pictures 2 times."""
        from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import gemma_tokenizer

        torch.manual_seed(0)
        transformer = SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=32,
        )
        vae = AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        )
        pipeline = SanaPipeline(
            transformer=transformer,
            vae=vae.eval(),
            scheduler=tiny.flow_scheduler(shift=3.0),
            text_encoder=tiny.gemma2(),
            tokenizer=gemma_tokenizer(),
        )
        return Parts(pipeline, self.denoiser)


VARIANTS = (Sana(),)
