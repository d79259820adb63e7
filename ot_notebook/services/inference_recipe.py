"""The settings of one picture: how they are checked, written into the picture, and read back."""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from modules.config import DataType, NoiseScheduler, SampleConfig
from modules.config.enums import ModelType

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

JSON_CHUNK, TEXT_CHUNK = "ot_notebook", "parameters"
"""PNG text chunks: our JSON, and what the AUTOMATIC1111 web UI and its kin write and read."""

MAX_TEXT = 1_000_000
"""Longest chunk that is read, in characters: a picture of someone else may hold anything."""

SAMPLERS = {
    NoiseScheduler.DDIM: "DDIM",
    NoiseScheduler.EULER: "Euler",
    NoiseScheduler.EULER_A: "Euler a",
    NoiseScheduler.DPMPP: "DPM++ 2M",
    NoiseScheduler.DPMPP_SDE: "DPM++ 2M SDE",
    NoiseScheduler.UNIPC: "UniPC",
    NoiseScheduler.EULER_KARRAS: "Euler Karras",
    NoiseScheduler.DPMPP_KARRAS: "DPM++ 2M Karras",
    NoiseScheduler.DPMPP_SDE_KARRAS: "DPM++ 2M SDE Karras",
    NoiseScheduler.UNIPC_KARRAS: "UniPC Karras",
}
"""What the web UI calls each scheduler; "Karras" stands apart there, as the schedule type."""

PLAIN = (
    "prompt",
    "negative_prompt",
    "seed",
    "width",
    "height",
    "steps",
    "cfg_scale",
    "clip_skip",
)
"""Settings that every recipe has."""

Options = tuple[tuple[str, Any], ...]

