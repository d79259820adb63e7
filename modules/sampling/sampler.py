"""Samples: diffusers' own pipeline on the live networks, with nothing of the run disturbed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from modules.config import NoiseScheduler, SampleConfig
from modules.families.base import SCHEDULED, Family, Parts
from modules.sampling.preview import Previewer, denoised
from modules.sampling.start import (
    Start,
    beside,
    picture_pipeline,
    start_arguments,
    vae_as_it_is,
)

SCHEDULERS: dict[NoiseScheduler, tuple[str, dict[str, Any]]] = {
    NoiseScheduler.DDIM: ("DDIMScheduler", {}),
    NoiseScheduler.EULER: ("EulerDiscreteScheduler", {}),
    NoiseScheduler.EULER_A: ("EulerAncestralDiscreteScheduler", {}),
    NoiseScheduler.DPMPP: ("DPMSolverMultistepScheduler", {}),
    NoiseScheduler.DPMPP_SDE: (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    NoiseScheduler.UNIPC: ("UniPCMultistepScheduler", {}),
    NoiseScheduler.EULER_KARRAS: ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    NoiseScheduler.DPMPP_KARRAS: ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    NoiseScheduler.DPMPP_SDE_KARRAS: (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    NoiseScheduler.UNIPC_KARRAS: ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
}
"""diffusers class and settings of each scheduler that a sample definition can name."""


def sample(
    family: Family,
    parts: Parts,
    definition: SampleConfig,
    *,
    report: Callable[[int, int], None] = lambda _done, _total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Image | None:
    """One picture from the live networks; None if it was stopped. See `sample_batch`."""
    pictures = sample_batch(
        family, parts, definition, [definition.seed], report=report, should_stop=should_stop
    )
    return pictures[0] if pictures else None


def sample_batch(
    family: Family,
    parts: Parts,
    definition: SampleConfig,
    seeds: Sequence[int],
    *,
    start: Start | None = None,
    encoded: Mapping[str, Any] = MappingProxyType({}),
    report: Callable[[int, int], None] = lambda _done, _total: None,
    should_stop: Callable[[], bool] = lambda: False,
    preview: Callable[[Image, int], None] | None = None,
) -> list[Image] | None:
    """One picture for each seed, or all frames of its film; None if it was stopped.

    Modes, gradients, the model's scheduler and every random generator are afterwards as before.
    Pictures equal those of a plain diffusers pipeline with the same weights, seeds and settings.

    Args:
        family: the architecture.
        parts: its live networks.
        definition: prompt, size, steps, guidance and scheduler.
        seeds: of the pictures.
        start: the picture to begin with.
        encoded: encoded prompts in place of the family's, by argument of the pipeline.
        report: called after each denoising step with (done, total).
        should_stop: asked after each denoising step.
        preview: called after each denoising step with a small picture of the first, and the step.

    Raises:
        ValueError: for a start that the family cannot begin with.
    """
    pipeline = _pipeline(family, parts, start)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]  # alike on any device
    total = taken(definition.diffusion_steps, start)
    run = _Steps(family, parts, definition, total, report, should_stop, preview)
    name = definition.noise_scheduler if family.objective(parts) in SCHEDULED else None
    with undisturbed(parts), _scheduler(pipeline, name), torch.no_grad():
        arguments = {
            **family.sample_arguments(parts, definition),
            **encoded,
            "num_inference_steps": definition.diffusion_steps,
            "generator": generators if len(seeds) > 1 else generators[0],
        }
        arguments = {key: _times(key, value, len(seeds)) for key, value in arguments.items()}
        try:
            with run.watching(pipeline.scheduler):
                if start is not None:
                    size = (definition.width, definition.height)
                    arguments = start_arguments(pipeline, arguments, start, size)
                    with vae_as_it_is(parts.vae):
                        drawn: list[Image] = pipeline(**arguments, output_type="pil").images
                    return drawn
                pipeline(**arguments, output_type="latent")
            with run.stopping(parts.finisher):
                return _finished(family, parts, run.latents, definition, generators)
        except _Stopped:
            return None


def taken(steps: int, start: Start | None) -> int:
    """Of so many steps those that are taken."""
    return steps if start is None else min(int(steps * start.strength), steps)


def _times(name: str, value: Any, count: int) -> Any:
    """An argument of one picture as several side by side take it: what is of the prompt, for each.

    Some pipelines forget to repeat masks and pooled texts when they are asked for several.
    """
    if count == 1 or "prompt" not in name or value is None:
        return value
    if isinstance(value, Tensor):
        return value.repeat_interleave(count, 0)
    return (value if isinstance(value, list) else [value]) * count


def _pipeline(family: Family, parts: Parts, start: Start | None) -> Any:
    pipeline = parts.pipeline
    if start is not None:
        name = picture_pipeline(family, start.mask is not None)
        if name is None:
            raise ValueError(f"{family.architecture} draws from text alone.")
        pipeline = beside(parts, name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _finished(
    family: Family,
    parts: Parts,
    latents: Tensor,
    definition: SampleConfig,
    generators: Sequence[torch.Generator],
) -> list[Image]:
    """The pictures of latents, one after the other: decoding takes the most memory."""
    from diffusers.image_processor import VaeImageProcessor

    pipeline = parts.pipeline
    own = (getattr(pipeline, f"{kind}_processor", None) for kind in ("image", "video"))
    processor: Any = next(filter(None, own), None) or VaeImageProcessor()
    pictures = []
    plans = family.spatial(latents, definition.height, definition.width)
    for one, generator in zip(plans, generators, strict=True):
        pixels = family.finish(parts, one[None], definition, generator).float()
        if pixels.ndim == 5:  # a film [1, 3, f, h, w]
            pixels = pixels[0].transpose(0, 1)
        pictures += processor.postprocess(pixels, output_type="pil")
    return pictures


class _Stopped(Exception):  # noqa: N818 - nothing is wrong
    """Ends a pipeline's call early."""


