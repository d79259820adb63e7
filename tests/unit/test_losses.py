import math

import pytest
import torch
import torch.nn.functional as F

from modules.training.losses import Distance, Masking


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)


def test_each_term_equals_torch(pair):
    prediction, target = pair
    d = prediction - target
    references = {
        "mse": F.mse_loss(prediction, target, reduction="none"),
        "mae": F.l1_loss(prediction, target, reduction="none"),
        "log_cosh": torch.log(torch.cosh(d)),
        "huber": F.huber_loss(prediction, target, reduction="none", delta=0.7),
    }
    for name, expected in references.items():
        only = {"mse": 0.0, name: 1.0}
        ours = Distance(**only, huber_delta=0.7)(prediction, target)
        torch.testing.assert_close(ours, expected.flatten(1).mean(1).float(), rtol=1e-5, atol=1e-6)


def test_terms_add_up_with_their_strengths(pair):
    prediction, target = pair
    mixed = Distance(mse=0.5, mae=2.0, log_cosh=3.0, huber=0.25)(prediction, target)
    alone = [
        strength * Distance(**{"mse": 0.0, name: 1.0})(prediction, target)
        for name, strength in {"mse": 0.5, "mae": 2.0, "log_cosh": 3.0, "huber": 0.25}.items()
    ]
    torch.testing.assert_close(mixed, torch.stack(alone).sum(0))


def test_log_cosh_is_finite_where_cosh_overflows():
    loss = Distance(mse=0.0, log_cosh=1.0)(torch.tensor([[1000.0]]), torch.tensor([[0.0]]))
    assert loss.item() == pytest.approx(1000 - math.log(2))


def test_the_error_is_taken_in_float32():
    half = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square overflows float16
    assert Distance()(half, torch.zeros_like(half)).item() == 90_000.0


def test_shapes_that_would_broadcast_are_refused(pair):
    with pytest.raises(ValueError, match="must have one shape"):
        Distance()(pair[0], pair[1][:1])


def test_a_loss_of_nothing_is_refused(pair):
    with pytest.raises(ValueError, match="are all 0"):
        Distance(mse=0.0)(*pair)


def masked(errors, mask, **settings):
    prior = settings.pop("prior", None)
    return Masking(**{"unmasked_weight": 0.0, "normalize": False} | settings)(errors, mask, prior)


ERRORS = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
TOP = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1 + 3) / 4),
        ({"unmasked_weight": 0.5}, (1 + 3 + 2.5 + 3.5) / 4),
        ({"normalize": True}, (1 + 3) / 2),
        ({"unmasked_weight": 0.5, "normalize": True}, (1 + 3 + 2.5 + 3.5) / 4 / 0.75),
        ({"prior_weight": 2.0, "prior": ERRORS + 1}, (1 + 3) / 4 + 2 * (6 + 8) / 4),
        ({"prior_weight": 2.0, "prior": ERRORS + 1, "normalize": True}, 2 + 2 * 7),
    ],
)
def test_masked_loss_by_hand(settings, expected):
    assert masked(ERRORS, TOP, **settings).item() == pytest.approx(expected)


@pytest.mark.parametrize("mask", [torch.ones_like(TOP), torch.zeros_like(TOP)])
def test_normalising_an_empty_area_is_no_nan(mask):
    loss = masked(ERRORS, mask, normalize=True, prior_weight=1.0, prior=ERRORS)
    assert loss.isfinite().all()