LORA_TAG = re.compile(r"\s*<lora:([^:<>]+):(-?[\d.]+)>")
PAIR = re.compile(r'\s*([\w /]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one picture."""

    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    steps: int
    cfg_scale: float
    scheduler: str
    """A `NoiseScheduler`; empty for a flow model, which has its own."""
    model: str
    """As it was given to `load`."""
    model_type: str
    loras: tuple[tuple[str, float], ...] = ()
    """Files and strengths."""
    clip_skip: int = 0
    """Last layers of the text encoders that were left out."""
    image: str = ""
    """The picture that it began with, as the gallery keeps it."""
    mask: str = ""
    """Where in it was painted."""
    strength: float = 1.0
    """How much of the picture was to go."""
    embeddings: tuple[tuple[str, str], ...] = ()
    """Words that the prompt may hold, and their files."""
    frames: int = 1
    """Pictures of a film."""
    dtype: str = ""
    """A `DataType`, in which the weights were kept; empty where that is not known."""
    options: Options = ()
    """What the pipeline was told of guidance and texts, by the names of its arguments."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        pairs = {name: list(map(list, getattr(self, name))) for name in ("loras", "embeddings")}
        return {**asdict(self), **pairs, "options": dict(self.options)}

    def settings(self) -> dict[str, Any]:
        """What `generate` takes, but for the LoRAs."""
        chosen = {name: getattr(self, name) for name in PLAIN}
        if self.scheduler:
            chosen["scheduler"] = self.scheduler
        return {
            **chosen,
            "frames": self.frames if self.frames > 1 else None,
            "image": self.image or None,
            "mask": self.mask or None,
            "strength": self.strength if self.image else None,
        }

    @classmethod
    def from_dict(cls, data: object) -> Recipe:
        """A recipe from plain values.

        Raises:
            ValueError: if it lacks something, or holds a value that no picture can have.
        """
        if not isinstance(data, Mapping):
            raise ValueError("these are no settings of a picture")
        try:
            definition = SampleConfig.parse(
                {
                    "prompt": data["prompt"],
                    "negative_prompt": data.get("negative_prompt", ""),
                    "seed": data["seed"],
                    "width": data["width"],
                    "height": data["height"],
                    "diffusion_steps": data["steps"],
                    "cfg_scale": data["cfg_scale"],
                    "noise_scheduler": data.get("scheduler") or NoiseScheduler.DDIM,
                    "text_encoder_1_layer_skip": data.get("clip_skip", 0),
                    "frames": data.get("frames", 1),
                }
            )
            kind = data.get("model_type", "")
            loras = tuple((str(path), float(weight)) for path, weight in data.get("loras", ()))
            return cls.of(
                definition,
                model=str(data.get("model", "")),
                model_type=ModelType(kind).value if kind else "",
                loras=loras,
                own_scheduler=not data.get("scheduler"),
                clip_skip=definition.text_encoder_1_layer_skip,
                image=str(data.get("image", "")),
                mask=str(data.get("mask", "")),
                strength=float(data.get("strength", 1.0)),
                embeddings=tuple((str(w), str(path)) for w, path in data.get("embeddings", ())),
                dtype=DataType(data["dtype"]).value if data.get("dtype") else "",
                options=plain_options(dict(data.get("options", {}))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"these are no settings of a picture: {error}") from error

    @classmethod
    def of(
        cls,
        definition: SampleConfig,
        *,
        model: str,
        model_type: str,
        loras: tuple[tuple[str, float], ...],
        own_scheduler: bool,
        clip_skip: int = 0,
        image: str = "",
        mask: str = "",
        strength: float = 1.0,
        embeddings: tuple[tuple[str, str], ...] = (),
        dtype: str = "",
        options: Options = (),
    ) -> Recipe:
        """The recipe of a picture that a sample definition describes."""
        return cls(
            prompt=definition.prompt,
            negative_prompt=definition.negative_prompt,
            seed=definition.seed,
            width=definition.width,
            height=definition.height,
            steps=definition.diffusion_steps,
            cfg_scale=definition.cfg_scale,
            scheduler="" if own_scheduler else definition.noise_scheduler.value,
            model=model,
            model_type=model_type,
            loras=loras,
            clip_skip=clip_skip,
            image=image,
            mask=mask,
            strength=strength,
            embeddings=embeddings,
            frames=definition.frames,
            dtype=dtype,
            options=options,
        )

    def as_sample(self) -> SampleConfig:
        """A sample definition that draws the same during training."""
        given = {
            "noise_scheduler": self.scheduler or NoiseScheduler.DDIM,
            "sample_inpainting": bool(self.image and self.mask),
            "base_image_path": self.image,
            "mask_image_path": self.mask,
        }
        return SampleConfig.parse(
            {
                "prompt": self.prompt,
                "negative_prompt": self.negative_prompt,
                "seed": self.seed,
                "width": self.width,
                "height": self.height,
                "diffusion_steps": self.steps,
                "cfg_scale": self.cfg_scale,
                "frames": self.frames,
                **given,
            }
        )

    def as_web_ui(self) -> str:
        """The settings as the AUTOMATIC1111 web UI writes and reads them."""
        tags = "".join(f" <lora:{Path(path).stem}:{weight:g}>" for path, weight in self.loras)
        lines = [f"{self.prompt}{tags}"]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        pairs: dict[str, Any] = {"Steps": self.steps}
        if self.scheduler:
            name = SAMPLERS[NoiseScheduler(self.scheduler)]
            pairs["Sampler"] = name.removesuffix(" Karras")
            pairs["Schedule type"] = "Karras" if name.endswith(" Karras") else "Automatic"
        pairs |= {
            "CFG scale": f"{self.cfg_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": _quoted(Path(self.model).stem),
            **({"Denoising strength": f"{self.strength:g}"} if self.image else {}),
            **({"Clip skip": self.clip_skip + 1} if self.clip_skip else {}),  # it counts from 1
            "Version": "ot_notebook",
        }
        return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in pairs.items())])

    def png_info(self) -> PngInfo:
        """Both chunks, for `Image.save(..., pnginfo=...)`."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text(TEXT_CHUNK, self.as_web_ui())
        info.add_text(JSON_CHUNK, json.dumps(self.to_dict()))
        return info


def plain_options(arguments: Mapping[str, Any]) -> Options:
    """Those of a pipeline's arguments that are numbers or words, but for what a recipe has itself.

    Names are those of arguments and numbers are finite, whatever a stranger's picture holds.
    """
    own = {"prompt", "negative_prompt", "width", "height", "num_frames", "strength"}
    plain = (bool, int, float, str, type(None))
    return tuple(
        (name, value)
        for name, value in sorted(arguments.items())
        if is_name(name) and name not in own and isinstance(value, plain)
        if not isinstance(value, float) or math.isfinite(value)
    )


def is_name(text: object) -> bool:
    """Whether this can stand in code as the name of something."""
    return isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text)


