"""PixArt alpha and Sigma: a transformer that predicts noise, conditioned on T5's tokens.

It also learned the variance of each step, which has a loss of its own.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from modules.adapters.key_map import Fused, Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig
from modules.families.base import Condition, Family, Objective, Parts, Settings, WordTable

BLOCK = "transformer_blocks.{i}"
NATIVE = Native(
    renamer(
        [
            (f"{BLOCK}.attn1.to_out.0", "blocks.{i}.attn.proj"),
            (f"{BLOCK}.attn2.to_q", "blocks.{i}.cross_attn.q_linear"),
            (f"{BLOCK}.attn2.to_out.0", "blocks.{i}.cross_attn.proj"),
            (f"{BLOCK}.ff.net.0.proj", "blocks.{i}.mlp.fc1"),
            (f"{BLOCK}.ff.net.2", "blocks.{i}.mlp.fc2"),
            (f"{BLOCK}.scale_shift_table", "blocks.{i}.scale_shift_table"),
            ("pos_embed.proj", "x_embedder.proj"),
            ("adaln_single.emb.timestep_embedder.linear_1", "t_embedder.mlp.0"),
            ("adaln_single.emb.timestep_embedder.linear_2", "t_embedder.mlp.2"),
            ("adaln_single.emb.resolution_embedder.linear_1", "csize_embedder.mlp.0"),
            ("adaln_single.emb.resolution_embedder.linear_2", "csize_embedder.mlp.2"),
            ("adaln_single.emb.aspect_ratio_embedder.linear_1", "ar_embedder.mlp.0"),
            ("adaln_single.emb.aspect_ratio_embedder.linear_2", "ar_embedder.mlp.2"),
            ("adaln_single.linear", "t_block.1"),
            ("caption_projection.linear_1", "y_embedder.y_proj.fc1"),
            ("caption_projection.linear_2", "y_embedder.y_proj.fc2"),
            ("proj_out", "final_layer.linear"),
            ("scale_shift_table", "final_layer.scale_shift_table"),
        ]
    ),
    fused=(
        Fused(tuple(f"{BLOCK}.attn1.to_{leaf}" for leaf in "qkv"), "blocks.{i}.attn.qkv"),
        Fused(
            tuple(f"{BLOCK}.attn2.to_{leaf}" for leaf in "kv"), "blocks.{i}.cross_attn.kv_linear"
        ),
    ),
)


@dataclass
class PixArt(Family):
    """PixArt alpha or Sigma."""

    model_types: tuple[ModelType, ...]
    architecture: str
    pipeline: str

    trainable_encoders = ("text_encoder",)
    words = {"text_encoder": WordTable("t5", -1)}  # noqa: RUF012 - read only
    lora_formats = lora_formats(
        "transformer",
        NATIVE,
        kohya_encoders={"text_encoder": "lora_te1"},
        comfy_encoders={"text_encoder": "t5xxl"},
        legacy="lora_transformer",
        legacy_encoders={"text_encoder": "lora_te"},
        encoders=trainable_encoders,
    )

    def file_extras(self, settings: Settings) -> dict[str, Tensor]:
        """The code of each place of a picture; by its length ComfyUI knows the model's size."""
        from diffusers.models.embeddings import get_2d_sincos_pos_embed

        own = settings(self.denoiser)
        size, width = own["sample_size"], own["num_attention_heads"] * own["attention_head_dim"]
        grid, scale = size // own["patch_size"], own.get("interpolation_scale")
        code = get_2d_sincos_pos_embed(
            width,
            grid,
            base_size=grid,
            interpolation_scale=scale or max(size // 64, 1),
            output_type="pt",
        )
        return {"pos_embed": code.float().unsqueeze(0)}

    def objective(self, parts: Parts) -> Objective:  # noqa: ARG002
        """Noise."""
        return "epsilon"

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
        size: Tensor | None = None,
    ) -> Tensor:
        """The noise [B, C, H, W] at timesteps [B] in 0..999."""
        return self.predict_with_variance(parts, noisy, t, condition, size)[0]

    def predict_with_variance(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        """Noise and variance, each [B, C, H, W]; None for weights that have no variance."""
        height, width = (8 * edge for edge in noisy.shape[-2:])
        picture: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if parts.denoiser.config.sample_size == 128:  # alpha's 1024 px weights were told the size
            resolution = noisy.new_tensor([height, width]).expand(len(noisy), 2)
            ratio = noisy.new_tensor([height / width]).expand(len(noisy), 1)
            picture = {"resolution": resolution, "aspect_ratio": ratio}
        output = parts.denoiser(
            noisy,
            encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition["mask"],
            timestep=t,
            added_cond_kwargs=picture,
        )
        channels, answer = noisy.shape[1], cast(Tensor, output.sample)
        variance = answer[:, channels:] if answer.shape[1] > channels else None
        return answer[:, :channels], variance

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings and masks in place of texts, and the size as asked, not a trained one."""
        arguments: dict[str, Any] = {
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "max_sequence_length": self.tokens,
            "use_resolution_binning": False,
            "clean_caption": False,
            "negative_prompt": None,
        }
        for lead, text in (("", definition.prompt), ("negative_", definition.negative_prompt)):
            encoded = self.encode_text(parts, [text])
            arguments[f"{lead}prompt_embeds"] = encoded["text"].to(parts.dtype)
            arguments[f"{lead}prompt_attention_mask"] = encoded["mask"]
        return arguments

    def tiny(self) -> Parts:
        """Two blocks and a T5, random weights."""
        import diffusers

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import t5_tokenizer

        torch.manual_seed(0)
        transformer = diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=32,
            out_channels=8,
            use_additional_conditions=False,
        )
        pipeline = getattr(diffusers, self.pipeline)(
            transformer=transformer.eval(),
            vae=tiny.kl_vae(4),
            scheduler=diffusers.DPMSolverMultistepScheduler(),
            text_encoder=tiny.t5(),
            tokenizer=t5_tokenizer(),
        )
        return Parts(pipeline, self.denoiser)


VARIANTS = (
    PixArt((ModelType.PIXART_ALPHA,), "pixart-alpha", "PixArtAlphaPipeline"),
    PixArt((ModelType.PIXART_SIGMA,), "pixart-sigma", "PixArtSigmaPipeline"),
)
