"""Stable Cascade: a UNet over an EfficientNet's features, conditioned on one CLIP encoder.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D text
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from modules.adapters.key_map import Fused, Native, renamer
from modules.config import ModelType, SampleConfig, TrainConfig
from modules.families import wuerstchen_stages as stages
from modules.families.base import Condition, Family, Objective, Parts, WordTable

STAGES = stages.Stages(
    "StableCascadeDecoderPipeline",
    "stabilityai/stable-cascade",
    "stabilityai/stable-cascade",
    encoder_file="effnet_encoder.safetensors",
    blocks=("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
)
NATIVE = Native(
    renamer(
        [
            ("*.attention.to_q", "attention.attn.to_q"),
            ("*.attention.to_k", "attention.attn.to_k"),
            ("*.attention.to_v", "attention.attn.to_v"),
            ("*.attention.to_out.0", "attention.attn.out_proj"),
        ]
    )
)
"""Names of adapters, as ComfyUI calls the layers once it has loaded a model."""
ONETRAINERS = Native(
    renamer(
        [
            *(
                (f"*.attention.to_{leaf}", f"attention.attn.in_proj.{i}")
                for i, leaf in enumerate("qkv")
            ),
            ("*.attention.to_out.0", "attention.attn.out_proj"),
        ]
    )
)
"""Names of adapters, as OneTrainer calls them in all but LEGACY_LORA."""
STAGE_C = Native(
    NATIVE.rename,
    fused=tuple(
        Fused(
            tuple(f"{side}_blocks.{{i}}.{{i}}.attention.to_{leaf}" for leaf in "qkv"),
            f"{side}_blocks.{{i}}.{{i}}.attention.attn.in_proj",
        )
        for side in ("down", "up")
    ),
    underscored=("in_proj",),
)
"""Names of a file of the model, in which attention is torch's own."""


class StableCascade(Family):
    """Stable Cascade."""

    model_types = (ModelType.STABLE_CASCADE_1,)
    architecture = "stable-cascade-v1-prior"
    pipeline = "StableCascadePriorPipeline"
    denoiser = "prior"
    networks = ("prior", "text_encoder")
    trainable_encoders = ("text_encoder",)
    skipping_encoders = ("text_encoder",)
    words = {"text_encoder": WordTable("clip_g", -1, normed=False)}  # noqa: RUF012 - read only
    lora_formats = stages.formats(NATIVE, legacy=True)
    file_layout = STAGE_C
    read_also = (ONETRAINERS,)

    def load(self, config: TrainConfig) -> Parts:
        """The prior and its text encoder, the image encoder and the decoder."""
        stages.know_old_names()
        return STAGES.complete(super().load(config), config)

    def objective(self, parts: Parts) -> Objective:  # noqa: ARG002
        """Noise."""
        return "cosine"

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> [B, C, H, W]: features as they are."""
        return stages.features(parts, pixels)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w], drawn without a prompt."""
        return self.finish(parts, latents, SampleConfig(), torch.Generator().manual_seed(0))

    def finish(
        self, parts: Parts, latents: Tensor, definition: SampleConfig, generator: Any
    ) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w], drawn by the decoder for the same prompt."""
        encoded = self.encode_text(parts, [definition.prompt] * len(latents))
        dtype = parts.finisher.decoder.dtype
        return stages.draw(
            parts,
            latents,
            generator,
            prompt_embeds=encoded["text"].to(dtype),
            prompt_embeds_pooled=encoded["pooled"].to(dtype),
        )

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D], "pooled": [B, 1, D]}; skipped layers are left out, and the norm."""
        tokenizer, encoder = parts.pipeline.tokenizer, parts.pipeline.text_encoder
        tokens = tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(encoder.device)
        output = encoder(
            tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        )
        layer = -1 - parts.text.skip("text_encoder")
        return {"text": output.hidden_states[layer], "pooled": output.text_embeds.unsqueeze(1)}

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The noise [B, C, H, W] at times [B] in (0, 1]; no picture is shown to it."""
        width = parts.denoiser.config.clip_image_in_channels
        output = parts.denoiser(
            sample=noisy,
            timestep_ratio=t.to(noisy),
            clip_text_pooled=condition["pooled"],
            clip_text=condition["text"],
            clip_img=noisy.new_zeros(len(noisy), 1, width),
        )
        return cast(Tensor, output.sample)

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of texts: the pipeline knows nothing of skipped layers."""
        arguments: dict[str, Any] = {
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
        }
        for lead, text in (("", definition.prompt), ("negative_", definition.negative_prompt)):
            encoded = self.encode_text(parts, [text])
            arguments[f"{lead}prompt_embeds"] = encoded["text"]
            arguments[f"{lead}prompt_embeds_pooled"] = encoded["pooled"]
        return arguments

    def tiny(self) -> Parts:
        """Two levels of the prior, four of the decoder, random weights."""
        import diffusers

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import clip_tokenizer

        stages.know_old_names()
        torch.manual_seed(0)
        text_encoder, tokenizer = tiny.clip(projection=True), clip_tokenizer()
        prior = diffusers.StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=8,
            conditioning_dim=16,
            block_out_channels=(16, 16),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            switch_level=(False,),
            clip_text_in_channels=32,
            clip_text_pooled_in_channels=32,
            clip_image_in_channels=16,
            dropout=(0.0, 0.0),
        )
        plain = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
        decoder = diffusers.StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=8,
            patch_size=2,
            conditioning_dim=16,
            block_out_channels=(8, 8, 16, 16),
            num_attention_heads=(-1, -1, 2, 2),
            down_num_layers_per_block=(1, 1, 1, 1),
            up_num_layers_per_block=(1, 1, 1, 1),
            down_blocks_repeat_mappers=(1, 1, 1, 1),
            up_blocks_repeat_mappers=(3, 3, 2, 2),
            block_types_per_layer=(plain, plain, *((*plain, "SDCascadeAttnBlock"),) * 2),
            clip_text_pooled_in_channels=32,
            effnet_in_channels=4,
            pixel_mapper_in_channels=3,
            dropout=(0.0,) * 4,
            timestep_conditioning_type=("sca",),
        )
        pipeline = diffusers.StableCascadePriorPipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            prior=prior.eval(),
            scheduler=diffusers.DDPMWuerstchenScheduler(),
        )
        finisher = diffusers.StableCascadeDecoderPipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            decoder=decoder.eval(),
            scheduler=diffusers.DDPMWuerstchenScheduler(),
            vqgan=tiny.paella_vqgan(),
        )
        parts = Parts(pipeline, self.denoiser)
        return STAGES.join(parts, tiny.efficient_net(4), finisher)


VARIANTS = (StableCascade(),)
