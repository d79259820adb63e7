"""A model to draw with: networks of our own, or those of the run that trains in this kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modules.config import DataType, ModelType, TrainConfig
from modules.config.models import MODELS
from modules.config.paths import resolve
from modules.training.events import ENDED
from ot_notebook.services import inference_weights as weights
from ot_notebook.services.inference_memory import MemoryLadder
from ot_notebook.services.inference_recipe import Options, Recipe, plain_options
from ot_notebook.services.inference_request import PictureRules, Request, refused
from ot_notebook.services.inference_source import Source, find_source
from ot_notebook.services.inference_texts import RememberedTexts
from ot_notebook.services.refusals import CommandRefused
from ot_notebook.services.trainer_service import TrainerService

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from modules.adapters.embeddings import Word, Words
    from modules.adapters.stack import LoadedAdapter
    from modules.config import SampleConfig
    from modules.families import Family, Parts

DTYPES = ("FLOAT_32", "BFLOAT_16", "FLOAT_16")
"""In which weights can be kept to draw with."""

Answer = TypeVar("Answer")
Loras = Sequence[tuple[str | Path, float]]
"""Adapter files, each with its strength: 1 is as it was trained."""
Stack = tuple[tuple[Path, float], ...]
"""The same, checked."""
Embeddings = Sequence[str | Path | tuple[str, str | Path]]
"""Embedding files, each with the word that prompts call it by, or called by its own name."""


class InferenceModel:
    """One model, with the adapters that were read for it.

    Args:
        source: as it was asked for.
        name: for people.
        config: how a run loads it.
        owner: the networks, or the service whose run has them.
        dtype: in which its weights are kept, where they are our own.
    """

    def __init__(
        self,
        source: str,
        name: str,
        config: TrainConfig,
        owner: tuple[Family, Parts] | TrainerService,
        dtype: DataType | None = None,
    ) -> None:
        self.source, self.name, self.model_type = source, name, config.model_type
        self.hint = MODELS[config.model_type].hint
        """What it reads of a picture itself."""
        self._owner = owner
        self._dtype = dtype.value if dtype is not None else ""
        self._adapters: dict[Path, LoadedAdapter] = {}
        self.embeddings: tuple[tuple[str, Path], ...] = ()
        """Words that prompts may hold, and their files."""
        self._embeddings: tuple[Word, ...] = ()
        self._taught: tuple[tuple[Word, ...], Words] | None = None
        self._texts = RememberedTexts()
        self._told: Options = ()
        self.memory = MemoryLadder(owned=not isinstance(owner, TrainerService))
        """What was given up for want of memory."""
        rules = self.use(lambda *networks: PictureRules(config, *networks), _never)
        if rules is None:
            raise CommandRefused("The run ended before its model could be used.")
        self.rules = rules
        """What its pictures can be like."""

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
        if isinstance(self._owner, TrainerService):
            return _between_steps(self._owner, self._fitting(action), stopped)
        return self._fitting(action)(*self._owner)

    def _fitting(
        self, action: Callable[[Family, Parts], Answer]
    ) -> Callable[[Family, Parts], Answer]:
        """The same with less memory where it does not fit."""

        def fit(family: Family, parts: Parts) -> Answer:
            return self.memory.attempt(parts, lambda: action(family, parts))

        return fit

    def draw(
        self,
        family: Family,
        parts: Parts,
        requests: Sequence[Request],
        stack: Stack,
        **watch: Any,
    ) -> list[list[Image]] | None:
        """Pictures side by side, or the first alone for want of memory; None if stopped.

        Each is a list: of one, or of all frames of a film.

        Args:
            family: as `use` gives it.
            parts: the same.
            requests: alike but for their seeds.
            stack: adapters to lay over the networks.
            watch: report, should_stop and preview, as for `sample_batch`.
        """
        from modules.adapters.stack import applied
        from modules.sampling.sampler import sample_batch

        request = requests[0]
        adapters = [(self.adapter(path, family, parts), at) for path, at in stack]
        with (
            applied(family, parts, adapters),
            self._skipping(family, parts, request),
            self._reading(family, parts, adapters),
        ):
            reading, encoded = self._read(family, parts, request, adapters)
            seeds = self.memory.share([one.definition.seed for one in requests])
            given = {"start": request.start(), "encoded": encoded, **watch}
            images = sample_batch(reading, parts, request.definition, seeds, **given)
        if images is None:
            return None
        return [images] if request.definition.frames > 1 else [[image] for image in images]

    def _read(
        self,
        family: Family,
        parts: Parts,
        request: Request,
        adapters: Sequence[tuple[LoadedAdapter, float]],
    ) -> tuple[Family, dict[str, Any]]:
        """The family to draw with, and weighted prompts; our own networks remember texts."""
        definition = request.definition
        reading = copy.copy(family)

        def sample_arguments(parts: Parts, definition: SampleConfig) -> dict[str, Any]:
            arguments = type(family).sample_arguments(reading, parts, definition)
            self._told = plain_options(arguments)
            return arguments

        reading.sample_arguments = sample_arguments  # type: ignore[method-assign]
        if isinstance(self._owner, TrainerService):  # what it reads changes with each step
            return reading, weights.encoded(family, parts, definition)
        changing = tuple(
            (adapter.path, adapter.version, at)
            for adapter, at in adapters
            if any(layer.startswith("text_encoder") for layer in adapter.layers)
        )
        self._texts.reading(reading, (changing, request.clip_skip))
        key = ("weights", definition.prompt, definition.negative_prompt)
        encoded = self._texts.once(key, lambda: weights.encoded(family, parts, definition))
        return reading, encoded

    def together(self, request: Request, most: int) -> int:
        """How many of such pictures are drawn side by side, at most so many.

        Where pictures are read as well, pipelines draw their noise from one generator for all.
        """
        one = request.definition.frames == 1 and not self.memory.apart
        return most if one and request.image is None and self.hint == "none" else 1

    @contextmanager
    def _skipping(self, family: Family, parts: Parts, request: Request) -> Iterator[None]:
        """Inside the block text is encoded without so many of its encoders' last layers."""
        own = parts.text
        if request.clip_skip != self.rules.clip_skip:
            skips = dict.fromkeys(family.skipping_encoders, request.clip_skip)
            parts.text = replace(own, layer_skip=skips)
        try:
            yield
        finally:
            parts.text = own

    # ---------------------------------------------------------------- adapters and embeddings

    def teach(self, embeddings: Embeddings) -> None:
        """Let prompts hold these words from now on.

        Raises:
            ConfigError: for what is no file, or no pair of word and file.
            AdapterError: if a file is gone, damaged or made for another model.
        """
        files = [_named(given) for given in listed(embeddings)]
        if not files:
            self._embeddings, self.embeddings = (), ()
            return
        from modules.adapters.embedding_files import as_word, read_embedding

        found = [(word, path, read_embedding(path)) for word, path in files]

        def read(family: Family, parts: Parts) -> tuple[Word, ...]:
            return tuple(
                as_word(word, tensors, family, parts, str(path)) for word, path, tensors in found
            )

        self._embeddings = self.use(read, _never) or ()
        self.embeddings = tuple(files)

    @contextmanager
    def _reading(
        self, family: Family, parts: Parts, adapters: Sequence[tuple[LoadedAdapter, float]]
    ) -> Iterator[None]:
        """Inside the block prompts may hold the model's words, and those of its adapters.

        Networks of our own keep them until others are wanted, as teaching takes a second.
        """
        from modules.adapters.embeddings import Words

        brought = [word for adapter, at in adapters if at for word in adapter.words]
        wanted = tuple({word.placeholder: word for word in [*self._embeddings, *brought]}.values())
        if self._taught is not None and [*map(id, self._taught[0])] != [*map(id, wanted)]:
            self._taught[1].remove()
            self._taught = None
            self._texts.forget()
        if wanted and self._taught is None:
            self._texts.forget()
            self._taught = (wanted, Words(family, parts, wanted))
        try:
            yield
        finally:
            if self._taught is not None and isinstance(self._owner, TrainerService):
                self._taught[1].remove()
                self._taught = None

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

    def recipe(self, request: Request, stack: Stack) -> Recipe:
        """Everything that decides a picture of this model."""
        begun = {} if request.image is None else {"strength": request.strength}
        return Recipe.of(
            request.definition,
            model=self.source,
            model_type=self.model_type.value,
            loras=tuple((str(path), strength) for path, strength in stack),
            embeddings=tuple((word, str(path)) for word, path in self.embeddings),
            own_scheduler=self.rules.own_scheduler,
            clip_skip=request.clip_skip,
            image=str(request.image or ""),
            mask=str(request.mask or ""),
            dtype=self._dtype,
            options=self._told,
            **begun,
        )

    def notes(self, request: Request, stack: Stack) -> Iterator[str]:
        """What of a request had no effect, in words."""
        definition = request.definition
        if self.memory.taken:
            yield f"For want of memory {' and '.join(self.memory.taken)}: this is slower."
        for path, _ in stack:
            if lost := self._adapters[path].unplaced:
                yield f"{path.name}: {len(lost)} keys have no place here, such as {lost[0]}."
        if isinstance(self._owner, TrainerService):
            return
        family, parts = self._owner
        if weights.written(definition.prompt):
            if not weights.readable(family):
                yield f"{self.rules.title} reads the weights in the prompt as words."
            return
        tokenizer = getattr(parts.pipeline, "tokenizer", None)
        most = getattr(tokenizer, "model_max_length", 0)
        if tokenizer is not None and family.denoiser == "unet" and 0 < most < 1000:
            count = len(tokenizer(definition.prompt, verbose=False).input_ids)
            if count > most:
                yield f"The prompt has {count} tokens; the model has read the first {most}."


