from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from modules.config import ConfigError, LossWeight, TrainConfig
from modules.training.noise import Noise, adapt_scheduler, build_noise, offset_schedule
from modules.training.objective import Diffusion, Flow

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ALPHAS = DDPMScheduler(**BETAS).alphas_cumprod


def drawn(noise, batch=2000):
    latents = torch.empty(batch, 2, 8, 8)
    timestep = torch.full((batch,), 500)
    return noise.draw(latents, timestep, torch.Generator().manual_seed(0))


def test_plain_noise_is_one_draw_of_the_generator():
    expected = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn(Noise(), 3), expected)


def test_offset_moves_whole_channels_by_its_weight():
    extra = drawn(Noise(offset=0.3)) - drawn(Noise())
    assert torch.allclose(extra, extra[:, :, :1, :1], atol=1e-6)
    assert extra[:, 0, 0, 0].std() == pytest.approx(0.3, rel=0.05)
    correlation = torch.corrcoef(extra[:, :, 0, 0].T)[0, 1]
    assert abs(correlation) < 0.1  # each channel on its own


def test_perturbation_adds_an_independent_draw():
    extra = drawn(Noise(perturbation=0.2)) - drawn(Noise())
    assert extra.std() == pytest.approx(0.2, rel=0.02)
    assert (
        abs(torch.corrcoef(torch.stack([extra.flatten(), drawn(Noise()).flatten()]))[0, 1]) < 0.02
    )


def test_generalised_offset_solves_the_posterior_it_is_derived_from():
    """psi must satisfy psi_t = sigma_t (phi_t - sqrt(alpha_t) phi_(t-1)) / beta_t at every t."""
    alphas = ALPHAS.double()
    sigma = (1 - alphas).sqrt()
    psi = offset_schedule(alphas.sqrt(), sigma)
    assert psi[-1] == 1
    assert (psi.diff() > 0).all()
    phi = sigma * psi
    alpha = alphas[1:] / alphas[:-1]
    required = sigma[1:] * (phi[1:] - alpha.sqrt() * phi[:-1]) / (1 - alpha)
    torch.testing.assert_close(psi[1:], required, rtol=1e-6, atol=0)


def test_generalised_offset_is_refused_where_it_means_nothing():
    config = TrainConfig(offset_noise_weight=0.1, generalized_offset_noise=True)
    with pytest.raises(ConfigError, match="flow model has no such schedule"):
        build_noise(config, Flow.build(LossWeight.CONSTANT))
    dark = Diffusion.build(torch.tensor([0.5, 0.0]), "v_prediction", LossWeight.CONSTANT, 1.0)
    with pytest.raises(ConfigError, match="no offset left"):
        build_noise(config, dark)


def test_generalised_offset_scales_with_the_timestep():
    config = TrainConfig(offset_noise_weight=0.5, generalized_offset_noise=True)
    objective = Diffusion.build(ALPHAS, "epsilon", LossWeight.CONSTANT, 1.0)
    noise = build_noise(config, objective)
    extra = drawn(noise) - drawn(Noise())
    expected = 0.5 * noise.offset_scale[500].item()
    assert extra[:, 0, 0, 0].std().item() == pytest.approx(expected, rel=0.05)


def test_zero_terminal_snr_equals_diffusers_and_learns_velocity():
    pipeline = SimpleNamespace(scheduler=DDIMScheduler(**BETAS))
    betas = pipeline.scheduler.betas
    adapt_scheduler(pipeline, TrainConfig(rescale_noise_scheduler_to_zero_terminal_snr=True))
    alphas = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, alphas)
    assert pipeline.scheduler.alphas_cumprod[-1] < 1e-6
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("setting", "prediction"),
    [("force_v_prediction", "v_prediction"), ("force_epsilon_prediction", "epsilon")],
)
def test_the_prediction_type_can_be_forced(setting, prediction):
    pipeline = SimpleNamespace(scheduler=DDIMScheduler(**BETAS, prediction_type="sample"))
    adapt_scheduler(pipeline, TrainConfig(**{setting: True}))
    assert pipeline.scheduler.config.prediction_type == prediction
    assert pipeline.scheduler.config.beta_end == BETAS["beta_end"]


@pytest.mark.parametrize("setting", ["force_v_prediction", "force_epsilon_prediction"])
def test_a_model_of_another_kind_keeps_its_schedule(setting):
    pipeline = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler())
    kept = pipeline.scheduler
    adapt_scheduler(pipeline, TrainConfig(model_type="FLUX_DEV_1", **{setting: True}))
    assert pipeline.scheduler is kept
