"""Qwen-Image: a two-stream flow transformer conditioned on a vision-language model's last layer.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.adapters.key_map import Native, lora_formats, renamer
from modules.config import ModelFormat, ModelType, SampleConfig
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts, TextOptions

TOKENS = 512
_LOADED = ("model.language_model.", "model.visual.")
"""What the paths begin with of the text encoder's layers once transformers has loaded it."""

_FORMATS = lora_formats(
    "transformer",
    None,
    kohya_encoders={"text_encoder": "lora_te"},
    comfy_encoders={"text_encoder": "qwen25_7b"},
    legacy="",
    encoders=("text_encoder",),
)
_COMFY = replace(
    _FORMATS[ModelFormat.COMFY_LORA],
    native=Native(renamer([("model.language_model", "model"), ("model.visual", "visual")])),
    native_parts=frozenset({"text_encoder"}),
)
"""ComfyUI calls the text encoder's layers as the model's files do, not as transformers does."""


class QwenImage(Family):
    """Qwen-Image."""

    model_types = (ModelType.QWEN,)
    architecture = "Qwen-Image"
    pipeline = "QwenImagePipeline"
    trainable_encoders = ("text_encoder",)
    idle = {"text_encoder": ("model.visual.", "lm_head")}  # noqa: RUF012 - read only
    lora_formats = {**_FORMATS, ModelFormat.COMFY_LORA: _COMFY}  # noqa: RUF012 - read only

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> normalised latents [B, C, H, W]: a single frame."""
        return space.encode_normalised(parts.vae, pixels)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w] in [-1, 1]."""
        return space.decode_normalised(parts.vae, latents)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D], "mask": [B, T]}, T the run's caption length."""
        length = parts.text.tokens("text_encoder", TOKENS)
        text, mask = parts.pipeline.encode_prompt(
            list(captions), device=parts.device, max_sequence_length=length
        )
        if mask is None:
            mask = text.new_ones(text.shape[:2], dtype=torch.long)
        missing = length - text.shape[1]
        return {"text": F.pad(text, (0, 0, 0, missing)), "mask": F.pad(mask, (0, missing))}

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
        lengths = condition["mask"].int().sum(1).tolist()  # no sum beyond 256 is exact in bfloat16
        longest = max(lengths)
        mask = condition["mask"][:, :longest]
        tokens = parts.denoiser(
            hidden_states=space.to_patches(noisy),
            timestep=t,
            guidance=None,
            encoder_hidden_states=condition["text"][:, :longest],
            encoder_hidden_states_mask=None if min(lengths) == longest else mask.long(),
            img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
        ).sample
        return space.from_patches(tokens, height, width)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings and masks in place of texts, without their padding."""
        arguments: dict[str, Any] = {
            "height": definition.height,
            "width": definition.width,
            "true_cfg_scale": definition.cfg_scale,
            "max_sequence_length": parts.text.tokens("text_encoder", TOKENS),
        }
        for lead, text in (("", definition.prompt), ("negative_", definition.negative_prompt)):
            encoded = self.encode_text(parts, [text])
            length = int(encoded["mask"].sum())
            arguments[f"{lead}prompt_embeds"] = encoded["text"][:, :length].to(parts.dtype)
            arguments[f"{lead}prompt_embeds_mask"] = encoded["mask"][:, :length]
        return arguments

    def spatial(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Tokens [B, L, 4C] of a picture [h, w] -> latents [B, C, H, W]."""
        return space.from_patches(latents, height // 8, width // 8)

    def adapter_name(self, part: str, path: str) -> str:
        """The path that transformers gives a layer, also where it is spelled as in model files."""
        if part != "text_encoder":
            return path
        if path.startswith("visual."):
            return f"model.{path}"
        if path.startswith("model.") and not path.startswith(_LOADED):
            return path.replace("model.", "model.language_model.", 1)
        return path

    def tiny(self) -> Parts:
        """Two blocks and a Qwen 2.5 VL, random weights."""
        from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import qwen_tokenizer

        torch.manual_seed(0)
        transformer = QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        )
        pipeline = QwenImagePipeline(
            transformer=transformer,
            vae=tiny.qwen_image_vae(),
            scheduler=tiny.flow_scheduler(use_dynamic_shifting=True),
            text_encoder=_qwen2_5_vl(),
            tokenizer=qwen_tokenizer(),
        )
        return Parts(pipeline, self.denoiser, TextOptions(length={"text_encoder": 64}))


def _qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from modules.families.tiny_networks import VOCABULARY

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1e6,
            "vocab_size": VOCABULARY,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
        vision_end_token_id=VOCABULARY - 1,
        vision_start_token_id=VOCABULARY - 2,
        vision_token_id=VOCABULARY - 3,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


VARIANTS = (QwenImage(),)
