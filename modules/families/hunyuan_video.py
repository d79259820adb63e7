"""HunyuanVideo: a flow transformer of films, of which a picture is the shortest.

Shapes: B batch, C latent channels, F latent frames, H W latent height and width, f frames, h w
pixels, T text tokens, D width. Pictures have neither F nor f.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from modules.adapters.key_map import Fused, Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts, WordTable

DOUBLE, SINGLE = "transformer_blocks.{i}", "single_transformer_blocks.{i}"
REFINER = "context_embedder.token_refiner.refiner_blocks.{i}"
NATIVE_REFINER = "txt_in.individual_token_refiner.blocks.{i}"
TIME = "time_text_embed"
NATIVE = Native(
    renamer(
        [
            (f"{DOUBLE}.attn.norm_q", "double_blocks.{i}.img_attn_q_norm"),
            (f"{DOUBLE}.attn.norm_k", "double_blocks.{i}.img_attn_k_norm"),
            (f"{DOUBLE}.attn.norm_added_q", "double_blocks.{i}.txt_attn_q_norm"),
            (f"{DOUBLE}.attn.norm_added_k", "double_blocks.{i}.txt_attn_k_norm"),
            (f"{DOUBLE}.attn.to_out.0", "double_blocks.{i}.img_attn_proj"),
            (f"{DOUBLE}.attn.to_add_out", "double_blocks.{i}.txt_attn_proj"),
            (f"{DOUBLE}.norm1.linear", "double_blocks.{i}.img_mod.linear"),
            (f"{DOUBLE}.norm1_context.linear", "double_blocks.{i}.txt_mod.linear"),
            (f"{DOUBLE}.ff.net.0.proj", "double_blocks.{i}.img_mlp.fc1"),
            (f"{DOUBLE}.ff.net.2", "double_blocks.{i}.img_mlp.fc2"),
            (f"{DOUBLE}.ff_context.net.0.proj", "double_blocks.{i}.txt_mlp.fc1"),
            (f"{DOUBLE}.ff_context.net.2", "double_blocks.{i}.txt_mlp.fc2"),
            (f"{SINGLE}.attn.norm_q", "single_blocks.{i}.q_norm"),
            (f"{SINGLE}.attn.norm_k", "single_blocks.{i}.k_norm"),
            (f"{SINGLE}.norm.linear", "single_blocks.{i}.modulation.linear"),
            (f"{SINGLE}.proj_out", "single_blocks.{i}.linear2"),
            (f"{REFINER}.attn.to_out.0", f"{NATIVE_REFINER}.self_attn_proj"),
            (f"{REFINER}.norm_out.linear", f"{NATIVE_REFINER}.adaLN_modulation.1"),
            (f"{REFINER}.norm1", f"{NATIVE_REFINER}.norm1"),
            (f"{REFINER}.norm2", f"{NATIVE_REFINER}.norm2"),
            (f"{REFINER}.ff.net.0.proj", f"{NATIVE_REFINER}.mlp.fc1"),
            (f"{REFINER}.ff.net.2", f"{NATIVE_REFINER}.mlp.fc2"),
            ("context_embedder.proj_in", "txt_in.input_embedder"),
            (f"context_embedder.{TIME}.timestep_embedder.linear_1", "txt_in.t_embedder.mlp.0"),
            (f"context_embedder.{TIME}.timestep_embedder.linear_2", "txt_in.t_embedder.mlp.2"),
            (f"context_embedder.{TIME}.text_embedder", "txt_in.c_embedder"),
            (f"{TIME}.timestep_embedder.linear_1", "time_in.mlp.0"),
            (f"{TIME}.timestep_embedder.linear_2", "time_in.mlp.2"),
            (f"{TIME}.guidance_embedder.linear_1", "guidance_in.mlp.0"),
            (f"{TIME}.guidance_embedder.linear_2", "guidance_in.mlp.2"),
            (f"{TIME}.text_embedder.linear_1", "vector_in.in_layer"),
            (f"{TIME}.text_embedder.linear_2", "vector_in.out_layer"),
            ("x_embedder", "img_in"),
            ("norm_out.linear", "final_layer.adaLN_modulation.1"),
            ("proj_out", "final_layer.linear"),
        ]
    ),
    fused=(
        Fused(
            tuple(f"{DOUBLE}.attn.to_{leaf}" for leaf in "qkv"), "double_blocks.{i}.img_attn_qkv"
        ),
        Fused(
            tuple(f"{DOUBLE}.attn.add_{leaf}_proj" for leaf in "qkv"),
            "double_blocks.{i}.txt_attn_qkv",
        ),
        Fused(
            tuple(f"{REFINER}.attn.to_{leaf}" for leaf in "qkv"), f"{NATIVE_REFINER}.self_attn_qkv"
        ),
        Fused(
            (*(f"{SINGLE}.attn.to_{leaf}" for leaf in "qkv"), f"{SINGLE}.proj_mlp"),
            "single_blocks.{i}.linear1",
            widths=(1, 1, 1, 4),
        ),
    ),
    swapped=("norm_out.linear",),
)


class HunyuanVideo(Family):
    """HunyuanVideo, conditioned on Llama's tokens, CLIP's pooled vector and a guidance."""

    model_types = (ModelType.HUNYUAN_VIDEO,)
    architecture = "hunyuan-video"
    pipeline = "HunyuanVideoPipeline"
    text_encoders = ("text_encoder", "text_encoder_2")
    trainable_encoders = text_encoders
    words = {  # noqa: RUF012 - read only
        "text_encoder": WordTable("llama", -3),
        "text_encoder_2": WordTable("clip_l"),
    }
    lora_formats = lora_formats(
        "transformer",
        NATIVE,
        kohya_encoders={"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        comfy_encoders={"text_encoder": "llama", "text_encoder_2": "clip_l"},
        legacy="lora_transformer",
        encoders=text_encoders,
    )

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, f, h, w] in [-1, 1] -> scaled latents [B, C, F, H, W]."""
        return space.as_films(lambda film: space.encode_scaled(parts.vae, film), pixels)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, F, H, W] -> pixels [B, 3, f, h, w] in [-1, 1]."""
        return space.as_films(lambda film: space.decode_scaled(parts.vae, film), latents)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D], "mask": [B, T], "pooled": [B, D]}."""
        text, pooled, mask = parts.pipeline.encode_prompt(
            list(captions), device=parts.device, max_sequence_length=self.tokens
        )
        return {"text": text, "mask": mask, "pooled": pooled}

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The velocity [B, C, F, H, W] at sigmas [B]."""
        guided = parts.denoiser.config.guidance_embeds

        def ask(film: Tensor) -> Tensor:
            output = parts.denoiser(
                hidden_states=film,
                timestep=t * 1000,
                encoder_hidden_states=condition["text"],
                encoder_attention_mask=condition["mask"],
                pooled_projections=condition["pooled"],
                guidance=film.new_full((len(film),), 1000 * parts.guidance) if guided else None,
            )
            return cast(Tensor, output.sample)

        return space.as_films(ask, noisy)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """The prompt and the frames; with distilled guidance nothing is negated."""
        arguments = super().sample_arguments(parts, definition)
        del arguments["negative_prompt"]
        return {**arguments, "num_frames": definition.frames}

    def tiny(self) -> Parts:
        """One double and one single block, a Llama and a CLIP, random weights."""
        from diffusers import (
            AutoencoderKLHunyuanVideo,
            HunyuanVideoPipeline,
            HunyuanVideoTransformer3DModel,
        )
        from transformers import LlamaConfig, LlamaModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import clip_tokenizer, llama_tokenizer

        torch.manual_seed(0)
        transformer = HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=32,
            rope_axes_dim=(2, 4, 4),
        )
        vae = AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.476986,
        )
        llama = LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=4,
            num_hidden_layers=4,
            vocab_size=tiny.VOCABULARY,
            max_position_embeddings=512,
        )
        pipeline = HunyuanVideoPipeline(
            transformer=transformer,
            vae=vae.eval(),
            scheduler=tiny.flow_scheduler(shift=7.0),
            text_encoder=LlamaModel(llama).eval(),
            tokenizer=llama_tokenizer(),
            text_encoder_2=tiny.clip(),
            tokenizer_2=clip_tokenizer(),
        )
        return Parts(pipeline, self.denoiser)


VARIANTS = (HunyuanVideo(),)
