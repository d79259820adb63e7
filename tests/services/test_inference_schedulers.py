"""Every scheduler at every length, on noise schedules that differ in how they end."""

import diffusers
import numpy as np
import pytest
import torch

import ot_notebook as ot
from modules.config import ModelType, NoiseScheduler, SampleConfig
from modules.families import family_for
from modules.sampling.sampler import SCHEDULERS, sample
from ot_notebook.services.inference_service import InferenceService

torch.set_num_threads(1)
LENGTHS = (1, 2, 4, 20)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The embedded model, whose cosine schedule ends in almost nothing but noise."""
    return InferenceService(tmp_path_factory.mktemp("gallery")).load(ot.assets.model())


@pytest.fixture(scope="module")
def linear():
    """A model with the schedule of Stable Diffusion 1 and SDXL."""
    family = family_for(ModelType.STABLE_DIFFUSION_15)
    return family, family.tiny()


@pytest.mark.parametrize("name", list(NoiseScheduler))
def test_every_scheduler_draws_at_every_length(drawn, name):
    usual = np.asarray(drawn.generate("a red apple", seed=3, steps=20, cfg_scale=3.0).image)
    for steps in (*LENGTHS, 3):  # three ancestral steps once came out as no numbers
        result = drawn.generate("a red apple", seed=3, steps=steps, cfg_scale=3.0, scheduler=name)
        picture = np.asarray(result.image, dtype=int)
        assert picture.std() > 20, f"{name} draws nothing in {steps} steps"
        if steps == 20:
            assert abs(picture - usual).mean() < 40, "it is the same apple, more or less"


@pytest.mark.parametrize("name", list(NoiseScheduler))
def test_on_a_usual_schedule_every_picture_is_that_of_diffusers_alone(linear, name):
    family, parts = linear
    class_name, settings = SCHEDULERS[name]
    own = parts.pipeline.scheduler
    for steps in (1, 4):
        definition = SampleConfig(
            prompt="a fox", seed=7, width=64, height=64, diffusion_steps=steps, cfg_scale=3.0,
            noise_scheduler=name,
        )  # fmt: skip
        ours = np.asarray(sample(family, parts, definition), dtype=int)
        parts.pipeline.scheduler = getattr(diffusers, class_name).from_config(
            own.config, **settings
        )
        try:
            theirs = parts.pipeline(
                "a fox", negative_prompt="", width=64, height=64, num_inference_steps=steps,
                guidance_scale=3.0, generator=torch.Generator().manual_seed(7),
            ).images[0]  # fmt: skip
        finally:
            parts.pipeline.scheduler = own
        assert abs(ours - np.asarray(theirs, dtype=int)).max() <= 2
