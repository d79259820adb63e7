"""A pre-flight: whether a config can run here, how fast, and how long; then all is thrown away.

It takes real steps on images of the largest size that the training set has, in folders of its own:
the cache, the workspace and the model's files stay as they are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modules.config import ConfigError, Problem, TrainConfig, validate
from modules.training.callbacks import TrainCallbacks
from modules.training.commands import TrainCommands
from modules.training.events import LossUpdate, StatusLine, Warned

if TYPE_CHECKING:
    from modules.data import Item, Scan
    from modules.data.buckets import Bucket

STEPS = 3
"""Steps that are taken; the first, in which memory is laid out, does not count for the speed."""

GIB = 2**30


@dataclass(frozen=True, slots=True)
class DataPlan:
    """A training set as a run would see it."""

    images: int
    sizes: tuple[tuple[str, int], ...]
    """Width x height and number of images, the largest first."""
    steps: int
    """Optimizer steps of the whole run."""
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a pre-flight found. `str` tells it in words."""

    fits: bool
    """Whether the run can start and goes through without saving memory by itself."""
    problems: tuple[Problem, ...]
    """Of the config; errors among them ended the pre-flight."""
    plan: DataPlan | None = None
    seconds_per_step: float | None = None
    total_seconds: float | None = None
    """Of all steps; loading, caching and samples come on top."""
    peak_memory: int | None = None
    """Most bytes that tensors held on the GPU; None on a CPU."""
    device_memory: int | None = None
    """Bytes of the GPU."""
    notes: tuple[str, ...] = ()
    """Warnings of the steps, for instance what was done for want of memory."""
    error: str = ""
    """What ended it; empty if it went through."""
    advice: str = ""

    def __str__(self) -> str:
        lines = [f"{self.error} {self.advice}".strip()] if self.error else []
        lines += [f"{p.field}: {p.message} {p.fix}".strip() for p in self.problems]
        if self.plan:
            sizes = ", ".join(f"{size}: {count}" for size, count in self.plan.sizes[:6])
            more = len(self.plan.sizes) - 6
            sizes += f" and {more} more sizes" if more > 0 else ""
            lines.append(f"{self.plan.images} images ({sizes}), {self.plan.steps} steps")
        if self.seconds_per_step and self.total_seconds:
            lines.append(
                f"{self.seconds_per_step:.3g} s a step, {_span(self.total_seconds)} for all steps"
            )
        if self.peak_memory and self.device_memory:
            used, there = self.peak_memory / GIB, self.device_memory / GIB
            lines.append(f"{used:.1f} of {there:.1f} GiB of GPU memory at the most")
        lines += self.notes
        lines += self.plan.problems[:5] if self.plan else ()
        return "\n".join(["It fits." if self.fits else "It does not run like this.", *lines])


@dataclass
class _Heard:
    """What the steps said."""

    times: list[float] = field(default_factory=list)
    peak: int = 0
    warnings: list[str] = field(default_factory=list)


