"""Anima: a Cosmos transformer, told by a small network that T5's words ask about a Qwen 3's states.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.adapters.key_map import KeyMap, Native, lora_formats, renamer
from modules.config import ModelFormat, ModelType, SampleConfig, TrainConfig
from modules.config.paths import resolve
from modules.families import latents as space
from modules.families.base import Condition, Family, Parts, TextOptions
from modules.families.sources import cannot_load, check_found
from modules.tensor_files import open_tensors

TOKENS = 512
PATCHES = "transformer_blocks.{i}"
NATIVE = Native(
    renamer(
        [
            (f"{PATCHES}.norm1.linear_1", "blocks.{i}.adaln_modulation_self_attn.1"),
            (f"{PATCHES}.norm1.linear_2", "blocks.{i}.adaln_modulation_self_attn.2"),
            (f"{PATCHES}.norm2.linear_1", "blocks.{i}.adaln_modulation_cross_attn.1"),
            (f"{PATCHES}.norm2.linear_2", "blocks.{i}.adaln_modulation_cross_attn.2"),
            (f"{PATCHES}.norm3.linear_1", "blocks.{i}.adaln_modulation_mlp.1"),
            (f"{PATCHES}.norm3.linear_2", "blocks.{i}.adaln_modulation_mlp.2"),
            (f"{PATCHES}.ff.net.0.proj", "blocks.{i}.mlp.layer1"),
            (f"{PATCHES}.ff.net.2", "blocks.{i}.mlp.layer2"),
            (f"{PATCHES}.attn1", "blocks.{i}.self_attn"),
            (f"{PATCHES}.attn2", "blocks.{i}.cross_attn"),
            ("patch_embed.proj", "x_embedder.proj.1"),
            ("time_embed.t_embedder", "t_embedder.1"),
            ("time_embed.norm", "t_embedding_norm"),
            ("norm_out.linear_1", "final_layer.adaln_modulation.1"),
            ("norm_out.linear_2", "final_layer.adaln_modulation.2"),
            ("proj_out", "final_layer.linear"),
            ("*.to_q", "q_proj"),
            ("*.to_k", "k_proj"),
            ("*.to_v", "v_proj"),
            ("*.to_out.0", "output_proj"),
            ("*.norm_q", "q_norm"),
            ("*.norm_k", "k_norm"),
        ]
    )
)
CONDITIONER = "llm_adapter."
"""What stands in a file of the original layout before the keys of the network between the text
encoder and the transformer."""


def _formats() -> Mapping[ModelFormat, KeyMap]:
    """The original code wraps the transformer as `net`; kohya's tools and ComfyUI unwrap it."""
    formats = lora_formats("transformer", NATIVE)
    original = formats[ModelFormat.ORIGINAL_LORA]
    return {
        **formats,
        ModelFormat.ORIGINAL_LORA: replace(original, prefixes={"transformer": "net."}),
    }


class Anima(Family):
    """Anima."""

    model_types = (ModelType.ANIMA,)
    architecture = "Anima"
    pipeline = "AnimaModularPipeline"
    lora_formats = _formats()
    conditioners = {"text_conditioner": f"net.{CONDITIONER}"}  # noqa: RUF012 - the protocol's

    def pipeline_class(self) -> Any:
        """A pipeline of the usual kind, made of diffusers' blocks."""
        super().pipeline_class()  # says what is missing where diffusers is too old
        from modules.families.anima_pipeline import AnimaPipeline

        return AnimaPipeline

    def load(self, config: TrainConfig) -> Parts:
        """Load the networks; a transformer's own file often holds the conditioner too."""
        parts = super().load(config)
        file = Path(resolve(config.transformer.model_name))
        if file.suffix == ".safetensors" and file.is_file():
            try:
                _take_conditioner(file, parts.module("text_conditioner"))
            except (OSError, RuntimeError) as failure:
                wanted = f"{self.pipeline}'s text_conditioner"
                raise cannot_load("transformer.model_name", str(file), wanted, failure) from failure
        return parts

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> normalised latents [B, C, H, W]: a single frame."""
        return space.encode_normalised(parts.vae, pixels)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w] in [-1, 1]."""
        return space.decode_normalised(parts.vae, latents)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D]}, zeros behind the caption's last word, which the model sees."""
        length = parts.text.tokens("text_encoder", TOKENS)
        text = parts.pipeline.encode_prompt(list(captions), max_sequence_length=length)
        conditioner: Any = parts.module("text_conditioner")
        longest = max(length, conditioner.config.min_sequence_length)
        return {"text": F.pad(text, (0, 0, 0, longest - text.shape[1]))}

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The velocity [B, C, H, W] at sigmas [B]."""
        height, width = (edge * parts.pipeline.vae_scale_factor for edge in noisy.shape[-2:])
        velocity: Tensor = parts.denoiser(
            hidden_states=noisy.unsqueeze(2),
            timestep=t,
            encoder_hidden_states=condition["text"],
            padding_mask=noisy.new_zeros(1, 1, height, width),
        ).sample
        return velocity.squeeze(2)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """The texts, size and guidance."""
        return {
            "prompt": definition.prompt,
            "negative_prompt": definition.negative_prompt,
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "max_sequence_length": parts.text.tokens("text_encoder", TOKENS),
        }

    def spatial(self, latents: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG002
        """Films of one frame [B, C, 1, H, W] -> latents [B, C, H, W]."""
        return latents.squeeze(2)

    def tiny(self) -> Parts:
        """Two blocks, a conditioner of one and a Qwen 3, random weights."""
        from diffusers import AnimaTextConditioner, CosmosTransformer3DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import qwen_tokenizer, t5_tokenizer

        torch.manual_seed(0)
        transformer = CosmosTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            mlp_ratio=2,
            text_embed_dim=16,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            patch_size=(1, 2, 2),
            rope_scale=(1.0, 4.0, 4.0),
            concat_padding_mask=True,
            extra_pos_embed_type=None,
        )
        conditioner = AnimaTextConditioner(
            source_dim=16,
            target_dim=16,
            model_dim=16,
            num_layers=1,
            num_attention_heads=2,
            target_vocab_size=tiny.VOCABULARY,
            min_sequence_length=64,
        ).eval()
        pipeline = self.pipeline_class()(
            transformer=transformer,
            text_conditioner=conditioner,
            vae=tiny.qwen_image_vae(),
            text_encoder=tiny.qwen3().model,
            tokenizer=qwen_tokenizer(),
            t5_tokenizer=t5_tokenizer(),
            scheduler=tiny.flow_scheduler(shift=3.0),
        )
        return Parts(pipeline, self.denoiser, TextOptions(length={"text_encoder": 64}))


def _take_conditioner(file: Path, network: Any) -> None:
    """Copy a conditioner out of a file of the original layout, if it holds one.

    Raises:
        OSError: if it lacks some of its weights.
        RuntimeError: if they are of other sizes.
    """
    with open_tensors(file) as opened:
        found = {key.partition(CONDITIONER)[2]: key for key in opened.shapes if CONDITIONER in key}
        if found:
            check_found(str(file), "", network.state_dict().keys() - found.keys())
            weights = {name: opened.read(key) for name, key in found.items()}
            network.load_state_dict(weights)


VARIANTS = (Anima(),)
