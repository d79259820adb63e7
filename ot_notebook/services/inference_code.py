"""Plain diffusers code that draws the picture of a recipe, without anything of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules.config import NoiseScheduler
from modules.config.enums import ModelType
from modules.config.paths import resolve
from ot_notebook.services.inference_recipe import Recipe

LESS_ONE = {ModelType.Z_IMAGE, ModelType.KREA_2}
"""Models whose pipelines count guidance from 0, where everybody else counts from 1."""


def diffusers_code(recipe: Recipe) -> str:
    """A script; its last line saves the picture.

    Raises:
        ValueError: for a recipe whose model is not known, such as one from another program.
    """
    from modules.families import family_for

    if not recipe.model_type:
        raise ValueError("The picture does not say which type of model drew it.")
    family = family_for(ModelType(recipe.model_type))
    source = resolve(recipe.model)
    lines = ["import diffusers", "import torch", ""]
    if recipe.model == "live":
        lines.append("# drawn with a model in training: put the path of what it has saved")
    options = "".join(f", {name}={value!r}" for name, value in _options(family.pipeline).items())
    opener = "from_single_file" if Path(source).is_file() else "from_pretrained"
    lines.append(f"pipeline = diffusers.{family.pipeline}.{opener}({source!r}{options})")
    lines += _scheduler(recipe)
    for number, (path, _) in enumerate(recipe.loras):
        lines.append(f'pipeline.load_lora_weights({path!r}, adapter_name="lora_{number}")')
    if recipe.loras:
        names = [f"lora_{number}" for number in range(len(recipe.loras))]
        lines.append(f"pipeline.set_adapters({names!r}, {[at for _, at in recipe.loras]!r})")
    lines += ["", "image = pipeline("]
    lines += [f"    {name}={value!r}," for name, value in _arguments(recipe).items()]
    lines += [f"    generator=torch.Generator().manual_seed({recipe.seed}),", ").images[0]"]
    return "\n".join([*lines, 'image.save("picture.png")', ""])


def _options(pipeline: str) -> dict[str, Any]:
    has_checker = pipeline in ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
    return {"safety_checker": None} if has_checker else {}


def _scheduler(recipe: Recipe) -> list[str]:
    if not recipe.scheduler:
        return []
    from modules.sampling.sampler import SCHEDULERS

    name, settings = SCHEDULERS[NoiseScheduler(recipe.scheduler)]
    options = "".join(f", {key}={value!r}" for key, value in settings.items())
    made = f"diffusers.{name}.from_config(pipeline.scheduler.config{options})"
    lines = [f"pipeline.scheduler = {made}"]
    if "use_karras_sigmas" in settings:
        lines += [
            "# cosine schedules repeat their first timestep; diffusers would begin with the second",
            "pipeline.scheduler.index_for_timestep = lambda *_: 0",
        ]
    return lines


def _arguments(recipe: Recipe) -> dict[str, Any]:
    kind = ModelType(recipe.model_type)
    guidance = max(0.0, recipe.cfg_scale - 1) if kind in LESS_ONE else recipe.cfg_scale
    arguments: dict[str, Any] = {"prompt": recipe.prompt}
    if recipe.negative_prompt:
        arguments["negative_prompt"] = recipe.negative_prompt
    return {
        **arguments,
        "width": recipe.width,
        "height": recipe.height,
        "num_inference_steps": recipe.steps,
        ("true_cfg_scale" if kind is ModelType.QWEN else "guidance_scale"): guidance,
    }
