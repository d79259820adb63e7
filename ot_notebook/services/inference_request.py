"""What pictures of one model can be like, and one picture that is asked of it."""

from __future__ import annotations

import inspect
import io
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.config import ConfigError, ModelType, Problem, SampleConfig, TrainConfig
from modules.config.models import MODELS
from ot_notebook.services import inference_weights as weights

if TYPE_CHECKING:
    from modules.families import Family, Parts
    from modules.sampling.start import Start

MAX_PROMPT = 20_000
"""Longest prompt, in characters; models read some 75 to 512 words of it."""

MAX_EDGE = 16_384
MAX_SEED = 2**63 - 1
MAX_FRAMES = 1_025
"""Longest film, in frames: a minute or so, more than any model keeps together."""

NAMES = {"diffusion_steps": "steps", "noise_scheduler": "scheduler"}
"""What a sample definition calls otherwise than `generate`."""

START = ("image", "mask", "strength")
SETTINGS = (
    "negative_prompt",
    "seed",
    "width",
    "height",
    "steps",
    "cfg_scale",
    "scheduler",
    "clip_skip",
    "frames",
    *START,
)
"""What decides a picture, besides the prompt."""

ONE_PROMPT = {
    ModelType.FLUX_DEV_1,
    ModelType.FLUX_FILL_DEV_1,
    ModelType.HUNYUAN_VIDEO,
    ModelType.IDEOGRAM_4,
}
"""Models that read no negative prompt: their guidance was distilled into them."""

STRENGTH = 0.75
"""How much of a given picture goes where nothing else is said."""


@dataclass(frozen=True)
class Request:
    """One picture, checked."""

    definition: SampleConfig
    clip_skip: int = 0
    """Last layers of the text encoders that are left out."""
    image: Path | None = None
    """The picture to begin with."""
    mask: Path | None = None
    """Where to paint in it, in white."""
    strength: float = STRENGTH

    @property
    def steps(self) -> int:
        """Denoising steps that are taken."""
        steps = self.definition.diffusion_steps
        return steps if self.image is None else int(steps * self.strength)

    def with_seed(self, seed: int) -> Request:
        """The same with another seed."""
        return replace(self, definition=self.definition.update(seed=seed))

    def start(self) -> Start | None:
        """The picture to begin with, read.

        Raises:
            ConfigError: if a file is gone or no picture.
        """
        from modules.sampling.start import Start

        if self.image is None:
            return None
        mask = read_picture("mask", self.mask) if self.mask else None
        return Start(read_picture("image", self.image), mask, self.strength)