def preflight(
    config: TrainConfig,
    commands: TrainCommands | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Preflight:
    """Check a config, plan its data, and take a few real steps on its largest images.

    Args:
        config: what would be trained.
        commands: a stop ends it early.
        say: told what it does, in words.
    """
    commands = commands or TrainCommands()
    problems = tuple(validate(config))
    if any(problem.severity == "error" for problem in problems):
        return Preflight(False, problems, error="The settings cannot run.")
    from modules.training.advice import advice_for

    plan = None
    heard = _Heard()
    try:
        say("Pre-flight: looking at the training set")
        found = _scan(config)
        plan, largest, items = _plan(config, found)
        say(f"Pre-flight: {STEPS} steps at {largest}")
        with tempfile.TemporaryDirectory(prefix="ot-preflight-") as folder:
            trial = _trial(config, found, largest, items, Path(folder))
            _take_steps(trial, commands, heard, say)
    except Exception as error:  # noqa: BLE001 - the answer to the question that was asked
        known = isinstance(error, ConfigError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return Preflight(False, problems, plan, error=text, advice=advice_for(error))
    if len(heard.times) < STEPS:
        return Preflight(False, problems, plan, error="It was stopped before it was done.")
    pace = (heard.times[-1] - heard.times[0]) / (len(heard.times) - 1)
    return Preflight(
        fits=not any("Out of memory" in text for text in heard.warnings),
        problems=problems,
        plan=plan,
        seconds_per_step=pace,
        total_seconds=pace * plan.steps,
        peak_memory=heard.peak or None,
        device_memory=_device_memory(config.train_device),
        notes=tuple(heard.warnings),
    )


def _scan(config: TrainConfig) -> Scan:
    from modules.config import ConceptType
    from modules.data import scan
    from modules.data.films import lengths_of

    films = lengths_of(config) is not None
    return scan(config.concepts or [], films=films).only(
        ConceptType.STANDARD, ConceptType.PRIOR_PREDICTION
    )


def _plan(config: TrainConfig, found: Scan) -> tuple[DataPlan, Bucket, list[Item]]:
    """The whole set by size, and the images of the largest.

    Raises:
        ConfigError: if there is nothing to train on, or no epoch would have a batch.
    """
    from modules.config.problems import error
    from modules.data.buckets import Bucket, targets
    from modules.data.films import lengths_of
    from modules.data.schedule import Schedule
    from modules.families import family_for

    if not found.items:
        said = "; ".join(str(problem) for problem in found.problems[:3])
        raise error("concepts", f"There is no image to train on. {said}", "Name another folder.")
    quantum = family_for(config.model_type).pixel_multiple
    lengths = lengths_of(config)
    sizes = []
    for number, item in enumerate(found.items):
        image = found.concepts[item.concept].image
        text = image.resolution_override if image.enable_resolution_override else config.resolution
        allowed = targets(text, quantum, config.aspect_ratio_bucketing)
        size = allowed[number % len(allowed)].nearest(item.width, item.height)
        sizes.append(Bucket(*size, lengths.of(item.film) if item.film and lengths else 1))
    schedule = Schedule(
        _Planned(found, sizes), config.batch_size, config.ot.seed, config.ot.leftovers
    )
    batches = sum(schedule.batches_in(epoch) for epoch in range(config.epochs))
    counts = Counter(sizes)
    ordered = sorted(counts, key=lambda one: (-one.height * one.width * one.frames, -counts[one]))
    plan = DataPlan(
        len(found.items),
        tuple((str(size), counts[size]) for size in ordered),
        max(1, batches // config.gradient_accumulation_steps),
        tuple(str(problem) for problem in found.problems),
    )
    largest = ordered[0]
    items = [item for item, size in zip(found.items, sizes, strict=True) if size == largest]
    return plan, largest, items


class _Planned:
    """What decides the order of batches, before anything is encoded."""

    def __init__(self, found: Scan, sizes: Sequence[Bucket]) -> None:
        from modules.data.schedule import Positions

        self.concepts, self.items = found.concepts, found.items
        self.sizes = sorted(set(sizes))
        variations = [found.concepts[item.concept].image_variations for item in found.items]
        self.images = Positions(variations)
        self.buckets = np.repeat([self.sizes.index(size) for size in sizes], variations).astype(
            np.int16
        )


def _trial(
    config: TrainConfig, found: Scan, largest: Bucket, items: Sequence[Item], folder: Path
) -> TrainConfig:
    """The run's settings over a batch of its largest images, with nothing written elsewhere."""
    from modules.config.enums import BalancingStrategy, PromptSource
    from modules.data.items import CONDITIONING, MASK
    from modules.data.sources import read

    wanted = items[: config.batch_size]
    concepts = []
    for index in sorted({item.concept for item in wanted}):
        concept, place = found.concepts[index], folder / "data" / str(index)
        place.mkdir(parents=True)
        for number, item in enumerate(one for one in wanted if one.concept == index):
            suffix = Path(item.name).suffix
            (place / f"{number}{suffix}").write_bytes(read(item.source, item.name))
            for entry, word in ((item.mask, MASK), (item.conditioning, CONDITIONING)):
                if entry is not None:
                    kept = place / f"{number}{word}{Path(entry.name).suffix}"
                    kept.write_bytes(read(item.source, entry.name))
            if concept.text.prompt_source is PromptSource.SAMPLE:
                text = "\n".join(item.captions)
                (place / f"{number}.txt").write_text(text, encoding="utf-8")
        concepts.append(
            concept.update(
                path=str(place),
                include_subdirectories=False,
                balancing=1.0,
                balancing_strategy=BalancingStrategy.REPEATS,
                image_variations=1,
                text_variations=1,
                **{"image.enable_resolution_override": False},
            )
        )
    quiet: dict[str, Any] = {
        f"{what}_unit": "NEVER" for what in ("sample_after", "backup_after", "save_every")
    }
    return config.update(
        concepts=concepts,
        resolution=f"{largest.width}x{largest.height}",
        epochs=STEPS * config.gradient_accumulation_steps,
        workspace_dir=str(folder / "workspace"),
        cache_dir=str(folder / "cache"),
        output_model_destination=str(folder / "model.safetensors"),
        continue_last_backup=False,
        validation=False,
        tensorboard=False,
        **{"ot.resume_from": ""},
        **quiet,
    )


def _take_steps(
    config: TrainConfig, commands: TrainCommands, heard: _Heard, say: Callable[[str], None]
) -> None:
    """Train until enough steps were heard of, and let go of everything."""
    from modules.training.trainer import GenericTrainer

    def hear(event: object) -> None:
        match event:
            case LossUpdate():
                heard.times.append(time.monotonic())
                heard.peak = event.peak_memory
                if len(heard.times) == STEPS:
                    commands.stop()
            case Warned(text):
                heard.warnings.append(text)
            case StatusLine(text):
                say(f"Pre-flight: {text}")

    trainer = GenericTrainer(config, TrainCallbacks(on_event=hear), commands)
    try:
        trainer.start()
        trainer.train()
    finally:
        trainer.close()


def _device_memory(device: str) -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
