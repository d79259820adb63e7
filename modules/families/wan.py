"""Wan 2: a flow transformer of films, of which a picture is the shortest.

Shapes: B batch, C latent channels, F latent frames, H W latent height and width, f frames, h w
pixels, T text tokens, D width, L tokens. Pictures have neither F nor f.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from modules.adapters.key_map import Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig, TrainConfig
from modules.config.problems import error
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts

RATE = 24
"""Frames a second of Wan 2.2 TI2V; those of the others are slower."""
NATIVE = Native(
    renamer(
        [
            ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
            ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
            ("condition_embedder.time_proj", "time_projection.1"),
            ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
            ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
            ("blocks.{i}.attn1", "blocks.{i}.self_attn"),
            ("blocks.{i}.attn2", "blocks.{i}.cross_attn"),
            ("blocks.{i}.ffn.net.0.proj", "blocks.{i}.ffn.0"),
            ("blocks.{i}.ffn.net.2", "blocks.{i}.ffn.2"),
            ("blocks.{i}.norm2", "blocks.{i}.norm3"),
            ("blocks.{i}.scale_shift_table", "blocks.{i}.modulation"),
            ("scale_shift_table", "head.modulation"),
            ("proj_out", "head.head"),
            ("*.to_q", "q"),
            ("*.to_k", "k"),
            ("*.to_v", "v"),
            ("*.to_out.0", "o"),
        ]
    )
)


class Wan(Family):
    """Wan 2.1, and Wan 2.2 with one transformer, which is told the time of each token."""

    model_types = (ModelType.WAN_2,)
    architecture = "wan-2"
    pipeline = "WanPipeline"
    lora_formats = lora_formats("transformer", NATIVE)

    def load(self, config: TrainConfig) -> Parts:
        """Load the networks that `config` names.

        Raises:
            ConfigError: if the source is missing, incomplete, of another architecture, or has a
                second transformer for the later steps, as Wan 2.2 of 14 billion weights.
        """
        parts = super().load(config)
        if parts.pipeline.transformer_2 is not None:
            raise error(
                "base_model_name",
                f"{config.base_model_name} has two transformers, of which only one would train.",
                "Choose Wan 2.1, or Wan 2.2 TI2V of 5 billion weights.",
            )
        return parts

    def film_rate(self, parts: Parts) -> int:
        """Frames a second: 24 for Wan 2.2 TI2V, 16 for the others."""
        return RATE if _times_each_token(parts) else super().film_rate(parts)

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, f, h, w] in [-1, 1] -> normalised latents [B, C, F, H, W]."""
        return space.encode_normalised(parts.vae, pixels)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, F, H, W] -> pixels [B, 3, f, h, w] in [-1, 1]."""
        return space.decode_normalised(parts.vae, latents)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D]}, zeros after the end of a caption."""
        text, _ = parts.pipeline.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            max_sequence_length=self.tokens,
            device=parts.device,
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
        """The velocity [B, C, F, H, W] at sigmas [B]."""

        def ask(film: Tensor) -> Tensor:
            time = t * 1000
            if _times_each_token(parts):  # [B, L]: a film can begin with a clean frame
                time = time[:, None].expand(-1, film[0, 0, :, ::2, ::2].numel())
            output = parts.denoiser(
                hidden_states=film, timestep=time, encoder_hidden_states=condition["text"]
            )
            return cast(Tensor, output.sample)

        return space.as_films(ask, noisy)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of texts, and the frames."""
        texts = {
            "prompt_embeds": definition.prompt,
            "negative_prompt_embeds": definition.negative_prompt,
        }
        encoded = {
            name: self.encode_text(parts, [text])["text"].to(parts.dtype)
            for name, text in texts.items()
        }
        arguments = super().sample_arguments(parts, definition)
        del arguments["prompt"], arguments["negative_prompt"]
        return {**arguments, **encoded, "num_frames": definition.frames}

    def tiny(self) -> Parts:
        """Two blocks and a UMT5, random weights."""
        from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import t5_tokenizer

        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
        )
        vae = AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        )
        pipeline = WanPipeline(
            transformer=transformer,
            vae=vae.eval(),
            scheduler=tiny.flow_scheduler(shift=3.0),
            text_encoder=tiny.umt5(),
            tokenizer=t5_tokenizer(),
        )
        return Parts(pipeline, self.denoiser)


def _times_each_token(parts: Parts) -> bool:
    """Whether a model is Wan 2.2 TI2V, to which each token's time is told."""
    return bool(parts.pipeline.config.expand_timesteps)


VARIANTS = (Wan(),)