def find_model(
    model: object,
    model_type: ModelType | str | None,
    dtype: DataType | str | None,
    device: str | None,
    offload: bool,
) -> tuple[Callable[[], InferenceModel], Source]:
    """Find a model; gives what loads networks of our own, and where they come from.

    Raises:
        ConfigError: if there is no such model, or it cannot be had in this way.
    """
    import torch

    place = _place(device)
    kept = DataType.FLOAT_32
    if dtype is not None:
        if str(getattr(dtype, "value", dtype)) not in DTYPES:
            raise refused("dtype", f"dtype is {dtype!r}.", f"Use one of {', '.join(DTYPES)}.")
        kept = DataType(dtype)
    elif place.type == "cuda":
        kept = DataType.BFLOAT_16 if torch.cuda.is_bf16_supported() else DataType.FLOAT_16
    source = find_source(model, model_type, kept)
    return lambda: _opened(source, kept, place, offload), source


def _opened(source: Source, kept: DataType, place: torch.device, offload: bool) -> InferenceModel:
    """Load the networks of a source.

    Raises:
        ConfigError: if they cannot be loaded.
    """
    from modules.families import family_for

    family = family_for(source.config.model_type)
    parts = family.load(source.config)
    for network in parts.modules().values():
        network.to(place)
        network.requires_grad_(False)
        network.eval()
    name = str(source.whole or source.config.base_model_name)
    opened = InferenceModel(name, source.name, source.config, (family, parts), kept)
    if offload:
        opened.memory.offload(parts)
    return opened