@dataclass
class _Steps:
    """Follows the steps of a picture.

    Not every pipeline has a callback, and what they return as latents differs; all call the
    scheduler's `step`.
    """

    family: Family
    parts: Parts
    definition: SampleConfig
    total: int
    report: Callable[[int, int], None]
    should_stop: Callable[[], bool]
    preview: Callable[[Image, int], None] | None
    done: int = 0
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the last step gave."""
    _previewer: Previewer | None = None

    @contextmanager
    def watching(self, scheduler: Any) -> Iterator[None]:
        """Follow the steps that are taken inside the block."""
        step = scheduler.step

        @functools.wraps(step)  # pipelines pass the generator only to a step whose signature has it
        def stepping(*args: Any, **kwargs: Any) -> Any:
            output, timestep, clean, *_ = inspect.signature(step).bind(*args, **kwargs).args
            if self.preview is not None:
                clean = denoised(scheduler, output, timestep, clean)
            result = step(*args, **kwargs)
            self._after(result[0], clean)
            return result

        scheduler.step = stepping
        try:
            yield
        finally:
            del scheduler.step

    @contextmanager
    def stopping(self, finisher: Any) -> Iterator[None]:
        """Let the steps of a further stage be stopped inside the block."""
        if finisher is None:
            yield
            return
        step = finisher.scheduler.step

        @functools.wraps(step)
        def stepping(*args: Any, **kwargs: Any) -> Any:
            if self.should_stop():
                raise _Stopped
            return step(*args, **kwargs)

        finisher.scheduler.step = stepping
        try:
            yield
        finally:
            del finisher.scheduler.step

    def _after(self, latents: Tensor, clean: Tensor) -> None:
        self.done, self.latents = self.done + 1, latents
        self.report(self.done, self.total)
        if self.preview is not None:
            if self._previewer is None:
                self._previewer = Previewer(self.family, self.parts)
            size = self.definition.height, self.definition.width
            self.preview(self._previewer.picture(self.family.spatial(clean, *size)), self.done)
        if self.should_stop():
            raise _Stopped


@contextmanager
def undisturbed(parts: Parts) -> Iterator[None]:
    """Networks in eval mode and global generators to draw from; as before when the block ends."""
    training: list[nn.Module] = [
        module for part in parts.modules().values() for module in part.modules() if module.training
    ]
    for module in training:
        module.training = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _scheduler(pipeline: Any, name: NoiseScheduler | None) -> Iterator[None]:
    """The pipeline samples by that scheduler inside the block; None is a flow model's own."""
    if name is None:
        yield
        return
    import diffusers

    class_name, settings = SCHEDULERS[name]
    own = pipeline.scheduler
    chosen = getattr(diffusers, class_name).from_config(own.config, **settings)
    _steady(chosen)
    pipeline.scheduler = chosen
    try:
        yield
    finally:
        pipeline.scheduler = own


def _steady(scheduler: Any) -> None:
    """Let a scheduler cope with models whose noise grows very large, as cosine schedules do.

    Karras' spacing puts several of its first steps on one timestep there, of which diffusers takes
    the second as the first, and runs out of them at the end. And what an ancestral step keeps of
    the noise is the small difference of two large numbers, in float32 sometimes below zero.
    """
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)  # pipelines look at its signature
    def beginning_at_the_first(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.set_begin_index(0)  # pictures from pictures begin later, and say so themselves
        if "Ancestral" in type(scheduler).__name__:
            scheduler.sigmas = scheduler.sigmas.double()

    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_timesteps = beginning_at_the_first