class PictureRules:
    """What pictures of one model can be like.

    Args:
        config: how a run loads it.
        family: the architecture.
        parts: its networks.
    """

    def __init__(self, config: TrainConfig, family: Family, parts: Parts) -> None:
        facts = MODELS[config.model_type]
        self.model_type, self.title = config.model_type, facts.title
        self.own_scheduler = facts.objective != "diffusion"
        """Whether it samples by a scheduler of its own alone."""
        self.defaults = _defaults(config, parts)
        """What a picture is like where nothing else is asked for."""
        self.multiple = _multiple(config.model_type, parts)
        """Edges of pictures are multiples of this many pixels."""
        self.frame_step = _frame_step(parts)
        """Films have 1 frame above a multiple of so many; 0 for models of single pictures."""
        self.deepest_skip = _deepest_skip(family, parts)
        """Most layers of its text encoders that can be left out."""
        self.clip_skip = max(map(parts.text.skip, family.skipping_encoders), default=0)
        """Those that it was loaded, or is trained, without."""
        self._family = family

    @property
    def reads_negative(self) -> bool:
        """Whether it reads a negative prompt."""
        return self.model_type not in ONE_PROMPT

    def begins_with(self, masked: bool) -> bool:
        """Whether it can begin with a picture, or paint into a mask of one."""
        from modules.sampling.start import picture_pipeline

        return picture_pipeline(self._family, masked) is not None

    def request(self, prompt: str = "", **settings: Any) -> Request:
        """A picture with these settings, and the model's own habits for what is missing.

        Raises:
            ConfigError: for a setting that no picture, or none of this model, can have.
        """
        ours = {value: key for key, value in NAMES.items()}
        if odd := sorted(settings.keys() - set(SETTINGS)):
            raise refused(odd[0], f"{odd[0]} is no setting.", f"Use one of {', '.join(SETTINGS)}.")
        given = {key: value for key, value in settings.items() if value is not None}
        given.setdefault("seed", random_seed())
        if given.get("scheduler") and self.own_scheduler:
            raise refused(
                "scheduler",
                f"scheduler is {settings['scheduler']!r}, but {self.title} has its own.",
                "Leave it out.",
            )
        self._check_prompts(prompt, given.get("negative_prompt", ""))
        self._check_size(given)
        self._check_frames(given)
        self._check_seed(given["seed"])
        skip = self._checked_skip(given.pop("clip_skip", self.clip_skip))
        start = {name: given.pop(name) for name in START if name in given}
        renamed = {ours.get(key, key): value for key, value in given.items()}
        try:
            definition = self.defaults.update(prompt=prompt, **renamed)
        except ConfigError as error:
            raise ConfigError([_renamed(problem) for problem in error.problems]) from error
        weights.check(self._family, definition, skip)
        return self._begun(Request(definition, skip), start)

    def _begun(self, request: Request, start: Mapping[str, Any]) -> Request:
        """With the picture to begin with, if there is one."""
        if "image" not in start:
            for name in start:
                raise refused(name, f"A {name} is given without a picture.", "Give image= as well.")
            return request
        masked = "mask" in start
        if not self.begins_with(masked):
            raise self._cannot_begin(masked)
        strength = start.get("strength", STRENGTH)
        steps = request.definition.diffusion_steps
        if isinstance(strength, bool) or not isinstance(strength, int | float):
            raise refused(
                "strength", f"strength is {strength!r}, but must be a number.", "Use 0.5."
            )
        if not 0 < strength <= 1:  # also not a number
            raise refused(
                "strength",
                f"strength is {strength}, but must lie above 0 and at most at 1.",
                "0.3 keeps most of the picture, 0.8 little of it.",
            )
        if int(strength * steps) < 1:
            raise refused(
                "strength",
                f"strength is {strength:g}, of {steps} steps less than one.",
                f"The nearest is {math.ceil(1000 / steps) / 1000:g}, or take more steps.",
            )
        mask = Path(start["mask"]) if masked else None
        return replace(request, image=Path(start["image"]), mask=mask, strength=float(strength))

    def _cannot_begin(self, masked: bool) -> ConfigError:
        from modules.families import all_families
        from modules.sampling.start import picture_pipeline

        able = {
            MODELS[family.model_types[0]].title
            for family in all_families()
            if picture_pipeline(family, masked)
        }
        name = "mask" if masked else "image"
        what = "cannot paint into a mask" if masked else "draws from text alone"
        nearest = "without the mask" if masked and self.begins_with(False) else "from text"
        return refused(
            name,
            f"{name} is given, but {self.title} {what}.",
            f"Draw {nearest}, or load one of {', '.join(sorted(able))}.",
        )

    def _checked_skip(self, skip: object) -> int:
        if isinstance(skip, bool) or not isinstance(skip, int) or skip < 0:
            raise refused(
                "clip_skip",
                f"clip_skip is {skip!r}, but must be a count of layers.",
                "0 leaves none out.",
            )
        if skip > self.deepest_skip:
            reads = "every layer of its text encoders"
            if self.deepest_skip:
                reads = f"at least one of {self.deepest_skip + 1} layers"
            raise refused(
                "clip_skip",
                f"clip_skip is {skip}, but {self.title} reads {reads}.",
                f"The nearest is {self.deepest_skip}.",
            )
        return skip

    def _check_prompts(self, prompt: object, negative: object) -> None:
        for name, text in (("prompt", prompt), ("negative_prompt", negative)):
            if isinstance(text, str) and len(text) > MAX_PROMPT:
                raise refused(
                    name,
                    f"{name} has {len(text):,} characters, but at most {MAX_PROMPT:,} are taken.",
                    "Shorten it: models read only its beginning.",
                )
        if negative and not self.reads_negative:
            raise refused(
                "negative_prompt",
                f"negative_prompt is given, but {self.title} reads none.",
                "Leave it out.",
            )

    def _check_size(self, given: Mapping[str, Any]) -> None:
        multiple = self.multiple
        most = MAX_EDGE // multiple * multiple
        for name in ("width", "height"):
            edge = given.get(name)
            if isinstance(edge, bool) or not isinstance(edge, int):
                continue  # missing, or for the definition to refuse
            if edge % multiple or not 0 < edge <= MAX_EDGE:
                nearest = min(most, max(multiple, round(edge / multiple) * multiple))
                raise refused(
                    name,
                    f"{name} is {edge}, but {self.title} draws multiples of {multiple} px, "
                    f"{multiple} to {most}.",
                    f"The nearest is {nearest}.",
                )

    def _check_seed(self, seed: object) -> None:
        if isinstance(seed, int) and not -(2**63) <= seed <= MAX_SEED:
            raise refused(
                "seed", f"seed is {seed}, but must lie within 64 bits.", f"At most {MAX_SEED}."
            )

    def _check_frames(self, given: dict[str, Any]) -> None:
        frames, step = given.get("frames", 1), self.frame_step
        if isinstance(frames, bool) or not isinstance(frames, int):
            return  # for the definition to refuse
        if not step and frames != 1:
            raise refused(
                "frames",
                f"frames is {frames}, but {self.title} draws single pictures.",
                "Leave it out.",
            )
        most = (MAX_FRAMES - 1) // step * step + 1 if step else 1
        if not 0 < frames <= most or (step and (frames - 1) % step):
            nearest = min(most, max(1, round((frames - 1) / step) * step + 1))
            raise refused(
                "frames",
                f"frames is {frames}, but {self.title} draws 1 to {most}, 1 above a multiple of "
                f"{step}.",
                f"The nearest is {nearest}.",
            )
        if frames > 1 and "image" in given:
            raise refused(
                "image", f"image is given for a film of {frames} frames.", "Set frames to 1."
            )


