"""A model to draw with: networks of our own, or those of the run that trains in this kernel."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modules.config import ConfigError, DataType, ModelType, Problem, SampleConfig, TrainConfig
from modules.config.models import MODELS
from modules.config.paths import resolve
from modules.training.events import ENDED
from ot_notebook.services.inference_recipe import Recipe
from ot_notebook.services.inference_source import find_source
from ot_notebook.services.refusals import CommandRefused
from ot_notebook.services.trainer_service import TrainerService

if TYPE_CHECKING:
    from modules.adapters.stack import LoadedAdapter
    from modules.families import Family, Parts

Answer = TypeVar("Answer")
Loras = Sequence[tuple[str | Path, float]]
"""Adapter files, each with its strength: 1 is as it was trained."""
Stack = tuple[tuple[Path, float], ...]
"""The same, checked."""

MAX_PROMPT = 20_000
"""Longest prompt, in characters; models read some 75 to 512 words of it."""

MAX_EDGE = 16_384
NAMES = {"diffusion_steps": "steps", "noise_scheduler": "scheduler"}
"""What a sample definition calls otherwise than `generate`."""

SETTINGS = ("negative_prompt", "seed", "width", "height", "steps", "cfg_scale", "scheduler")
"""What decides a picture, besides the prompt."""

ONE_PROMPT = {
    ModelType.FLUX_DEV_1,
    ModelType.FLUX_FILL_DEV_1,
    ModelType.HUNYUAN_VIDEO,
    ModelType.IDEOGRAM_4,
}
"""Models that read no negative prompt: their guidance was distilled into them."""


class InferenceModel:
    """One model, with the adapters that were read for it.

    Args:
        source: as it was asked for.
        name: for people.
        config: how a run loads it.
        owner: the networks, or the service whose run has them.
    """

    def __init__(
        self,
        source: str,
        name: str,
        config: TrainConfig,
        owner: tuple[Family, Parts] | TrainerService,
    ) -> None:
        self.source, self.name, self.model_type = source, name, config.model_type
        self.title = MODELS[config.model_type].title
        self.own_scheduler = MODELS[config.model_type].objective == "flow"
        """Whether it samples by a scheduler of its own alone."""
        self._owner = owner
        self._adapters: dict[Path, LoadedAdapter] = {}
        parts = None if isinstance(owner, TrainerService) else owner[1]
        self.defaults = _defaults(config, parts)
        """What a picture is like where nothing else is asked for."""
        self.multiple = _multiple(config.model_type, parts)
        """Edges of pictures are multiples of this many pixels."""

    # ---------------------------------------------------------------- networks

    def stopping(self) -> bool:
        """Whether the run that has the networks ends."""
        live = isinstance(self._owner, TrainerService)
        return live and self._owner.state in ("stopping", *ENDED)  # type: ignore[union-attr]

    def use(
        self, action: Callable[[Family, Parts], Answer], stopped: Callable[[], bool]
    ) -> Answer | None:
        """Do something with the networks, on the thread that they belong to.

        Returns:
            What `action` gave; None if `stopped` came true while it waited for the run.

        Raises:
            CommandRefused: if the networks are those of a run that takes no steps.
            MemoryError: if the device has not enough of it.
        """
        import torch

        try:
            if isinstance(self._owner, TrainerService):
                return _between_steps(self._owner, action, stopped)
            return action(*self._owner)
        except torch.OutOfMemoryError as error:
            gc.collect()
            torch.cuda.empty_cache()
            raise MemoryError(
                "The picture does not fit into the device's memory. Draw it smaller, load the "
                'model with dtype="BFLOAT_16", or end what else uses the device.'
            ) from error

    # ---------------------------------------------------------------- adapters

    def fit(self, loras: Loras) -> Stack:
        """The adapters as the model takes them.

        Raises:
            ConfigError: for what is no pair of path and strength.
            AdapterError: if a file is gone, damaged or made for another model.
        """
        stack = tuple(map(_pair, loras))
        unread = [path for path, _ in stack if not self._is_read(path)]
        if unread:
            self.use(lambda *networks: [self.adapter(path, *networks) for path in unread], _never)
        return stack

    def adapter(self, path: Path, family: Family, parts: Parts) -> LoadedAdapter:
        """An adapter as its file is now; read anew only where that has changed."""
        from modules.adapters.stack import load_adapter

        if not self._is_read(path):
            self._adapters.pop(path, None)
            self._adapters[path] = load_adapter(path, family, parts)
        return self._adapters[path]

    def _is_read(self, path: Path) -> bool:
        held = self._adapters.get(path)
        return held is not None and path.is_file() and held.version == path.stat().st_mtime_ns

    # ---------------------------------------------------------------- settings

    def definition(self, prompt: str = "", **settings: Any) -> SampleConfig:
        """The settings of a picture, checked, with the model's own habits for what is missing.

        Raises:
            ConfigError: for a setting that no picture, or none of this model, can have.
        """
        ours = {value: key for key, value in NAMES.items()}
        if odd := sorted(settings.keys() - set(SETTINGS)):
            raise refused(odd[0], f"{odd[0]} is no setting.", f"Use one of {', '.join(SETTINGS)}.")
        if settings.get("seed") is None:
            settings["seed"] = random_seed()
        if settings.get("scheduler") and self.own_scheduler:
            raise refused(
                "scheduler",
                f"scheduler is {settings['scheduler']!r}, but {self.title} has its own.",
                "Leave it out.",
            )
        given = {ours.get(key, key): value for key, value in settings.items() if value is not None}
        self._check_prompts(prompt, given.get("negative_prompt", ""))
        self._check_size(given)
        try:
            return self.defaults.update(prompt=prompt, **given)
        except ConfigError as error:
            raise ConfigError([_renamed(problem) for problem in error.problems]) from error

    def recipe(self, definition: SampleConfig, stack: Stack) -> Recipe:
        """Everything that decides a picture of this model."""
        return Recipe.of(
            definition,
            model=self.source,
            model_type=self.model_type.value,
            loras=tuple((str(path), strength) for path, strength in stack),
            own_scheduler=self.own_scheduler,
        )

    def notes(self, definition: SampleConfig, stack: Stack) -> Iterator[str]:
        """What of a request had no effect, in words."""
        for path, _ in stack:
            if lost := self._adapters[path].unplaced:
                yield f"{path.name}: {len(lost)} keys have no place here, such as {lost[0]}."
        if isinstance(self._owner, TrainerService):
            return
        family, parts = self._owner
        tokenizer = getattr(parts.pipeline, "tokenizer", None)
        most = getattr(tokenizer, "model_max_length", 0)
        if tokenizer is not None and family.denoiser == "unet" and 0 < most < 1000:
            count = len(tokenizer(definition.prompt, verbose=False).input_ids)
            if count > most:
                yield f"The prompt has {count} tokens; the model has read the first {most}."

    def _check_prompts(self, prompt: object, negative: object) -> None:
        for name, text in (("prompt", prompt), ("negative_prompt", negative)):
            if isinstance(text, str) and len(text) > MAX_PROMPT:
                raise refused(
                    name,
                    f"{name} has {len(text):,} characters, but at most {MAX_PROMPT:,} are taken.",
                    "Shorten it: models read only its beginning.",
                )
        if negative and self.model_type in ONE_PROMPT:
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


def open_model(
    model: object,
    model_type: ModelType | str | None,
    dtype: DataType | str | None,
    device: str | None,
) -> tuple[InferenceModel, Path | None]:
    """Load networks of our own; with them the adapter that a run has trained on top of them.

    Raises:
        ConfigError: if there is no such model, or it cannot be loaded.
    """
    import torch

    from modules.families import family_for

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kept = DataType.FLOAT_32
    if dtype is not None:
        kept = TrainConfig().update(train_dtype=dtype).train_dtype
    elif place.type == "cuda":
        kept = DataType.BFLOAT_16 if torch.cuda.is_bf16_supported() else DataType.FLOAT_16
    source = find_source(model, model_type, kept)
    family = family_for(source.config.model_type)
    parts = family.load(source.config)
    for network in parts.modules().values():
        network.to(place)
        network.requires_grad_(False)
        network.eval()
    name = source.config.base_model_name
    return InferenceModel(name, source.name, source.config, (family, parts)), source.adapter


def live_model(service: TrainerService) -> InferenceModel:
    """The model that a service's run trains.

    Raises:
        CommandRefused: if no run is taking steps.
    """
    service.flush()
    service.use_model(lambda _family, _parts: None)
    run = service.run
    return InferenceModel("live", f"live, {run.id}", run.config, service)


def random_seed() -> int:
    """Another one each time, whatever the global generators were seeded with."""
    return random.SystemRandom().randrange(2**31)


def refused(name: str, message: str, fix: str) -> ConfigError:
    """What is wrong with one setting."""
    return ConfigError([Problem(name, "error", message, fix)])


def _between_steps(
    service: TrainerService,
    action: Callable[[Family, Parts], Answer],
    stopped: Callable[[], bool],
) -> Answer | None:
    """Do something with the networks that train, at the next step boundary."""
    answer: Future[Answer] = Future()

    def use(family: Family, parts: Parts) -> None:
        if answer.set_running_or_notify_cancel():
            try:
                answer.set_result(action(family, parts))
            except Exception as error:  # noqa: BLE001 - raised where it was asked for
                answer.set_exception(error)

    ended = service.use_model(use)
    while True:
        over = ended.is_set()
        try:
            return answer.result(timeout=0.05)
        except FutureTimeout:
            if answer.done():
                raise  # the action itself timed out
        if stopped() and answer.cancel():
            return None
        if over:
            raise CommandRefused("The run ended before its model could be used.")


def _never() -> bool:
    return False


def _defaults(config: TrainConfig, parts: Parts | None) -> SampleConfig:
    """What pictures of a model are like: as a run samples them, or as its family does.

    A UNet tells the size that it was trained at.
    """
    if config.samples:
        return config.samples[0].update(prompt="", random_seed=False)
    usual = SampleConfig.for_model(config.model_type)
    side = getattr(parts.denoiser.config, "sample_size", None) if parts else None
    if parts is not None and parts.denoiser_name == "unet" and isinstance(side, int):
        edge = side * parts.pipeline.vae_scale_factor
        usual = usual.update(width=edge, height=edge)
    return usual


def _multiple(model_type: ModelType, parts: Parts | None) -> int:
    """Its pipeline tells; training's buckets are coarser for some models."""
    processor = getattr(parts.pipeline, "image_processor", None) if parts else None
    if processor is not None:
        return int(processor.config.vae_scale_factor)
    return MODELS[model_type].pixel_multiple


def _pair(given: tuple[str | Path, float]) -> tuple[Path, float]:
    try:
        path, strength = given
        number = float(strength)
    except (TypeError, ValueError) as error:
        raise refused(
            "loras", f"loras holds {given!r}.", "Each is a pair: (path, strength)."
        ) from error
    if not -100 <= number <= 100:  # also not a number
        raise refused(
            "loras",
            f"The strength of {Path(path).name} is {strength}, but must lie between -100 and 100.",
            "1 is as it was trained.",
        )
    return Path(resolve(str(path))).absolute(), number


def _renamed(problem: Problem) -> Problem:
    """A problem of a sample definition in the words of `generate`."""
    name = NAMES.get(problem.field, problem.field)
    return replace(problem, field=name, message=problem.message.replace(problem.field, name))
