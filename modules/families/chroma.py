"""Chroma: Flux's transformer without CLIP and guidance, and with the padding of its text masked.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modules.adapters.key_map import Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig, TrainConfig
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts, TextOptions, WordTable
from modules.families.flux import FUSED, RULES, SCALES, patch_positions

TOKENS = 512
APPROXIMATOR = [
    (
        "distilled_guidance_layer.layers.{i}.linear_1",
        "distilled_guidance_layer.layers.{i}.in_layer",
    ),
    (
        "distilled_guidance_layer.layers.{i}.linear_2",
        "distilled_guidance_layer.layers.{i}.out_layer",
    ),
]


class Chroma(Family):
    """Chroma 1."""

    model_types = (ModelType.CHROMA_1,)
    architecture = "Chroma1"
    pipeline = "ChromaPipeline"
    trainable_encoders = ("text_encoder",)
    words = {"text_encoder": WordTable("t5", -1)}  # noqa: RUF012 - read only
    lora_formats = lora_formats(
        "transformer",
        Native(
            renamer([*RULES, *APPROXIMATOR]),
            FUSED,
            scales=(*SCALES, *(f"guidance_layer.norms.{index}" for index in range(10))),
        ),
        kohya_encoders={"text_encoder": "lora_te1"},
        comfy_encoders={"text_encoder": "t5xxl"},
        legacy="lora_transformer",
        legacy_encoders={"text_encoder": "lora_te"},
        encoders=trainable_encoders,
    )

    def load(self, config: TrainConfig) -> Parts:
        """The networks that `config` names, under a pipeline whose mask works."""
        parts = super().load(config)
        _mend_mask(parts.pipeline)
        return parts

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D], "mask": [B, T]}: 1 for the words and one token of padding."""
        text, _, mask, *_ = parts.pipeline.encode_prompt(
            list(captions),
            device=parts.device,
            do_classifier_free_guidance=False,
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
        text, mask = condition["text"], condition["mask"].bool()
        patches = space.to_patches(noisy)
        tokens = parts.denoiser(
            hidden_states=patches,
            timestep=t,
            encoder_hidden_states=text,
            txt_ids=noisy.new_zeros(text.shape[1], 3),
            img_ids=patch_positions(height // 2, width // 2).to(noisy),
            attention_mask=torch.cat([mask, mask.new_ones(patches.shape[:2])], 1),
        ).sample
        return space.from_patches(tokens, height, width)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings and masks in place of texts."""
        arguments: dict[str, Any] = {
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "max_sequence_length": parts.text.tokens("text_encoder", TOKENS),
        }
        for lead, text in (("", definition.prompt), ("negative_", definition.negative_prompt)):
            encoded = self.encode_text(parts, [text])
            arguments[f"{lead}prompt_embeds"] = encoded["text"].to(parts.dtype)
            arguments[f"{lead}prompt_attention_mask"] = encoded["mask"].bool()
        return arguments

    def spatial(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Tokens [B, L, 4C] of a picture [h, w] -> latents [B, C, H, W]."""
        return space.from_patches(latents, height // 8, width // 8)

    def tiny(self) -> Parts:
        """One double and one single block and a T5, random weights."""
        from diffusers import ChromaPipeline, ChromaTransformer2DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import t5_tokenizer

        torch.manual_seed(0)
        transformer = ChromaTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        )
        pipeline = ChromaPipeline(
            transformer=transformer,
            vae=tiny.flux_vae(),
            scheduler=tiny.flow_scheduler(),
            text_encoder=tiny.t5(),
            tokenizer=t5_tokenizer(),
        )
        _mend_mask(pipeline)
        return Parts(pipeline, self.denoiser, TextOptions(length={"text_encoder": 24}))


def _mend_mask(pipeline: Any) -> None:
    """Make the mask boolean: as numbers, attention would add it instead of masking.

    diffusers 0.42 and before build it in the type of the text encoder.
    """
    prepare = pipeline._prepare_attention_mask

    def boolean(*args: Any, **kwargs: Any) -> Tensor | None:
        mask = prepare(*args, **kwargs)
        return None if mask is None else mask.bool()

    pipeline._prepare_attention_mask = boolean


VARIANTS = (Chroma(),)
