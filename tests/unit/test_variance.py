"""The loss of a learned variance against torch's own distributions."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence

from modules.training.variance import VarianceLoss


@pytest.fixture
def scheduler():
    return DDPMScheduler(beta_schedule="linear", beta_end=0.02, variance_type="learned_range")


def drawn(scheduler, step):
    torch.manual_seed(step)
    latents, noise, said = torch.randn(3, 2, 4, 3, 3)
    said = noise + 0.1 * said
    variance = torch.rand(2, 4, 3, 3) * 2 - 1
    timestep = torch.full((2,), step)
    noisy = scheduler.add_noise(latents, noise, timestep)
    return latents, noisy, timestep, said, variance


@pytest.mark.parametrize("step", [1, 2, 300, 999])
def test_a_term_is_the_divergence_of_the_step_from_the_true_one(scheduler, step):
    latents, noisy, timestep, said, variance = drawn(scheduler, step)
    now, before = scheduler.alphas_cumprod[[step, step - 1]].double()
    # The true step by Bayes' rule, from the two Gaussians that lead to and away from it.
    alpha = now / before
    precision = alpha / (1 - alpha) + 1 / (1 - before)

    def middle(clean):
        return (
            alpha.sqrt() * noisy / (1 - alpha) + before.sqrt() * clean / (1 - before)
        ) / precision

    true = Normal(middle(latents), precision**-0.5)
    guess = (noisy - (1 - now).sqrt() * said) / now.sqrt()
    # diffusers' reading of a learned variance is the log of its root here
    spread = (
        torch.stack(
            [scheduler._get_variance(step, predicted_variance=one).double() for one in variance]
        )
        .exp()
        .sqrt()
    )
    expected = kl_divergence(true, Normal(middle(guess), spread)) / math.log(2)
    loss = VarianceLoss.build(scheduler.alphas_cumprod)
    assert torch.allclose(
        loss.elements(latents, noisy, timestep, said, variance).double(),
        expected,
        rtol=2e-3,
        atol=2e-4,
    )


def test_the_last_step_is_the_chance_of_a_bin(scheduler):
    latents, noisy, timestep, _, variance = drawn(scheduler, 0)
    now = scheduler.alphas_cumprod[0]
    said = (noisy - now.sqrt() * latents) / (
        1 - now
    ).sqrt()  # exactly right: the middle is the latents
    loss = VarianceLoss.build(scheduler.alphas_cumprod)
    ours = loss.elements(latents, noisy, timestep, said, variance)
    shares = (variance + 1) / 2
    low = scheduler.betas[1] * (1 - scheduler.alphas_cumprod[0]) / (1 - scheduler.alphas_cumprod[1])
    spread = (shares * scheduler.betas[0].log() + (1 - shares) * low.log()).mul(0.5).exp()
    bins = Normal(torch.zeros_like(spread), spread)
    expected = -(bins.cdf(torch.tensor(1 / 255)) - bins.cdf(torch.tensor(-1 / 255))).log2()
    assert torch.allclose(ours, expected, atol=1e-3)


def test_only_the_variance_learns_from_it(scheduler):
    latents, noisy, timestep, said, variance = drawn(scheduler, 500)
    said.requires_grad_(True)
    variance.requires_grad_(True)
    VarianceLoss.build(scheduler.alphas_cumprod).elements(
        latents, noisy, timestep, said, variance
    ).sum().backward()
    assert said.grad is None
    assert variance.grad.abs().min() > 0
