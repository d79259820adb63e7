"""Stable Diffusion XL: a UNet conditioned on two CLIP encoders and on the picture's size and crop.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D1 D2
widths of the text encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from modules.adapters.key_map import lora_formats
from modules.config import ModelType, SampleConfig
from modules.families.base import Condition, Family, Objective, Parts, Settings, WordTable
from modules.families.inpainting import inpainting_hints, pictures, with_hints
from modules.families.sources import SNR_MARK, V_MARK
from modules.families.unet_names import unet_native


@dataclass
class StableDiffusionXL(Family):
    """SDXL, whether it paints freely or into a masked picture."""

    model_types: tuple[ModelType, ...]
    architecture: str
    pipeline: str = "StableDiffusionXLPipeline"

    denoiser = "unet"
    text_encoders = ("text_encoder", "text_encoder_2")
    trainable_encoders = text_encoders
    skipping_encoders = text_encoders
    words = {  # noqa: RUF012 - read only
        "text_encoder": WordTable("clip_l", -2),
        "text_encoder_2": WordTable("clip_g", -2),
    }
    lora_formats = lora_formats(
        "unet",
        unet_native(0, 1),
        kohya_encoders={"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        comfy_encoders={"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
        legacy="lora_unet",
        encoders=text_encoders,
    )
    file_notes = {  # noqa: RUF012 - read only
        "modelspec.resolution": "1024x1024",
        "ss_base_model_version": "sdxl_",
    }
    single_file = {  # noqa: RUF012 - read only
        "unet": ("model.diffusion_model.", "denoiser"),
        "vae": ("first_stage_model.", "vae"),
        "text_encoder": ("conditioner.embedders.0.transformer.", "clip"),
        "text_encoder_2": ("conditioner.embedders.1.model.", "open_clip"),
    }

    def file_extras(self, settings: Settings) -> dict[str, Tensor]:
        """Marks by which ComfyUI and others know a model of velocities, with nothing in them."""
        scheduler = settings("scheduler")
        if scheduler.get("prediction_type") != "v_prediction":
            return {}
        rescaled = scheduler.get("rescale_betas_zero_snr")
        return {mark: torch.zeros(0) for mark in (V_MARK, *([SNR_MARK] if rescaled else []))}

    def objective(self, parts: Parts) -> Objective:
        """Noise or velocity, as the model's scheduler says."""
        prediction = parts.scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"The model's scheduler predicts {prediction!r}; this engine knows epsilon and "
                f"v_prediction. Choose another model, or mend its scheduler_config.json."
            )
        return cast(Objective, prediction)

    def encode_hints(
        self, parts: Parts, pixels: Tensor, mask: Tensor, hide: bool = True
    ) -> Condition:
        """{"mask": [B, 1, H, W], "kept": [B, C, H, W]} for inpainting."""
        if self.hint == "none":
            return {}
        return inpainting_hints(parts.vae, pixels, mask, hide)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D1 + D2], "pooled": [B, D2]}; the last layer of both is left out."""
        texts = []
        for name, tokenizer_name in zip(
            self.text_encoders, ("tokenizer", "tokenizer_2"), strict=True
        ):
            encoder, tokenizer = parts.module(name), getattr(parts.pipeline, tokenizer_name)
            tokens = tokenizer(
                list(captions),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            output = encoder(tokens.to(encoder.device), output_hidden_states=True)
            texts.append(output.hidden_states[-2 - parts.text.skip(name)])
        return {"text": torch.cat(texts, -1), "pooled": output.text_embeds}

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,
    ) -> Tensor:
        """The UNet's output [B, C, H, W] at timesteps [B] in 0..999."""
        if size is None:
            height, width = (8 * edge for edge in noisy.shape[-2:])
            size = noisy.new_tensor([[height, width, 0, 0, height, width]])
            size = size.expand(len(noisy), 6)
        noisy = with_hints(noisy, condition)
        conditions = {"text_embeds": condition["pooled"], "time_ids": size.to(noisy)}
        output = parts.denoiser(noisy, t, condition["text"], added_cond_kwargs=conditions)
        return cast(Tensor, output.sample)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of texts, so that each encoder can skip layers of its own."""
        arguments: dict[str, Any] = {
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
        }
        for lead, text in (("", definition.prompt), ("negative_", definition.negative_prompt)):
            encoded = self.encode_text(parts, [text])
            arguments[f"{lead}prompt_embeds"] = encoded["text"].to(parts.dtype)
            arguments[f"{lead}pooled_prompt_embeds"] = encoded["pooled"].to(parts.dtype)
        if self.hint == "inpainting":
            picture, mask = pictures(definition)
            arguments |= {"image": picture, "mask_image": mask, "strength": 1.0}
        return arguments

    def tiny(self) -> Parts:
        """Three UNet levels with 1, 2 and 10 transformer layers, two CLIPs, random weights."""
        import diffusers

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import clip_tokenizer

        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            in_channels=9 if self.hint == "inpainting" else 4,
            block_out_channels=(16, 32, 32),
            layers_per_block=2,
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2, 10),
            projection_class_embeddings_input_dim=6 * 8 + 48,
            cross_attention_dim=32 + 48,  # converters tell the encoders apart by width
            norm_num_groups=8,
        )
        pipeline = getattr(diffusers, self.pipeline)(
            vae=tiny.kl_vae(4, layers=2, scaling_factor=0.13025),
            text_encoder=tiny.clip(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=tiny.clip(projection=True, width=48),
            tokenizer_2=clip_tokenizer(),
            unet=unet,
            scheduler=tiny.stable_diffusion_scheduler(
                "EulerDiscreteScheduler", timestep_spacing="leading"
            ),
            add_watermarker=False,
        )
        return Parts(pipeline, self.denoiser)


VARIANTS = (
    StableDiffusionXL((ModelType.STABLE_DIFFUSION_XL_10_BASE,), "stable-diffusion-xl-v1-base"),
    StableDiffusionXL(
        (ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING,),
        "stable-diffusion-xl-v1-base-inpainting",
        "StableDiffusionXLInpaintPipeline",
    ),
)
