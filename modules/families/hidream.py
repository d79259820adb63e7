"""HiDream-I1: a flow transformer with routed experts, conditioned on two CLIPs, T5 and Llama.

Its output is negated. Every layer of Llama conditions blocks of its own.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, N layers of Llama,
T text tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.adapters.key_map import Native, lora_formats
from modules.config import ModelType, SampleConfig
from modules.families.base import Condition, Family, Parts, WordTable


class HiDream(Family):
    """HiDream-I1 Full."""

    model_types = (ModelType.HI_DREAM_FULL,)
    architecture = "hidream-i1"
    pipeline = "HiDreamImagePipeline"
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
    trainable_encoders = text_encoders
    words = {  # noqa: RUF012 - read only
        "text_encoder": WordTable("clip_l"),
        "text_encoder_2": WordTable("clip_g"),
        "text_encoder_3": WordTable("t5", -1),
        "text_encoder_4": WordTable("llama"),
    }
    lora_formats = lora_formats(
        "transformer",
        Native(str),
        kohya_encoders={name: f"lora_te{index + 1}" for index, name in enumerate(text_encoders)},
        comfy_encoders=dict(
            zip(text_encoders, ("clip_l", "clip_g", "t5xxl", "llama"), strict=True)
        ),
        encoders=text_encoders,
    )

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"t5": [B, T, D], "llama": [B, N, T, D], "pooled": [B, D]}."""
        texts = [list(captions)] * 4
        t5, _, llama, _, pooled, _ = parts.pipeline.encode_prompt(
            *texts,
            device=parts.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.tokens,
        )
        return {"t5": t5, "llama": llama.transpose(0, 1), "pooled": pooled}

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
            timesteps=t * 1000,
            encoder_hidden_states_t5=condition["t5"],
            encoder_hidden_states_llama3=condition["llama"].transpose(0, 1),
            pooled_embeds=condition["pooled"],
        )
        velocity = cast(Tensor, -output.sample)
        if velocity.shape == noisy.shape:
            return velocity
        # In training mode the library leaves the patches apart: [B, C, L, 4], padded.
        rows, columns = (edge // 2 for edge in noisy.shape[-2:])
        patches = velocity[:, :, : rows * columns].transpose(2, 3).flatten(1, 2)
        return F.pixel_shuffle(patches.reshape(len(noisy), -1, rows, columns), 2)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """The texts; and the pipeline told that this size is its own, as it scales all others."""
        area = definition.width * definition.height
        parts.pipeline.default_sample_size = math.sqrt(area) * (1 + 1e-6) / 8  # it rounds down
        return super().sample_arguments(parts, definition)

    def tiny(self) -> Parts:
        """One double and one single block of four experts, two CLIPs, T5, Llama, random weights."""
        from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
        from transformers import LlamaConfig, LlamaForCausalLM

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import clip_tokenizer, llama_tokenizer, t5_tokenizer

        torch.manual_seed(0)
        transformer = HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[32, 16],
            text_emb_dim=64,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        )
        llama = LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=4,
            num_hidden_layers=2,
            vocab_size=tiny.VOCABULARY,
            max_position_embeddings=512,
        )
        pipeline = HiDreamImagePipeline(
            transformer=transformer,
            vae=tiny.flux_vae(),
            scheduler=tiny.flow_scheduler(),
            text_encoder=tiny.clip(projection=True, max_length=248),
            tokenizer=clip_tokenizer(248),
            text_encoder_2=tiny.clip(projection=True, max_length=248),
            tokenizer_2=clip_tokenizer(248),
            text_encoder_3=tiny.t5(),
            tokenizer_3=t5_tokenizer(),
            text_encoder_4=LlamaForCausalLM(llama).eval(),
            tokenizer_4=llama_tokenizer(),
        )
        return Parts(pipeline, self.denoiser)


VARIANTS = (HiDream(),)
