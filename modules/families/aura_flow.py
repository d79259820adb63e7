"""AuraFlow: a flow transformer over two streams, then one, conditioned on a T5 of Pile's tokens.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from modules.adapters.key_map import Native, lora_formats, renamer
from modules.config import ModelType
from modules.families.base import Condition, Family, Parts

JOINT, SINGLE = "joint_transformer_blocks.{i}", "single_transformer_blocks.{i}"
STREAMS = {
    "w2": ("to_q", "to_k", "to_v", "to_out.0"),
    "w1": ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
}
FEED_FORWARD = {"linear_1": "c_fc1", "linear_2": "c_fc2", "out_projection": "c_proj"}
NATIVE = Native(
    renamer(
        [
            *(
                (f"{JOINT}.attn.{leaf}", f"double_layers.{{i}}.attn.{stream}{letter}")
                for stream, leaves in STREAMS.items()
                for leaf, letter in zip(leaves, "qkvo", strict=True)
            ),
            *(
                (f"{SINGLE}.attn.{leaf}", f"single_layers.{{i}}.attn.w1{letter}")
                for leaf, letter in zip(STREAMS["w2"], "qkvo", strict=True)
            ),
            *(
                pair
                for leaf, own in FEED_FORWARD.items()
                for pair in (
                    (f"{JOINT}.ff.{leaf}", f"double_layers.{{i}}.mlpX.{own}"),
                    (f"{JOINT}.ff_context.{leaf}", f"double_layers.{{i}}.mlpC.{own}"),
                    (f"{SINGLE}.ff.{leaf}", f"single_layers.{{i}}.mlp.{own}"),
                )
            ),
            (f"{JOINT}.norm1.linear", "double_layers.{i}.modX.1"),
            (f"{JOINT}.norm1_context.linear", "double_layers.{i}.modC.1"),
            (f"{SINGLE}.norm1.linear", "single_layers.{i}.modCX.1"),
            ("time_step_proj.linear_1", "t_embedder.mlp.0"),
            ("time_step_proj.linear_2", "t_embedder.mlp.2"),
            ("context_embedder", "cond_seq_linear"),
            ("pos_embed.pos_embed", "positional_encoding"),
            ("pos_embed.proj", "init_x_linear"),
            ("norm_out.linear", "modF.1"),
            ("proj_out", "final_linear"),
        ]
    ),
    swapped=("norm_out.linear",),
)


class AuraFlow(Family):
    """AuraFlow, all versions."""

    model_types = (ModelType.AURA_FLOW,)
    architecture = "auraflow"
    pipeline = "AuraFlowPipeline"
    lora_formats = lora_formats("transformer", NATIVE)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D]}; padding is zeros, which the model attends to."""
        text, *_ = parts.pipeline.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            device=parts.device,
            max_sequence_length=self.tokens,
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
        output = parts.denoiser(noisy, encoder_hidden_states=condition["text"], timestep=t)
        return cast(Tensor, output.sample)

    def tiny(self) -> Parts:
        """One joint and one single block and a UMT5, random weights."""
        from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
        from transformers import UMT5Config, UMT5EncoderModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import t5_tokenizer

        torch.manual_seed(0)
        transformer = AuraFlowTransformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            out_channels=4,
            pos_embed_max_size=256,
        )
        text = UMT5Config(
            vocab_size=tiny.VOCABULARY, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4
        )
        pipeline = AuraFlowPipeline(
            transformer=transformer,
            vae=tiny.kl_vae(4, scaling_factor=0.13025),
            scheduler=tiny.flow_scheduler(shift=1.73),
            text_encoder=UMT5EncoderModel(text).eval(),
            tokenizer=t5_tokenizer(),
        )
        return Parts(pipeline, self.denoiser)


VARIANTS = (AuraFlow(),)
