"""A recipe as a ComfyUI workflow, in the JSON format of its API.

Source: the node names and inputs that ComfyUI's "Save (API format)" writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modules.config import NoiseScheduler
from ot_notebook.services.inference_recipe import Recipe

SAMPLERS = {
    NoiseScheduler.DDIM: ("ddim", "normal"),
    NoiseScheduler.EULER: ("euler", "normal"),
    NoiseScheduler.EULER_A: ("euler_ancestral", "normal"),
    NoiseScheduler.DPMPP: ("dpmpp_2m", "normal"),
    NoiseScheduler.DPMPP_SDE: ("dpmpp_2m_sde", "normal"),
    NoiseScheduler.UNIPC: ("uni_pc", "normal"),
    NoiseScheduler.EULER_KARRAS: ("euler", "karras"),
    NoiseScheduler.DPMPP_KARRAS: ("dpmpp_2m", "karras"),
    NoiseScheduler.DPMPP_SDE_KARRAS: ("dpmpp_2m_sde", "karras"),
    NoiseScheduler.UNIPC_KARRAS: ("uni_pc", "karras"),
}
"""Sampler and schedule of each scheduler."""

PREFIXES = ("STABLE_DIFFUSION_15", "STABLE_DIFFUSION_2", "STABLE_DIFFUSION_XL")
"""Model types whose checkpoints one loader node reads whole."""


def comfy_workflow(recipe: Recipe) -> str:
    """JSON to give to ComfyUI's API, or to drop on its page.

    ComfyUI draws its noise otherwise, so that the same seed gives another picture there.

    Raises:
        ValueError: for an architecture whose checkpoint one node cannot load.
    """
    if not recipe.model_type.startswith(PREFIXES):
        raise ValueError(
            f"A workflow is written for Stable Diffusion 1 and 2 and SDXL, not for "
            f"{recipe.model_type or 'a picture of another program'}. Copy it as Python."
        )
    nodes: dict[str, dict[str, Any]] = {}

    def node(kind: str, **inputs: Any) -> str:
        name = str(len(nodes) + 1)
        nodes[name] = {"class_type": kind, "inputs": inputs}
        return name

    loader = node("CheckpointLoaderSimple", ckpt_name=f"{Path(recipe.model).stem}.safetensors")
    model, clip, vae = [loader, 0], [loader, 1], [loader, 2]
    for path, strength in recipe.loras:
        name, both = Path(path).name, {"strength_model": strength, "strength_clip": strength}
        lora = node("LoraLoader", model=model, clip=clip, lora_name=name, **both)
        model, clip = [lora, 0], [lora, 1]
    if recipe.clip_skip:
        skip = node("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-1 - recipe.clip_skip)
        clip = [skip, 0]
    texts = [node("CLIPTextEncode", clip=clip, text=text) for text in _prompts(recipe)]
    sampler, schedule = SAMPLERS[NoiseScheduler(recipe.scheduler)]
    sampled = node(
        "KSampler",
        model=model,
        positive=[texts[0], 0],
        negative=[texts[1], 0],
        latent_image=[_latents(recipe, node, vae), 0],
        seed=recipe.seed,
        steps=recipe.steps,
        cfg=recipe.cfg_scale,
        sampler_name=sampler,
        scheduler=schedule,
        denoise=recipe.strength if recipe.image else 1.0,
    )
    decoded = node("VAEDecode", samples=[sampled, 0], vae=vae)
    node("SaveImage", images=[decoded, 0], filename_prefix="ot_notebook")
    return json.dumps(nodes, indent=1)


def _prompts(recipe: Recipe) -> tuple[str, str]:
    """Both texts; ComfyUI calls an embedding by its file."""
    texts = recipe.prompt, recipe.negative_prompt
    for word, path in sorted(recipe.embeddings, key=lambda pair: -len(pair[0])):
        called = f"embedding:{Path(path).stem}"
        texts = texts[0].replace(word, called), texts[1].replace(word, called)
    return texts


def _latents(recipe: Recipe, node: Any, vae: list[Any]) -> str:
    if not recipe.image:
        size = {"width": recipe.width, "height": recipe.height}
        return str(node("EmptyLatentImage", **size, batch_size=1))
    image = [node("LoadImage", image=Path(recipe.image).name), 0]
    encoded = node("VAEEncode", pixels=image, vae=vae)
    if not recipe.mask:
        return str(encoded)
    mask = [node("LoadImageMask", image=Path(recipe.mask).name, channel="red"), 0]
    return str(node("SetLatentNoiseMask", samples=[encoded, 0], mask=mask))
