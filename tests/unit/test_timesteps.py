import math

import numpy as np
import pytest
import torch
from scipy import stats

from modules.config import TimestepDistribution as Kind
from modules.training.timesteps import Timesteps, dynamic_shift, probabilities

EDGES = np.linspace(0, 1, 1001)


def unshifted(x, shift):
    return x / (shift - (shift - 1) * x)


@pytest.mark.parametrize(
    ("kind", "weight", "bias", "reference"),
    [
        (Kind.UNIFORM, 0.0, 0.0, stats.uniform.cdf),
        (Kind.BETA, 2.0, 3.0, stats.beta(2, 3).cdf),
        (Kind.BETA, 0.5, 0.5, stats.beta(0.5, 0.5).cdf),
        (Kind.BETA, 1.0, 4.0, stats.beta(1, 4).cdf),
        (Kind.BETA, 0.0, 0.0, stats.beta(1e-4, 1e-4).cdf),
        (
            Kind.LOGIT_NORMAL,
            0.5,
            -0.3,
            lambda x: stats.norm(-0.3, 1.5).cdf(np.log(np.maximum(x, 1e-12) / (1 - x + 1e-12))),
        ),
    ],
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_probabilities_equal_scipys(kind, weight, bias, reference, shift):
    ours = probabilities(kind, 1000, weight, bias, shift).numpy()
    expected = np.diff(reference(unshifted(EDGES, shift)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "weight", "bias", "draw"),
    [
        (Kind.HEAVY_TAIL, 1.2, 0.0, lambda u: 1 - u - 1.2 * (np.cos(np.pi * u / 2) ** 2 - 1 + u)),
        (Kind.COS_MAP, 0.0, 0.0, lambda u: 1 - 1 / (np.tan(np.pi * u / 2) + 1)),
        (Kind.LOGIT_NORMAL, 0.0, 0.0, lambda u: 1 / (1 + np.exp(-stats.norm.ppf(u)))),
    ],
)
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_probabilities_equal_the_papers_way_to_draw(kind, weight, bias, draw, shift):
    """By transforming uniform numbers, as the papers do, not by a density as we do."""
    uniform = (np.arange(2_000_000) + 0.5) / 2_000_000
    x = draw(uniform)
    shifted = shift * x / (1 + (shift - 1) * x)
    expected, _ = np.histogram(shifted, bins=50, range=(0, 1))
    ours = probabilities(kind, 1000, weight, bias, shift).view(50, 20).sum(1)
    np.testing.assert_allclose(ours, expected / 2_000_000, rtol=0, atol=4e-4)


def test_sigmoid_and_parabola_follow_their_formulas():
    x = np.linspace(0, 1, 1000)
    sigmoid = 1 / (1 + np.exp(-6 * (x - 0.6)))
    np.testing.assert_allclose(
        probabilities(Kind.SIGMOID, 1000, 6.0, 0.1, 1.0), sigmoid / sigmoid.sum(), rtol=1e-9
    )
    parabola = np.maximum(0, 2 - 7.7 * (x - 0.5) ** 2)
    np.testing.assert_allclose(
        probabilities(Kind.INVERTED_PARABOLA, 1000, 7.7, 0.0, 1.0),
        parabola / parabola.sum(),
        rtol=1e-9,
    )


@pytest.mark.parametrize("kind", [Kind.SIGMOID, Kind.INVERTED_PARABOLA])
def test_a_shift_moves_a_density_as_it_moves_its_draws(kind):
    """Drawn unshifted and then shifted, against drawn from the shifted density."""
    plain = probabilities(kind, 1000, 5.0, 0.0, 1.0).numpy()
    x = np.linspace(0, 1, 1000)
    moved, _ = np.histogram(3 * x / (1 + 2 * x), bins=20, range=(0, 1), weights=plain)
    ours = probabilities(kind, 1000, 5.0, 0.0, 3.0).view(20, 50).sum(1)
    np.testing.assert_allclose(ours, moved, rtol=0, atol=6e-3)


@pytest.mark.parametrize("kind", list(Kind))
def test_draws_follow_the_probabilities_and_stay_in_the_window(kind):
    timesteps = Timesteps(kind, 200, 300, 1.0, 0.2, shift=2.0)
    latents = torch.empty(50_000, 1, 1, 1)
    drawn = timesteps.draw(latents, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn, minlength=1000)
    assert counts[:200].sum() == counts[300:].sum() == 0
    expected = probabilities(kind, 100, 1.0, 0.2, 2.0).numpy() * 50_000
    many = expected > 5
    if many.sum() > 1:
        observed = counts[200:300].numpy()[many]
        scaled = expected[many] * observed.sum() / expected[many].sum()
        assert stats.chisquare(observed, scaled).pvalue > 1e-3


def test_the_same_generator_draws_the_same():
    timesteps = Timesteps(Kind.LOGIT_NORMAL, 0, 1000)
    latents = torch.empty(8, 4, 2, 2)
    first, second = (
        timesteps.draw(latents, torch.Generator().manual_seed(7)).tolist() for _ in range(2)
    )
    assert first == second


def test_dynamic_shift_equals_diffusers():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = {
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    }
    shift = dynamic_shift(config)
    for height, width in [(32, 32), (128, 128), (64, 96)]:
        tokens = height // 2 * (width // 2)
        assert shift(height, width) == pytest.approx(math.exp(calculate_shift(tokens)))
    timesteps = Timesteps(Kind.UNIFORM, 0, 1000, shift_for=shift)
    small, large = (
        timesteps.draw(torch.empty(20_000, 1, size, size), torch.Generator().manual_seed(0))
        .float()
        .mean()
        for size in (16, 128)
    )
    assert large > small + 50  # larger pictures train on more noise
