"""Z-Image: one stream of text and picture tokens; time runs backwards, the output is negated.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modules.adapters.key_map import Fused, Native, lora_formats, renamer
from modules.config import ModelType, SampleConfig
from modules.families.base import Condition, Family, Parts, TextOptions

TOKENS = 512
BLOCKS = ("layers", "noise_refiner", "context_refiner")
COMFY = Native(
    renamer(
        [
            ("all_x_embedder.2-1", "x_embedder"),
            ("all_final_layer.2-1", "final_layer"),
            ("*.attention.to_out.0", "attention.out"),
            ("*.attention.norm_q", "attention.q_norm"),
            ("*.attention.norm_k", "attention.k_norm"),
        ]
    ),
    fused=tuple(
        Fused(
            tuple(f"{block}.{{i}}.attention.to_{leaf}" for leaf in "qkv"),
            f"{block}.{{i}}.attention.qkv",
        )
        for block in BLOCKS
    ),
)
"""ComfyUI's names of whole models; adapters keep diffusers' names everywhere."""


class ZImage(Family):
    """Z-Image and its distilled Turbo, for which a transformer freed of the distillation trains."""

    model_types = (ModelType.Z_IMAGE,)
    architecture = "Z-Image"
    pipeline = "ZImagePipeline"
    lora_formats = lora_formats("transformer", None, legacy="")
    comfy_layout = COMFY

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D], "mask": [B, T]}, T the run's caption length."""
        length = parts.text.tokens("text_encoder", TOKENS)
        texts, _ = parts.pipeline.encode_prompt(
            list(captions),
            device=parts.device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        return padded(texts, length)

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The velocity [B, C, H, W] at sigmas [B]."""
        pictures = list(noisy.unsqueeze(2))
        output = parts.denoiser(pictures, 1 - t, unpadded(condition), return_dict=False)[0]
        return -torch.stack(output).squeeze(2)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of texts, a list of one for each."""
        arguments: dict[str, Any] = {
            "height": definition.height,
            "width": definition.width,
            # This pipeline counts from 0 what all others count from 1.
            "guidance_scale": max(0.0, definition.cfg_scale - 1),
            "max_sequence_length": parts.text.tokens("text_encoder", TOKENS),
        }
        for lead, text in (("", definition.prompt), ("negative_", definition.negative_prompt)):
            texts = unpadded(self.encode_text(parts, [text]))
            arguments[f"{lead}prompt_embeds"] = [each.to(parts.dtype) for each in texts]
        return arguments

    def tiny(self) -> Parts:
        """Two blocks, a refiner of each kind and a Qwen 3, random weights."""
        from diffusers import ZImagePipeline, ZImageTransformer2DModel

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import qwen_tokenizer

        torch.manual_seed(0)
        transformer = ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 512, 512],
        )
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            torch.nn.init.normal_(token)  # diffusers leaves them as the memory was
        pipeline = ZImagePipeline(
            transformer=transformer,
            vae=tiny.flux_vae(),
            scheduler=tiny.flow_scheduler(shift=3.0),
            text_encoder=tiny.qwen3(),
            tokenizer=qwen_tokenizer(),
        )
        return Parts(pipeline, self.denoiser, TextOptions(length={"text_encoder": 64}))


def padded(texts: Sequence[Tensor], length: int) -> Condition:
    """Captions of any lengths, each [T', D], as tensors [B, T, D] and a mask [B, T]."""
    counts = torch.tensor([len(text) for text in texts], device=texts[0].device)
    text = pad_sequence([*texts, texts[0].new_zeros(length, texts[0].shape[1])], batch_first=True)
    mask = torch.arange(length, device=counts.device) < counts.unsqueeze(1)
    return {"text": text[:-1], "mask": mask.long()}


def unpadded(condition: Condition) -> list[Tensor]:
    """The captions of a padded condition, each [T', D]."""
    counts = condition["mask"].sum(1).int().tolist()
    return [text[:count] for text, count in zip(condition["text"], counts, strict=True)]


VARIANTS = (ZImage(),)