def read_picture(name: str, path: Path | io.BytesIO) -> Any:
    """The picture of a setting, as Pillow has it.

    Raises:
        ConfigError: if the file is gone, or holds no picture.
    """
    from PIL import Image

    called = path if isinstance(path, Path) else "a file"
    try:
        with Image.open(path) as opened:
            opened.load()
            return opened.copy()
    except FileNotFoundError as error:
        raise refused(name, f"{called} does not exist.", "Check its path.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise refused(
            name,
            f"{name} is {called}, which is no picture that can be read ({error}).",
            "Give a PNG, JPEG or WebP file.",
        ) from error


def random_seed() -> int:
    """Another one each time, whatever the global generators were seeded with."""
    return random.SystemRandom().randrange(2**31)


def refused(name: str, message: str, fix: str) -> ConfigError:
    """What is wrong with one setting."""
    return ConfigError([Problem(name, "error", message, fix)])


def _defaults(config: TrainConfig, parts: Parts) -> SampleConfig:
    """What pictures of a model are like: as a run samples them, or as its family does.

    A UNet tells the size that it was trained at.
    """
    if config.samples:
        return config.samples[0].update(prompt="", random_seed=False)
    usual = SampleConfig.for_model(config.model_type)
    side = getattr(parts.denoiser.config, "sample_size", None)
    if parts.denoiser_name == "unet" and isinstance(side, int):
        edge = side * parts.pipeline.vae_scale_factor
        usual = usual.update(width=edge, height=edge)
    return usual


def _multiple(model_type: ModelType, parts: Parts) -> int:
    """Its pipeline tells; training's buckets are coarser for some models."""
    processor = getattr(parts.pipeline, "image_processor", None)
    if processor is not None:
        return int(processor.config.vae_scale_factor)
    return MODELS[model_type].pixel_multiple


def _frame_step(parts: Parts) -> int:
    """Frames that a latent of a film stands for; its pipeline takes their number."""
    pipeline = parts.pipeline
    takes = "num_frames" in inspect.signature(type(pipeline).__call__).parameters
    return int(pipeline.vae_scale_factor_temporal) if takes else 0


def _deepest_skip(family: Family, parts: Parts) -> int:
    layers = []
    for name in family.skipping_encoders:
        encoder: Any = getattr(parts.pipeline, name, None)
        if encoder is not None:
            layers.append(int(encoder.config.num_hidden_layers) - 1)
    return max(min(layers, default=0), 0)


def _renamed(problem: Problem) -> Problem:
    """A problem of a sample definition in the words of `generate`."""
    name = NAMES.get(problem.field, problem.field)
    return replace(problem, field=name, message=problem.message.replace(problem.field, name))
