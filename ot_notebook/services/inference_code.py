"""Plain diffusers code that draws the picture of a recipe, without anything of this project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.config import NoiseScheduler
from modules.config.enums import ModelType
from modules.config.paths import resolve
from ot_notebook.services.inference_recipe import Recipe
from ot_notebook.services.inference_weights import READERS, as_compel, readable, written

if TYPE_CHECKING:
    from modules.families import Family

LESS_ONE = {ModelType.Z_IMAGE, ModelType.KREA_2}
"""Models whose pipelines count guidance from 0, where everybody else counts from 1."""


def diffusers_code(recipe: Recipe) -> str:
    """A script; its last line saves the picture.

    Raises:
        ValueError: for a recipe whose model is not known, such as one from another program.
    """
    from modules.families import family_for
    from modules.sampling.start import picture_pipeline

    if not recipe.model_type:
        raise ValueError("The picture does not say which type of model drew it.")
    family = family_for(ModelType(recipe.model_type))
    source = resolve(recipe.model)
    lines = ["import diffusers", "import torch", ""]
    if recipe.model == "live":
        lines.append("# drawn with a model in training: put the path of what it has saved")
    name = family.pipeline
    if recipe.image:
        name = picture_pipeline(family, bool(recipe.mask)) or name
        lines[1:1] = ["from PIL import Image, ImageOps"]
    weighted = readable(family) and (written(recipe.prompt) or written(recipe.negative_prompt))
    options = "".join(f", {name}={value!r}" for name, value in _options(family.pipeline).items())
    opener = "from_single_file" if Path(source).is_file() else "from_pretrained"
    lines.append(f"pipeline = diffusers.{name}.{opener}({source!r}{options})")
    lines += _scheduler(recipe)
    for number, (path, _) in enumerate(recipe.loras):
        lines.append(f'pipeline.load_lora_weights({path!r}, adapter_name="lora_{number}")')
    if recipe.loras:
        names = [f"lora_{number}" for number in range(len(recipe.loras))]
        lines.append(f"pipeline.set_adapters({names!r}, {[at for _, at in recipe.loras]!r})")
    lines += _words(recipe, family)
    lines += _start(recipe, name)
    if weighted:
        lines += _weights(recipe, READERS[family.pipeline])
    lines += ["", "image = pipeline("]
    arguments = _arguments(recipe, weighted)
    if recipe.image and ("Inpaint" in name or "Fill" in name):
        arguments["mask_image"] = "mask"
    if recipe.image and "Img2Img" in name:
        del arguments["width"], arguments["height"]
    lines += [f"    {name}={value}," for name, value in arguments.items()]
    lines += [f"    generator=torch.Generator().manual_seed({recipe.seed}),", ").images[0]"]
    return "\n".join([*lines, 'image.save("picture.png")', ""])


def _words(recipe: Recipe, family: Family) -> list[str]:
    """The embeddings, given to each text encoder that diffusers can give them to."""
    import diffusers
    from diffusers.loaders import TextualInversionLoaderMixin

    lines = []
    for word, path in recipe.embeddings:
        if not issubclass(getattr(diffusers, family.pipeline), TextualInversionLoaderMixin):
            lines.append(f"# {word!r} stands for {path!r}, which diffusers cannot load here")
        elif len(family.words) == 1:
            lines.append(f"pipeline.load_textual_inversion({path!r}, token={word!r})")
        else:
            lines[:0] = [] if lines else ["", "from safetensors.torch import load_file", ""]
            lines.append(f"vectors = load_file({path!r})")
            for name, place in family.words.items():
                encoder = (
                    f"pipeline.{name}",
                    f"pipeline.{name.replace('text_encoder', 'tokenizer')}",
                )
                lines += [
                    "pipeline.load_textual_inversion(",
                    f"    vectors[{place.key!r}], token={word!r},",
                    f"    text_encoder={encoder[0]}, tokenizer={encoder[1]},",
                    ")",
                ]
    return lines


def _start(recipe: Recipe, pipeline: str) -> list[str]:
    """The picture to begin with, scaled and cropped to the size."""
    if not recipe.image:
        return []
    size = (recipe.width, recipe.height)
    lines = ["", f'start = Image.open({recipe.image!r}).convert("RGB")']
    lines.append(f"start = ImageOps.fit(start, {size}, Image.Resampling.LANCZOS)")
    if recipe.mask:
        lines.append(f'mask = Image.open({recipe.mask!r}).convert("L")')
        lines.append(f"mask = ImageOps.fit(mask, {size}, Image.Resampling.NEAREST)")
    elif "Inpaint" in pipeline or "Fill" in pipeline:
        lines.append(f'mask = Image.new("L", {size}, 255)')
    return lines


def _weights(recipe: Recipe, reader: str) -> list[str]:
    prompt, negative = map(as_compel, (recipe.prompt, recipe.negative_prompt))
    return [
        "",
        "import compel",
        "",
        f"weights = compel.{reader}(pipeline)({prompt!r}, negative_prompt={negative!r})",
    ]


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


def _arguments(recipe: Recipe, weighted: bool) -> dict[str, str]:
    """The pipeline's arguments, as Python writes them."""
    kind = ModelType(recipe.model_type)
    guidance = max(0.0, recipe.cfg_scale - 1) if kind in LESS_ONE else recipe.cfg_scale
    arguments = {"prompt": repr(recipe.prompt)}
    if recipe.negative_prompt or "XL" in recipe.model_type:  # to which none means zeros
        arguments["negative_prompt"] = repr(recipe.negative_prompt)
    if weighted:
        arguments = {
            "prompt_embeds": "weights.embeds",
            "negative_prompt_embeds": "weights.negative_embeds",
        }
        if "XL" in recipe.model_type:
            arguments["pooled_prompt_embeds"] = "weights.pooled_embeds"
            arguments["negative_pooled_prompt_embeds"] = "weights.negative_pooled_embeds"
    if recipe.clip_skip:
        arguments["clip_skip"] = repr(recipe.clip_skip)
    if recipe.image:
        arguments |= {"image": "start", "strength": repr(recipe.strength)}
    return {
        **arguments,
        "width": repr(recipe.width),
        "height": repr(recipe.height),
        "num_inference_steps": repr(recipe.steps),
        ("true_cfg_scale" if kind is ModelType.QWEN else "guidance_scale"): repr(guidance),
    }
