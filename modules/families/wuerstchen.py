"""Würstchen 2: a prior over an EfficientNet's features, conditioned on one CLIP encoder's tokens.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels, T text tokens, D text
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from modules.config import ModelType, SampleConfig, TrainConfig
from modules.families import wuerstchen_stages as stages
from modules.families.base import Condition, Family, Objective, Parts, WordTable

STAGES = stages.Stages(
    "WuerstchenDecoderPipeline",
    "warp-ai/wuerstchen",
    "warp-ai/EfficientNetEncoder",
    blocks=("ResBlock", "TimestepBlock", "AttnBlock"),
    reads_text=True,
)


class Wuerstchen(Family):
    """Würstchen 2."""

    model_types = (ModelType.WUERSTCHEN_2,)
    architecture = "wuerstchen-v2-prior"
    pipeline = "WuerstchenPriorPipeline"
    denoiser = "prior"
    networks = ("prior", "text_encoder")
    latent_space = "wuerstchen"
    trainable_encoders = ("text_encoder",)
    skipping_encoders = ("text_encoder",)
    words = {"text_encoder": WordTable("clip_g", -1)}  # noqa: RUF012 - read only
    lora_formats = stages.formats(None, legacy=False)

    def pipeline_class(self) -> Any:
        """The class, whose parts diffusers has moved."""
        stages.know_old_names()
        return super().pipeline_class()

    def load(self, config: TrainConfig) -> Parts:
        """The prior and its text encoder, the image encoder and the decoder."""
        stages.know_old_names()
        return STAGES.complete(super().load(config), config)

    def objective(self, parts: Parts) -> Objective:  # noqa: ARG002
        """Noise, of a schedule that dwells on pure noise."""
        return "cosine_dwelling"

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> [B, C, H, W]: features, shifted and scaled to about 1."""
        scale = parts.pipeline.config
        latents: Tensor = (stages.features(parts, pixels) + scale.latent_std) / scale.latent_mean
        return latents

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w], drawn without a prompt."""
        return self.finish(parts, latents, SampleConfig(), torch.Generator().manual_seed(0))

    def finish(
        self, parts: Parts, latents: Tensor, definition: SampleConfig, generator: Any
    ) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w], drawn by the decoder for the same prompt."""
        scale = parts.pipeline.config
        embeddings = latents * scale.latent_mean - scale.latent_std
        return stages.draw(parts, embeddings, generator, prompt=definition.prompt)

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """{"text": [B, T, D]}; skipped layers are left out, the final norm is not."""
        tokenizer, encoder = parts.pipeline.tokenizer, parts.pipeline.text_encoder
        tokens = tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(encoder.device)
        skip = parts.text.skip("text_encoder")
        output = encoder(
            tokens.input_ids,
            attention_mask=tokens.attention_mask,
            output_hidden_states=skip > 0,
        )
        if not skip:
            return {"text": output.last_hidden_state}
        text_model = getattr(encoder, "text_model", encoder)  # gone since transformers 5.6
        return {"text": text_model.final_layer_norm(output.hidden_states[-1 - skip])}

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The noise [B, C, H, W] at times [B] in (0, 1]."""
        return cast(Tensor, parts.denoiser(noisy, r=t.to(noisy), c=condition["text"]))

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
        """Embeddings in place of texts: the pipeline knows nothing of skipped layers."""
        texts = {
            "prompt_embeds": definition.prompt,
            "negative_prompt_embeds": definition.negative_prompt,
        }
        encoded = {name: self.encode_text(parts, [text])["text"] for name, text in texts.items()}
        return {
            **encoded,
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
        }

    def tiny(self) -> Parts:
        """Two blocks of the prior, four levels of the decoder, random weights."""
        import diffusers
        from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt, WuerstchenPrior

        from modules.families import tiny_networks as tiny
        from modules.families.tiny_tokenizers import clip_tokenizer

        stages.know_old_names()
        torch.manual_seed(0)
        prior = WuerstchenPrior(c_in=4, c=16, c_cond=32, c_r=8, depth=2, nhead=2, dropout=0.0)
        torch.nn.init.normal_(prior.out[1].weight, std=0.02)  # its output is divided by 1 - b
        decoder = WuerstchenDiffNeXt(
            c_r=8,
            c_cond=16,
            c_hidden=[8, 8, 16, 16],
            nhead=[-1, 1, 2, 2],
            blocks=[1, 1, 1, 1],
            effnet_embd=4,
            clip_embd=32,
            dropout=0.0,
        )
        torch.nn.init.normal_(decoder.clf[1].weight, std=0.05)  # zeros at first, and no picture
        pipeline = diffusers.WuerstchenPriorPipeline(
            tokenizer=clip_tokenizer(),
            text_encoder=tiny.clip(),
            prior=prior.eval(),
            scheduler=diffusers.DDPMWuerstchenScheduler(),
        )
        finisher = diffusers.WuerstchenDecoderPipeline(
            tokenizer=clip_tokenizer(),
            text_encoder=tiny.clip(),
            decoder=decoder.eval(),
            scheduler=diffusers.DDPMWuerstchenScheduler(),
            vqgan=tiny.paella_vqgan(),
        )
        parts = Parts(pipeline, self.denoiser)
        return STAGES.join(parts, tiny.efficient_net(4), finisher)


VARIANTS = (Wuerstchen(),)
