import pytest
import torch
from diffusers import DDPMScheduler, DDPMWuerstchenScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

from modules.config import ConfigError, LossWeight, TrainConfig
from modules.training.objective import Diffusion, Flow, build_objective

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def diffusion(prediction="epsilon", weight=LossWeight.CONSTANT, gamma=5.0):
    return Diffusion.build(SCHEDULER.alphas_cumprod, prediction, weight, gamma)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(3)
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([0, 1, 250, 700, 999])


def test_noising_equals_diffusers(draw):
    latents, noise, timestep = draw
    ours = diffusion().add_noise(latents, noise, timestep)
    torch.testing.assert_close(ours, SCHEDULER.add_noise(latents, noise, timestep))


def test_velocity_equals_diffusers(draw):
    latents, noise, timestep = draw
    ours = diffusion("v_prediction").target(latents, noise, timestep)
    torch.testing.assert_close(ours, SCHEDULER.get_velocity(latents, noise, timestep))


def test_noise_is_the_target_of_epsilon(draw):
    latents, noise, timestep = draw
    assert torch.equal(diffusion().target(latents, noise, timestep), noise)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("weight", "gamma", "formula"),
    [
        (LossWeight.CONSTANT, 5.0, lambda snr, v: torch.ones_like(snr)),
        (LossWeight.MIN_SNR_GAMMA, 5.0, lambda snr, v: snr.clamp(max=5.0) / (snr + v)),
        (
            LossWeight.DEBIASED_ESTIMATION,
            5.0,
            lambda snr, v: 1 / torch.sqrt(snr.clamp(max=1000.0) + v),
        ),
        (LossWeight.P2, 1.0, lambda snr, v: 1 / (1 + v + snr)),
        (LossWeight.P2, 0.5, lambda snr, v: 1 / (1 + v + snr) ** 0.5),
    ],
)
def test_weights_follow_diffusers_snr(prediction, weight, gamma, formula, draw):
    timestep = draw[2]
    expected = formula(compute_snr(SCHEDULER, timestep), float(prediction == "v_prediction"))
    ours = diffusion(prediction, weight, gamma).weight(timestep)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=0)


def test_weights_stay_finite_without_signal():
    """On a schedule that ends in pure noise, which only velocity models have."""
    alphas = torch.tensor([0.9, 0.5, 0.0])
    for weight in (LossWeight.MIN_SNR_GAMMA, LossWeight.DEBIASED_ESTIMATION, LossWeight.P2):
        assert Diffusion.build(alphas, "v_prediction", weight, 5.0).weights.isfinite().all()


def test_flow_equals_diffusers(draw):
    latents, noise, timestep = draw
    scheduler = FlowMatchEulerDiscreteScheduler()  # its timesteps fall from 1000 to 1
    flow = Flow.build(LossWeight.CONSTANT)
    theirs = scheduler.timesteps.flip(0)[timestep]
    torch.testing.assert_close(flow.time(timestep) * 1000, theirs)
    expected = scheduler.scale_noise(latents, theirs, noise)
    torch.testing.assert_close(flow.add_noise(latents, noise, timestep), expected)


def test_one_euler_step_along_the_target_reaches_the_latents(draw):
    latents, noise, timestep = draw
    flow = Flow.build(LossWeight.CONSTANT)
    noisy = flow.add_noise(latents, noise, timestep)
    sigma = flow.time(timestep).view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy - sigma * flow.target(latents, noise, timestep), latents)


def test_sigma_weights_grow_with_noise(draw):
    timestep = draw[2]
    expected = torch.tensor([0.001, 0.002, 0.251, 0.701, 1.0])
    torch.testing.assert_close(Flow.build(LossWeight.SIGMA).weight(timestep), expected)
    plain = compute_loss_weighting_for_sd3("none", sigmas=expected)
    torch.testing.assert_close(Flow.build(LossWeight.CONSTANT).weight(timestep), plain)


def test_a_weight_of_the_other_kind_is_refused_with_the_ones_that_fit():
    with pytest.raises(ConfigError, match=r"MIN_SNR_GAMMA, which a flow.*SIGMA"):
        Flow.build(LossWeight.MIN_SNR_GAMMA)
    with pytest.raises(ConfigError, match="SIGMA, which a model that predicts noise"):
        diffusion(weight=LossWeight.SIGMA)


def test_five_dimensional_latents_are_noised_like_four():
    latents, noise = torch.randn(2, 2, 4, 3, 8, 8)
    timestep = torch.tensor([10, 900])
    flat = diffusion().add_noise(latents.flatten(1, 2), noise.flatten(1, 2), timestep)
    torch.testing.assert_close(diffusion().add_noise(latents, noise, timestep).flatten(1, 2), flat)


def cosine(kind, **changes):
    config = TrainConfig().update(**changes)
    return build_objective(config, kind, DDPMWuerstchenScheduler(), torch.device("cpu"))


@pytest.mark.parametrize(("kind", "reach"), [("cosine", 1.0), ("cosine_dwelling", 1.08)])
def test_a_continuous_schedule_is_that_of_wuerstchens_scheduler(kind, reach, draw):
    latents, noise, _ = draw
    objective, _ = cosine(kind)
    assert objective.levels == 10_000
    timestep = torch.tensor([0, 1, 4999, 9250, 9999])
    # as Würstchen's own training draws them, from a number in (0, 1]
    times = ((timestep + 1) / 10_000).mul(reach).add(0.001).clamp(0.001, 1.0)
    torch.testing.assert_close(objective.time(timestep), times)
    expected = DDPMWuerstchenScheduler().add_noise(latents, noise, times)
    torch.testing.assert_close(objective.add_noise(latents, noise, timestep), expected)
    assert torch.equal(objective.target(latents, noise, timestep), noise)


def test_p2_weighs_a_continuous_schedule_by_its_signal():
    changes = {"loss_weight_fn": "P2", "loss_weight_strength": 1.0}
    objective, _ = cosine("cosine", **changes)
    timestep = torch.tensor([0, 2500, 5000, 9999])
    alphas = DDPMWuerstchenScheduler()._alpha_cumprod(objective.time(timestep), torch.device("cpu"))
    weights = 1 / (1 + alphas / (1 - alphas))
    torch.testing.assert_close(objective.weight(timestep), weights, rtol=1e-3, atol=1e-6)


def test_continuous_times_are_drawn_from_the_whole_window():
    drawn = {}
    for kind in ("cosine", "cosine_dwelling"):
        objective, timesteps = cosine(kind)
        generator = torch.Generator().manual_seed(0)
        times = objective.time(timesteps.draw(torch.zeros(20_000, 1, 1, 1), generator))
        assert times.min() < 0.002
        assert times.max() == 1
        drawn[kind] = (times == 1).float().mean()
    assert drawn["cosine"] < 0.003
    assert drawn["cosine_dwelling"] == pytest.approx(1 - 0.999 / 1.08, abs=0.01)
    objective, timesteps = cosine("cosine", min_noising_strength=0.5, max_noising_strength=0.6)
    times = objective.time(timesteps.draw(torch.zeros(2000, 1, 1, 1), generator))
    assert times.min() == pytest.approx(0.501, abs=2e-3)
    assert times.max() == pytest.approx(0.601, abs=2e-3)
