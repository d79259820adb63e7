"""Anima's pipeline: diffusers' blocks for it, in the form that all other models have.

diffusers has Anima as blocks that a modular pipeline runs. This holds its networks as the usual
pipelines do, and gives them to those blocks.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import AnimaLoraLoaderMixin
from diffusers.models.transformers import transformer_cosmos
from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from modules.families.folders import load_index, parts_of
from modules.families.sources import check_found
from modules.quiet import quiet_libraries

TOKENS = 512
NETWORKS = ("transformer", "text_conditioner", "vae", "text_encoder")


def _nearest(mask: Tensor, size: list[int], interpolation: str) -> Tensor:
    """A mask [B, 1, h, w] at another size."""
    return F.interpolate(mask, size, mode=interpolation)


if not hasattr(transformer_cosmos, "transforms"):
    # diffusers takes torchvision for this alone, a library that must fit the build of torch
    transformer_cosmos.transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=_nearest),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )


class AnimaPipeline(diffusers.DiffusionPipeline, AnimaLoraLoaderMixin):  # type: ignore[misc]
    """Draws with a Cosmos transformer told by a Qwen 3, whose states its T5 words look up."""

    def __init__(
        self,
        transformer: Any,
        text_conditioner: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        t5_tokenizer: Any,
        scheduler: Any,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            text_conditioner=text_conditioner,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            t5_tokenizer=t5_tokenizer,
            scheduler=scheduler,
        )
        self.vae_scale_factor = 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> AnimaPipeline:
        """Load each part from its folder of the model, or take the one that `options` name.

        Args:
            source: a folder or hub id.
            options: parts; `dtype`, the types of networks by name; and how the hub is asked.

        Raises:
            OSError: if a folder is not there, or lacks weights.
        """
        import transformers

        hub = {
            name: options[name]
            for name in ("cache_dir", "local_files_only", "revision")
            if name in options
        }
        types = options.get("dtype") or options.get("torch_dtype") or {}
        parts: dict[str, Any] = {}
        for name, (library, kind) in parts_of(load_index(source, **hub)).items():
            if name in options:
                parts[name] = options[name]
                continue
            made: Any = getattr(diffusers if library == "diffusers" else transformers, kind)
            if name not in NETWORKS:
                parts[name] = made.from_pretrained(source, subfolder=name, **hub)
                continue
            network = {"torch_dtype": types.get(name, torch.float32), "output_loading_info": True}
            parts[name], notes = made.from_pretrained(source, subfolder=name, **network, **hub)
            check_found(source, name, notes["missing_keys"])
        return cls(**parts)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write a folder that diffusers' modular pipelines read, wherever it is moved to."""
        self.blocks().save_pretrained(str(folder), overwrite_modular_index=True, **options)
        file = Path(folder) / "modular_model_index.json"
        index = json.loads(file.read_text(encoding="utf-8"))
        for name in parts_of(index):
            index[name][2]["pretrained_model_name_or_path"] = None  # they look beside it then
        file.write_text(json.dumps(index, indent=2), encoding="utf-8")

    @quiet_libraries()
    def blocks(self, guidance_scale: float = 4.0) -> Any:
        """The modular pipeline, on the very same networks."""
        blocks = diffusers.AnimaAutoBlocks()
        _set_progress_bars(blocks, getattr(self, "_progress_bar_config", {}))
        made = diffusers.AnimaModularPipeline(blocks)
        guider = diffusers.ClassifierFreeGuidance(guidance_scale=guidance_scale)
        made.update_components(**self.components, guider=guider)
        return made

    def encode_prompt(self, prompts: list[str], max_sequence_length: int = TOKENS) -> Tensor:
        """What the transformer reads of captions, [B, T, D]: zeros behind their last T5 word.

        T is the most words of a caption here, and no less than the conditioner's least.
        """
        encoded = AnimaTextEncoderStep.encode_prompt(
            self,
            prompts,
            prepare_unconditional_embeds=False,
            max_sequence_length=max_sequence_length,
            device=self.text_encoder.device,
        )
        own = {name: held for name, held in encoded.items() if not name.startswith("negative")}
        conditioned: Tensor = AnimaTextConditioningStep._condition_prompt_embeds(
            self,
            **own,
            device=self.text_conditioner.device,
            conditioning_dtype=self.text_conditioner.dtype,
            output_dtype=self.transformer.dtype,
        )
        return conditioned

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        height: int = 1024,
        width: int = 1024,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        max_sequence_length: int = TOKENS,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Draw pictures [h, w]; as "latent", what stands before the VAE, [B, C, 1, H, W]."""
        whole = output_type != "latent"
        state = self.blocks(guidance_scale)(
            prompt=prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            max_sequence_length=max_sequence_length,
            generator=generator,
            output_type=output_type if whole else "pt",
        )
        return ImagePipelineOutput(images=state.get("images" if whole else "latents"))


def _set_progress_bars(blocks: Any, settings: dict[str, Any]) -> None:
    """Give each of the blocks, however deep, the settings of progress bars."""
    for block in blocks.sub_blocks.values():
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(**settings)
        _set_progress_bars(block, settings)