def _place(device: str | None) -> torch.device:
    """The device, if it is there.

    Raises:
        ConfigError: if there is none of that name.
    """
    import torch

    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise refused(
            "device", f"device is {device!r}, which is not there ({reason}).", 'Use "cpu".'
        ) from error
    return place


def live_model(service: TrainerService) -> InferenceModel:
    """The model that a service's run trains.

    Raises:
        CommandRefused: if no run is taking steps.
    """
    service.flush()
    service.use_model(lambda _family, _parts: None, asked='load("live")')  # or it is refused
    run = service.run
    return InferenceModel("live", f"live, {run.id}", run.config, service)


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

    def failed() -> None:
        if not answer.done() and answer.set_running_or_notify_cancel():
            message = "The run could not lend its model: its messages say why, and it goes on."
            answer.set_exception(CommandRefused(message))

    ended = service.use_model(use, failed, asked="use of the live model")
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


def listed(embeddings: Embeddings) -> list[Any]:
    """What is given for embeddings, as a list.

    Raises:
        ConfigError: for a single file: its letters are no files.
    """
    if isinstance(embeddings, str | Path):
        raise refused("embeddings", f"embeddings is {str(embeddings)!r}.", "Give a list of files.")
    return list(embeddings)


def _named(given: str | Path | tuple[str, str | Path]) -> tuple[str, Path]:
    """A word and its file."""
    try:
        word, path = (Path(given).stem, given) if isinstance(given, str | Path) else given
        resolved = Path(resolve(str(path))).absolute()
    except (TypeError, ValueError) as error:
        fix = 'Each is a file, or a pair: ("<cat>", "cat.safetensors").'
        raise refused("embeddings", f"embeddings holds {given!r}.", fix) from error
    if not isinstance(word, str) or not word.strip():
        raise refused("embeddings", f"The word of {path} is {word!r}.", 'Use one such as "<cat>".')
    return word, resolved


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
