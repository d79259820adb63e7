"""Plain diffusers code that draws the picture of a recipe, without anything of this project."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.config import NoiseScheduler
from modules.config.enums import ModelType
from modules.config.paths import resolve
from ot_notebook.services.inference_recipe import Recipe, is_name
from ot_notebook.services.inference_source import trained_parts
from ot_notebook.services.inference_weights import READERS, as_compel, readable, written

if TYPE_CHECKING:
    from modules.families import Family

ONE_CLIP = {
    "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionDepth2ImgPipeline",
}
"""Pipelines whose own clip_skip fails with transformers from 5.6 on: layers are cut instead."""

STAGES = {"WuerstchenPriorPipeline", "StableCascadePriorPipeline", "AnimaModularPipeline"}
"""Those that need a second one, or blocks of diffusers that are no pipeline."""

GREY = (127, 127, 127)
"""What a model is shown that reads a picture where none is given."""

HALVES = {"FLOAT_16": "torch.float16", "BFLOAT_16": "torch.bfloat16"}


def diffusers_code(recipe: Recipe) -> str:
    """A script; its last line saves the picture.

    Raises:
        ValueError: for a recipe whose model is not known, such as one from another program, or a
            backup that does not say what its networks are.
    """
    from modules.families import family_for
    from modules.sampling.start import picture_pipeline

    if not recipe.model_type:
        raise ValueError("The picture does not say which type of model drew it.")
    family = family_for(ModelType(recipe.model_type))
    name = family.pipeline
    if name in STAGES:
        raise ValueError(
            f"{family.architecture} is drawn by more than one pipeline of diffusers, for which no "
            f"code is written. Copy the settings as a sample definition."
        )
    if recipe.image:
        name = picture_pipeline(family, bool(recipe.mask)) or name
    weighted = readable(family) and (written(recipe.prompt) or written(recipe.negative_prompt))
    loaded, words, start = (
        _loaded(recipe, family, name), _words(recipe, family), _start(recipe, family, name),
    )  # fmt: skip
    imports = ["import diffusers", "import torch"]
    if "transformers." in loaded[-2]:
        imports.append("import transformers")
    if start:
        imports.append("from PIL import Image, ImageOps")
    if any(line.startswith("vectors = ") for line in words):
        imports.append("from safetensors.torch import load_file")
    lines = [*imports, "", *loaded, *_scheduler(recipe)]
    for number, (path, _) in enumerate(recipe.loras):
        lines.append(f'pipeline.load_lora_weights({path!r}, adapter_name="lora_{number}")')
    if recipe.loras:
        names = [f"lora_{number}" for number in range(len(recipe.loras))]
        lines.append(f"pipeline.set_adapters({names!r}, {[at for _, at in recipe.loras]!r})")
    lines += [*words, *_fewer_layers(recipe, family), *start]
    if weighted:
        lines += _weights(recipe, READERS[family.pipeline])
    lines += [*_encoded(recipe, family)[0], *_own_size(recipe, family)]
    lines += _call(recipe, family, name, weighted)
    return "\n".join([*lines, ""])


def _loaded(recipe: Recipe, family: Family, name: str) -> list[str]:
    """The pipeline on its device; networks of a backup take the place of the base model's."""
    lines = []
    source = resolve(recipe.model)
    networks: list[tuple[str, tuple[str, str]]] = []
    if recipe.model == "live":
        lines.append("# drawn with a model in training: put the path of what it has saved")
    elif (Path(source) / "onetrainer_config" / "args.json").is_file():
        source, networks = _backup(Path(source))
    options = {"safety_checker": "None"} if family.pipeline in ONE_CLIP else {}
    if recipe.dtype in HALVES:
        options["torch_dtype"] = HALVES[recipe.dtype]
    elif recipe.dtype not in ("", "FLOAT_32"):
        lines.append(f"# drawn with weights of {recipe.dtype}, which rounds otherwise")
    dtype = f", torch_dtype={options['torch_dtype']}" if "torch_dtype" in options else ""
    options |= {part: f"{kind}.from_pretrained({at!r}{dtype})" for part, (kind, at) in networks}
    opener = "from_single_file" if Path(source).is_file() else "from_pretrained"
    given = "".join(f", {key}={value}" for key, value in options.items())
    lines.append(f"pipeline = diffusers.{name}.{opener}({source!r}{given})")
    lines.append('pipeline.to("cuda" if torch.cuda.is_available() else "cpu")')
    return lines


def _backup(folder: Path) -> tuple[str, list[tuple[str, tuple[str, str]]]]:
    """The base model of a backup, and class and folder of each network that it holds."""
    from modules.config import TrainConfig

    config, _warnings = TrainConfig.load(folder / "onetrainer_config" / "args.json")
    networks = []
    for part in trained_parts(config, folder):
        networks.append((part, (_class_of(folder / part), str(folder / part))))
    return resolve(config.base_model_name), networks


def _class_of(network: Path) -> str:
    """The class of a network that was saved by diffusers or transformers."""
    path = network / "config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told = told if isinstance(told, dict) else {}
    library, name = "diffusers", told.get("_class_name")
    if name is None:
        library, listed = "transformers", told.get("architectures")
        name = listed[0] if isinstance(listed, list) and listed else None
    if not is_name(name):
        raise ValueError(
            f"{path} does not name the class of its network: _class_name, or the first of "
            f"architectures, is {name!r}. Copy the settings as a sample definition."
        )
    return f"{library}.{name}"


