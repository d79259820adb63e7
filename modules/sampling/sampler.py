"""Samples: diffusers' own pipeline on the live networks, with nothing of the run disturbed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from modules.config import NoiseScheduler, SampleConfig
from modules.families.base import Family, Parts

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
    """One picture from the live networks; None if it was stopped.

    Modes, gradients, the model's scheduler and every random generator are afterwards as before.
    The picture equals that of a plain diffusers pipeline with the same weights, seed and settings.

    Args:
        family: the architecture.
        parts: its live networks.
        definition: prompt, size, seed, steps, guidance and scheduler.
        report: called after each denoising step with (done, total).
        should_stop: asked after each denoising step.
    """
    pipeline = parts.pipeline
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(definition.seed)  # the same on every device

    steps = 0
    latents = torch.empty(0)

    def after_step(result: Tensor) -> None:
        nonlocal steps, latents
        steps, latents = steps + 1, result
        report(steps, definition.diffusion_steps)
        if should_stop():
            raise _Stopped

    name = None if family.objective(parts) == "flow" else definition.noise_scheduler
    with undisturbed(parts), _scheduler(pipeline, name), torch.no_grad():
        try:
            with _watched(pipeline.scheduler, after_step):
                pipeline(
                    **family.sample_arguments(parts, definition),
                    num_inference_steps=definition.diffusion_steps,
                    generator=generator,
                    output_type="latent",
                )
        except _Stopped:
            return None
        latents = family.spatial(latents, definition.height, definition.width)
        pixels = family.decode(parts, latents).float()
        processor = getattr(pipeline, "image_processor", None) or pipeline.video_processor
        picture: Image = processor.postprocess(pixels, output_type="pil")[0]
        return picture


class _Stopped(Exception):  # noqa: N818 - nothing is wrong
    """Ends a pipeline's call early."""


@contextmanager
def _watched(scheduler: Any, after_step: Callable[[Tensor], None]) -> Iterator[None]:
    """Inside the block `after_step` gets the latents after each step.

    Not every pipeline has a callback, and what they return as latents differs; all call this.
    """
    step = scheduler.step

    @functools.wraps(step)  # pipelines pass the generator only to a step whose signature has it
    def stepping(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        after_step(result[0])
        return result

    scheduler.step = stepping
    try:
        yield
    finally:
        del scheduler.step


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
