"""ERNIE-Image: one stream of text and picture tokens, conditioned on a Mistral 3 language model.

Shapes: B batch, C latent channels (patches of the VAE's), H W latent height and width, h w pixels,
T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modules.adapters.key_map import Native, lora_formats
from modules.config import ModelType, SampleConfig
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts, TextOptions
from modules.families.z_image import padded, unpadded

TOKENS = 512
EPSILON = 1e-5
"""Of the VAE's batch norm as the model was trained; the settings in its repository name another."""


class Ernie(Family):
    """ERNIE-Image, without the language model that rewrites prompts."""

    model_types = (ModelType.ERNIE,)
    architecture = "Ernie"
    pipeline = "ErnieImagePipeline"
    lora_formats = lora_formats("transformer", Native(str), legacy="")

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> normalised patches [B, C, H, W], 16 times smaller."""
        return space.encode_patched(parts.vae, pixels, EPSILON)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w] in [-1, 1]."""
        return space.decode_patched(parts.vae, latents, EPSILON)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D], "mask": [B, T]}, T the run's caption length."""
        length = parts.text.tokens("text_encoder", TOKENS)
        texts = parts.pipeline.encode_prompt(list(captions), parts.device)
        return padded([text[:length] for text in texts], length)

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The velocity [B, C, H, W] at sigmas [B]."""
        texts = unpadded(condition)
        output = parts.denoiser(
            hidden_states=noisy,
            timestep=t * 1000,
            text_bth=pad_sequence(texts, batch_first=True),
            text_lens=torch.tensor([len(text) for text in texts], device=noisy.device),
        )
        return cast(Tensor, output.sample)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of texts, a list of one for each."""
        arguments: dict[str, Any] = {
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "use_pe": False,
        }
        for lead, text in (("", definition.prompt), ("negative_", definition.negative_prompt)):
            texts = unpadded(self.encode_text(parts, [text]))
            arguments[f"{lead}prompt_embeds"] = [each.to(parts.dtype) for each in texts]
        return arguments

    def tiny(self) -> Parts:
        """Two blocks and a Mistral 3, random weights."""
        from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import llama_tokenizer

        torch.manual_seed(0)
        transformer = ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=64,
            in_channels=128,
            out_channels=128,
            patch_size=1,
            text_in_dim=16,
            rope_axes_dim=(4, 6, 6),
        )
        pipeline = ErnieImagePipeline(
            transformer=transformer,
            vae=tiny.flux2_vae(),
            scheduler=tiny.flow_scheduler(shift=3.0),
            text_encoder=tiny.mistral3(causal=False),
            tokenizer=llama_tokenizer(),
        )
        return Parts(pipeline, self.denoiser, TextOptions(length={"text_encoder": 64}))


VARIANTS = (Ernie(),)