def _fewer_layers(recipe: Recipe, family: Family) -> list[str]:
    if not recipe.clip_skip or family.pipeline not in ONE_CLIP:
        return []
    return [
        "# the pipeline's own clip_skip fails with newer versions of transformers",
        'encoder = getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder).encoder',
        f"encoder.layers = encoder.layers[:-{recipe.clip_skip}]",
    ]


def _call(recipe: Recipe, family: Family, name: str, weighted: bool) -> list[str]:
    arguments = _arguments(recipe, family, weighted)
    shown = recipe.image or family.hint != "none"
    if shown and ("Inpaint" in name or "Fill" in name):
        arguments["mask_image"] = "mask"
    if shown and ("Img2Img" in name or "Depth2Img" in name):
        del arguments["width"], arguments["height"]
    arguments["generator"] = f"torch.Generator().manual_seed({recipe.seed})"
    given = [f"    {key}={value}," for key, value in arguments.items()]
    if "num_frames" not in arguments:
        return ["", "image = pipeline(", *given, ").images[0]", 'image.save("picture.png")']
    rate = family.frames_per_second
    film = [
        "for number, frame in enumerate(frames):",
        '    frame.save(f"frame-{number:04}.png")',
        f'# with imageio: diffusers.utils.export_to_video(frames, "film.mp4", fps={rate})',
    ]
    saved = film if recipe.frames > 1 else ['frames[0].save("picture.png")']
    return ["", "frames = pipeline(", *given, '    output_type="pil",', ").frames[0]", *saved]


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


def _start(recipe: Recipe, family: Family, pipeline: str) -> list[str]:
    """The picture to begin with, scaled and cropped to the size."""
    if not recipe.image and family.hint == "none":
        return []
    size = (recipe.width, recipe.height)
    lines = ["", f'start = Image.new("RGB", {size}, {GREY})']
    if recipe.image:
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
    lines, manager = ["", "import compel", ""], ""
    if recipe.embeddings:
        lines.append("words = compel.DiffusersTextualInversionManager(pipeline)")
        manager = ", textual_inversion_manager=words"
    texts = f"{prompt!r}, negative_prompt={negative!r}"
    return [*lines, f"weights = compel.{reader}(pipeline{manager})({texts})"]


def _encoded(recipe: Recipe, family: Family) -> tuple[list[str], dict[str, str]]:
    """Prompts that are encoded before the call, for pipelines that would do so otherwise.

    Those with clip_skip skip layers in one of two prompts alone, and Chroma's gives its mask as
    numbers, which are added where they should hide.
    """
    skips = recipe.clip_skip and family.pipeline not in ONE_CLIP
    masks = family.pipeline == "ChromaPipeline"
    if not (skips or masks):
        return [], {}
    options = dict(recipe.options)
    told: dict[str, Any] = {"do_classifier_free_guidance": False}
    told |= {name: options[name] for name in ("max_sequence_length",) if name in options}
    told |= {"clip_skip": recipe.clip_skip} if skips else {}
    if "text_encoder_3" in family.text_encoders:
        told |= {"prompt_2": None, "prompt_3": None}
    given = ", ".join(f"{name}={value!r}" for name, value in told.items())
    second = "prompt_attention_mask" if masks else "pooled_prompt_embeds"
    lines = [
        "",
        "def encoded(text):",
        f"    texts = pipeline.encode_prompt(text, {given})",
        f"    return texts[0], texts[2]{'.bool()' if masks else ''}",
        "",
        f"prompt, prompt_2 = encoded({recipe.prompt!r})",
        f"negative, negative_2 = encoded({recipe.negative_prompt!r})",
    ]
    return lines, {
        "prompt_embeds": "prompt",
        "negative_prompt_embeds": "negative",
        second: "prompt_2",
        f"negative_{second}": "negative_2",
    }


def _own_size(recipe: Recipe, family: Family) -> list[str]:
    if family.pipeline != "HiDreamImagePipeline":
        return []
    edge = math.sqrt(recipe.width * recipe.height) * (1 + 1e-6) / 8
    return [
        f"pipeline.default_sample_size = {edge!r}  # it scales pictures of other sizes",
    ]


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
    if "Ancestral" in name:
        lines += [
            "# what it keeps of large noise is a small difference, in float32 sometimes below zero",
            "set_timesteps = pipeline.scheduler.set_timesteps",
            "def set_precise_timesteps(*args, **kwargs):",
            "    set_timesteps(*args, **kwargs)",
            "    pipeline.scheduler.sigmas = pipeline.scheduler.sigmas.double()",
            "pipeline.scheduler.set_timesteps = set_precise_timesteps",
        ]
    return lines


def _arguments(recipe: Recipe, family: Family, weighted: bool) -> dict[str, str]:
    """The pipeline's arguments, as Python writes them."""
    options = dict(recipe.options) or {"guidance_scale": recipe.cfg_scale}
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
    arguments = _encoded(recipe, family)[1] or arguments
    if recipe.image:
        arguments |= {"image": "start", "strength": repr(recipe.strength)}
    elif family.hint != "none":
        arguments |= {"image": "start", "strength": "1.0"}
    if _is_of_films(family):
        arguments["num_frames"] = repr(recipe.frames)
    return {
        **arguments,
        "width": repr(recipe.width),
        "height": repr(recipe.height),
        "num_inference_steps": repr(recipe.steps),
        **{name: repr(value) for name, value in options.items()},
    }


def _is_of_films(family: Family) -> bool:
    import diffusers

    call = getattr(diffusers, family.pipeline).__call__
    return "num_frames" in inspect.signature(call).parameters
