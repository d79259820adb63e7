"""What is peculiar to Wan 2.2: times of single tokens, and models of two transformers."""

import copy

import pytest
import torch

from modules.config import ConfigError, ModelFormat, ModelType, TrainConfig
from modules.families import family_for
from modules.families.saving import save_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def family():
    return family_for(ModelType.WAN_2)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
def test_each_token_is_told_the_time_where_the_model_wants_it(family, frames):
    parts = family.tiny()
    parts.pipeline.register_to_config(expand_timesteps=True)
    parts.pipeline.set_progress_bar_config(disable=True)
    parts.denoiser.eval()
    calls = []
    parts.denoiser.register_forward_hook(
        lambda _m, _a, given, output: calls.append((given, output)), with_kwargs=True
    )
    condition = family.encode_text(parts, ["a card"])
    parts.pipeline(
        prompt_embeds=condition["text"],
        height=64,
        width=32,
        num_frames=frames,
        num_inference_steps=1,
        guidance_scale=1.0,
        output_type="latent",
    )
    given, (expected,) = calls[0]
    noisy = given["hidden_states"].squeeze(2)
    found = family.predict(parts, noisy, parts.scheduler.sigmas[:1], condition)
    assert torch.equal(calls[1][0]["timestep"], given["timestep"])
    assert given["timestep"].shape == (1, 8 * given["hidden_states"].shape[2])
    torch.testing.assert_close(found, expected.squeeze(2), atol=1e-5, rtol=1e-4)


def test_two_transformers_are_refused(family, tmp_path):
    parts = family.tiny()
    parts.pipeline.register_modules(transformer_2=copy.deepcopy(parts.denoiser))
    save_model(family, parts, tmp_path / "model", ModelFormat.DIFFUSERS, torch.float32)
    config = TrainConfig().update(model_type="WAN_2", base_model_name=str(tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"has two transformers.*Choose Wan 2\.1"):
        family.load(config)
