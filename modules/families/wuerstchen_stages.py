"""What stands around the priors of Würstchen and Stable Cascade: image encoder and decoder.

A prior learns what an EfficientNet sees in a picture, 24x24 cells of 1024x1024 pixels. A picture of
such cells is drawn by a second diffusion, in the space of a VQGAN, which gives it its pixels.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels.

Source: Pernias et al. 2023, arXiv:2306.00637.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.adapters.key_map import KeyMap, Native, lora_formats
from modules.config import ModelFormat, TrainConfig
from modules.families.base import Parts
from modules.families.loading import load_part, load_pipeline, named
from modules.families.loading import torch_dtype as stored
from modules.families.sources import FAILURES, cannot_load
from modules.quiet import quiet_libraries

SEEN = 0.75
"""Share of a picture's edges at which the image encoder looks at it: 768 pixels of 1024."""
DECODER_STEPS = 12
"""Steps of the decoder, as diffusers' combined pipelines take them, without guidance."""
SECTIONS = {"decoder": "decoder", "vqgan": "decoder_vqgan", "text_encoder": "decoder_text_encoder"}
"""Sections of the config by the decoder's parts."""


@dataclass(frozen=True)
class Stages:
    """The published networks around a prior, which a config can replace."""

    pipeline: str
    """diffusers class of the decoder."""
    decoder: str
    """Hub id of the decoder."""
    encoder: str
    """Hub id of the image encoder."""
    encoder_file: str | None = None
    """The encoder's file where that has no settings beside it."""
    blocks: tuple[str, ...] = ()
    """Classes of the prior's blocks, which diffusers does not name."""
    reads_text: bool = False
    """Whether the decoder has a text encoder of its own; else it takes what the prior's gave."""

    def pipeline_class(self) -> Any:
        """The decoder's class."""
        import diffusers

        return getattr(diffusers, self.pipeline)

    @quiet_libraries()
    def complete(self, parts: Parts, config: TrainConfig) -> Parts:
        """Add image encoder and decoder to a loaded prior.

        Raises:
            ConfigError: if a source is missing, damaged, or of another architecture.
        """
        if not config.decoder.model_name:
            config = config.update(**{"decoder.model_name": self.decoder})
        source = "decoder.model_name"
        components: dict[str, Any] = {}
        if not self.reads_text:
            pipeline = parts.pipeline
            components = {"text_encoder": pipeline.text_encoder, "tokenizer": pipeline.tokenizer}
        own = {name: config.get(at) for name, at in SECTIONS.items() if name not in components}
        dtypes = {name: section.weight_dtype for name, section in own.items()}
        for name, section in own.items():
            at = SECTIONS[name]
            if section.model_name and at != "decoder":
                components[name] = load_part(self, name, config, dtypes[name], at, source)
        finisher = load_pipeline(self, config, dtypes, source, **components)
        return self.join(parts, self._encoder(config), finisher)

    def join(self, parts: Parts, encoder: nn.Module, finisher: Any) -> Parts:
        """A prior's parts together with those of the other stages."""
        parts.finisher, parts.encoder_name = finisher, "effnet_encoder"
        parts.beside["effnet_encoder"] = encoder
        parts.denoiser._repeated_blocks = list(self.blocks)
        for name, section in SECTIONS.items():
            if name != "text_encoder" or self.reads_text:
                parts.beside[section] = getattr(finisher, name)
        _takes_every_type(parts.denoiser, lambda: parts.dtype)
        _takes_every_type(finisher.decoder, lambda: finisher.decoder.dtype)
        return parts

    def _encoder(self, config: TrainConfig) -> nn.Module:
        from huggingface_hub import hf_hub_download

        from modules.families.efficient_net import EfficientNetEncoder

        chosen = config.effnet_encoder.model_name
        dtype = stored("effnet_encoder", config.effnet_encoder.weight_dtype)
        try:
            source, options = named(chosen or self.encoder, config)
            if not chosen and self.encoder_file:
                source = hf_hub_download(source, self.encoder_file, **options)
            if Path(source).is_file():
                return cast(nn.Module, EfficientNetEncoder.from_file(Path(source), dtype))
            made = EfficientNetEncoder.from_pretrained(source, torch_dtype=dtype, **options)
            return cast(nn.Module, made.eval())
        except FAILURES as error:
            raise cannot_load(
                "effnet_encoder.model_name",
                chosen or self.encoder,
                "EfficientNetEncoder",
                error,
                f"Leave it empty for that of {self.encoder}, or give the path of its "
                "folder or .safetensors file.",
            ) from error


def formats(native: Native | None, legacy: bool) -> Mapping[ModelFormat, KeyMap]:
    """The adapter formats of a prior and its text encoder; LEGACY_LORA has names of its own."""
    made = dict(
        lora_formats(
            "prior",
            native,
            kohya_encoders={"text_encoder": "lora_te"},
            encoders=("text_encoder",),
        )
    )
    if legacy:
        prefixes = {"prior": "lora_prior_unet_", "text_encoder": "lora_prior_te_"}
        made[ModelFormat.LEGACY_LORA] = KeyMap(prefixes, native, dotted=False, peft=False)
    return made


def know_old_names() -> None:
    """Let diffusers find the classes of folders that name them as it did until they were moved.

    Neither the published folders nor its own load without it since 0.36.
    """
    import diffusers.pipelines as pipelines

    if not hasattr(pipelines, "wuerstchen"):
        from diffusers.pipelines.deprecated import wuerstchen

        pipelines.wuerstchen = wuerstchen


def features(parts: Parts, pixels: Tensor) -> Tensor:
    """What the image encoder sees in pictures [B, 3, h, w] in [-1, 1], [B, C, H, W]."""
    from modules.families.efficient_net import DEVIATION, MEAN

    encoder = parts.vae
    pixels = pixels.to(encoder.device, torch.float32)
    smaller = F.interpolate(pixels, scale_factor=SEEN, mode="bilinear", antialias=True)
    mean, deviation = (smaller.new_tensor(each).view(1, 3, 1, 1) for each in (MEAN, DEVIATION))
    normalised = ((smaller + 1) / 2 - mean) / deviation
    return cast(Tensor, encoder(normalised.to(encoder.dtype)))


def draw(parts: Parts, embeddings: Tensor, generator: Any, **text: Any) -> Tensor:
    """The picture [B, 3, h, w] in [-1, 1] of a prior's embeddings [B, C, H, W].

    Args:
        parts: with the decoder.
        embeddings: as the prior's pipeline gives them.
        generator: of its noise.
        text: the decoder's arguments that carry prompts.
    """
    finisher = parts.finisher
    finisher.set_progress_bar_config(disable=True)
    latents = finisher(
        image_embeddings=embeddings.to(finisher.decoder.dtype),
        num_inference_steps=DECODER_STEPS,
        guidance_scale=0.0,
        generator=generator,
        output_type="latent",
        **text,
    ).images
    vqgan = finisher.vqgan
    pixels = vqgan.decode((latents * vqgan.config.scale_factor).to(vqgan.dtype)).sample
    return cast(Tensor, pixels.clamp(0, 1) * 2 - 1)


def _takes_every_type(network: nn.Module, dtype: Any) -> None:
    """Give a network what it computes with in its own type; pipelines hand it that of the text."""

    def convert(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype()) if floating else value

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
            return None
        return tuple(map(convert, args)), {name: convert(each) for name, each in kwargs.items()}

    network.register_forward_pre_hook(before, with_kwargs=True)