def read_recipe(path: Path | str | BinaryIO, name: str = "") -> Recipe:
    """The settings that a PNG holds: ours, or the AUTOMATIC1111 web UI's.

    Args:
        path: the file, or what it holds.
        name: how to call it, where there is no path.

    Raises:
        OSError: if there is no such picture.
        ValueError: if it holds no settings, or damaged ones.
    """
    from PIL import Image, UnidentifiedImageError

    called = name or path

    try:
        with Image.open(path) as picture:
            chunks = {key: value for key, value in picture.info.items() if isinstance(value, str)}
    except UnidentifiedImageError as error:
        raise ValueError(f"{called} is no picture.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{called} is too large ({error}).") from error
    for chunk in (JSON_CHUNK, TEXT_CHUNK):
        if len(chunks.get(chunk, "")) > MAX_TEXT:
            raise ValueError(
                f"{called} holds {len(chunks[chunk])} characters of settings: too many."
            )
    try:
        if JSON_CHUNK in chunks:
            return Recipe.from_dict(json.loads(chunks[JSON_CHUNK]))
        if TEXT_CHUNK in chunks:
            return from_web_ui(chunks[TEXT_CHUNK])
    except RecursionError as error:
        raise ValueError(f"{called} holds settings that are nested without end.") from error
    except ValueError as error:
        raise ValueError(f"{called}: {str(error).rstrip('.')}.") from error
    raise ValueError(f"{called} holds no settings. Use a PNG that was written here or by a web UI.")


def from_web_ui(text: str) -> Recipe:
    """Read what `Recipe.as_web_ui` and the AUTOMATIC1111 web UI write.

    Raises:
        ValueError: if it is something else.
    """
    head, _, last = text.strip().rpartition("\n")
    if "Steps:" not in last:
        raise ValueError("these are no settings of a web UI: the last line has no Steps")
    prompt, _, negative = head.partition("\nNegative prompt: ")
    if head.startswith("Negative prompt: "):
        prompt, negative = "", head.removeprefix("Negative prompt: ")
    pairs = {key.strip(): value.strip('" ') for key, value in PAIR.findall(last)}
    width, _, height = pairs.get("Size", "").partition("x")
    return Recipe.from_dict(
        {
            "prompt": LORA_TAG.sub("", prompt),
            "negative_prompt": negative,
            "seed": _number(pairs, "Seed", int),
            "width": _number({"Size": width}, "Size", int),
            "height": _number({"Size": height}, "Size", int),
            "steps": _number(pairs, "Steps", int),
            "cfg_scale": _number(pairs, "CFG scale", float),
            "scheduler": _scheduler(pairs),
            "model": pairs.get("Model", ""),
            "loras": LORA_TAG.findall(prompt),
            "clip_skip": int(_number({"Clip skip": "1", **pairs}, "Clip skip", int)) - 1,
        }
    )


def _scheduler(pairs: Mapping[str, str]) -> str:
    name = pairs.get("Sampler", "")
    if pairs.get("Schedule type") == "Karras" and not name.endswith(" Karras"):
        name += " Karras"
    for scheduler, words in SAMPLERS.items():
        if name == words:
            return scheduler.value
    if not name:
        return ""
    raise ValueError(f"Sampler is {name!r}, which has no counterpart here")


def _number(pairs: Mapping[str, str], key: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(pairs[key])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{key} is {pairs.get(key)!r}, but must be a number") from error


def _quoted(text: str) -> str:
    return json.dumps(text) if re.search(r'[,:"\n]', text) else text
