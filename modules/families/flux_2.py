"""Flux.2 (dev) and its small sisters (Klein): a flow transformer conditioned on a language model.

Three inner layers of the language model, side by side, are the text. dev was distilled to a
guidance that it is told, Klein is guided by a negative prompt.

Shapes: B batch, C latent channels (patches of the VAE's), H W latent height and width, h w pixels,
T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.adapters.key_map import Fused, Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig, TrainConfig
from modules.config.paths import resolve
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts, TextOptions
from modules.families.flux import SCALES

TOKENS = 512
BLOCK, SINGLE = "transformer_blocks.{i}", "single_transformer_blocks.{i}"
NATIVE = Native(
    renamer(
        [
            (f"{BLOCK}.attn.norm_q", "double_blocks.{i}.img_attn.norm.query_norm"),
            (f"{BLOCK}.attn.norm_k", "double_blocks.{i}.img_attn.norm.key_norm"),
            (f"{BLOCK}.attn.norm_added_q", "double_blocks.{i}.txt_attn.norm.query_norm"),
            (f"{BLOCK}.attn.norm_added_k", "double_blocks.{i}.txt_attn.norm.key_norm"),
            (f"{BLOCK}.attn.to_out.0", "double_blocks.{i}.img_attn.proj"),
            (f"{BLOCK}.attn.to_add_out", "double_blocks.{i}.txt_attn.proj"),
            (f"{BLOCK}.ff.linear_in", "double_blocks.{i}.img_mlp.0"),
            (f"{BLOCK}.ff.linear_out", "double_blocks.{i}.img_mlp.2"),
            (f"{BLOCK}.ff_context.linear_in", "double_blocks.{i}.txt_mlp.0"),
            (f"{BLOCK}.ff_context.linear_out", "double_blocks.{i}.txt_mlp.2"),
            (f"{SINGLE}.attn.to_qkv_mlp_proj", "single_blocks.{i}.linear1"),
            (f"{SINGLE}.attn.to_out", "single_blocks.{i}.linear2"),
            (f"{SINGLE}.attn.norm_q", "single_blocks.{i}.norm.query_norm"),
            (f"{SINGLE}.attn.norm_k", "single_blocks.{i}.norm.key_norm"),
            ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
            ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
            ("single_stream_modulation.linear", "single_stream_modulation.lin"),
            ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
            ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
            ("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
            ("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
            ("x_embedder", "img_in"),
            ("context_embedder", "txt_in"),
            ("norm_out.linear", "final_layer.adaLN_modulation.1"),
            ("proj_out", "final_layer.linear"),
        ]
    ),
    fused=(
        Fused(tuple(f"{BLOCK}.attn.to_{leaf}" for leaf in "qkv"), "double_blocks.{i}.img_attn.qkv"),
        Fused(
            tuple(f"{BLOCK}.attn.add_{leaf}_proj" for leaf in "qkv"),
            "double_blocks.{i}.txt_attn.qkv",
        ),
    ),
    swapped=("norm_out.linear",),
    scales=SCALES,
)


@dataclass
class Flux2(Family):
    """Flux.2. One model type names dev and Klein: the model at hand says which it is."""

    pipeline: str = "Flux2Pipeline"

    model_types = (ModelType.FLUX_2,)
    architecture = "Flux.2"
    lora_formats = lora_formats("transformer", NATIVE, legacy="")

    def load(self, config: TrainConfig) -> Parts:
        """The networks that `config` names, under the pipeline that its folder or hub id names."""
        from diffusers import DiffusionPipeline

        from modules.families.loading import load_parts

        source = resolve(config.base_model_name)
        if not Path(source).is_file():
            try:
                index = DiffusionPipeline.load_config(
                    source,
                    cache_dir=config.huggingface_cache_dir or None,
                    local_files_only=config.offline_mode,
                )
            except OSError:
                return load_parts(self, config)  # it says what is wrong with the source
            if index.get("_class_name") == KLEIN.pipeline:
                return load_parts(KLEIN, config)
        return load_parts(self, config)

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> normalised patches [B, C, H, W], 16 times smaller."""
        return space.encode_patched(parts.vae, pixels)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w] in [-1, 1]."""
        return space.decode_patched(parts.vae, latents)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, 3D]}; no mask, as the model attends to padding."""
        text, _ = parts.pipeline.encode_prompt(
            list(captions),
            device=parts.device,
            max_sequence_length=parts.text.tokens("text_encoder", TOKENS),
        )
        return {"text": text}

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The velocity [B, C, H, W] at sigmas [B]."""
        pipeline, text = parts.pipeline, condition["text"]
        guided = parts.denoiser.config.guidance_embeds
        tokens = parts.denoiser(
            hidden_states=space.to_tokens(noisy),
            timestep=t,
            guidance=noisy.new_full((len(noisy),), parts.guidance) if guided else None,
            encoder_hidden_states=text,
            txt_ids=pipeline._prepare_text_ids(text).to(noisy.device),
            img_ids=pipeline._prepare_latent_ids(noisy).to(noisy.device),
        ).sample
        return space.from_tokens(tokens, *noisy.shape[-2:])

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of texts; Klein also takes a negative one."""
        arguments: dict[str, Any] = {
            "prompt_embeds": self.encode_text(parts, [definition.prompt])["text"].to(parts.dtype),
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "max_sequence_length": parts.text.tokens("text_encoder", TOKENS),
        }
        if type(parts.pipeline).__name__ == KLEIN.pipeline:
            negative = self.encode_text(parts, [definition.negative_prompt])["text"]
            arguments["negative_prompt_embeds"] = negative.to(parts.dtype)
        return arguments

    def spatial(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Tokens [B, L, C] of a picture [h, w] -> latents [B, C, H, W]."""
        return (
            space.from_tokens(latents, height // 16, width // 16) if latents.ndim == 3 else latents
        )

    def tiny(self) -> Parts:
        """One double and one single block and a language model of enough layers, random weights."""
        import diffusers

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import llama_tokenizer, qwen_tokenizer

        torch.manual_seed(0)
        klein = self.pipeline == KLEIN.pipeline
        transformer = diffusers.Flux2Transformer2DModel(
            in_channels=128,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=not klein,
        )
        own: dict[str, Any] = (
            {
                "text_encoder": tiny.qwen3(layers=28),
                "tokenizer": qwen_tokenizer(),
                "is_distilled": False,
            }
            if klein
            else {"text_encoder": tiny.mistral3(layers=31), "tokenizer": llama_tokenizer()}
        )
        pipeline = getattr(diffusers, self.pipeline)(
            transformer=transformer,
            vae=tiny.flux2_vae(),
            scheduler=tiny.flow_scheduler(),
            **own,
        )
        return Parts(pipeline, self.denoiser, TextOptions(length={"text_encoder": 32}))


KLEIN = Flux2("Flux2KleinPipeline")
VARIANTS = (Flux2(), KLEIN)
