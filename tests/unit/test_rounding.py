"""Weights of 16 bits that learn: rounding without bias, tiny updates kept, every bit saved."""

import importlib.util

import pytest
import torch
from torch import nn

from modules.config import Optimizer, TrainConfig
from modules.config.optimizer_defaults import ONE_BY_ONE
from modules.training.muon import split_groups
from modules.training.optimizers import RECIPES, build_optimizer
from modules.training.rounding import round_at_random, widened
from modules.training.update import Update

INSTALLED = [k for k, r in RECIPES.items() if importlib.util.find_spec(r.package) is not None]


def make_update(kind, parameters, rounds=True, rate=1e-3, **numbers):
    settings = {"optimizer": kind.value, "stochastic_rounding": rounds, **numbers}
    settings = TrainConfig().update(optimizer=settings).optimizer
    groups = split_groups(settings, {"unet": parameters}, [nn.ParameterList(parameters)])
    generator = torch.Generator().manual_seed(5) if rounds else None
    return Update(
        build_optimizer(settings, groups, dict.fromkeys(groups, rate)),
        parameters,
        None,
        torch.amp.GradScaler("cpu", enabled=False),
        rounding=generator,
        separable=kind in ONE_BY_ONE,
    ), generator


def weights(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 8), (12,), (4, 3, 3, 3)]
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def take(update, parameters, count, first=0):
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).bfloat16().to(p.dtype)
        torch.manual_seed(step)
        update(step)


def test_the_mean_of_many_roundings_is_the_number():
    values = torch.tensor([1.001, -1.001, 3.14159, -2.7e-20, 65000.1, 0.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    many = round_at_random(values.expand(40_000, -1).contiguous(), generator)
    assert many.dtype == torch.bfloat16
    step = 2.0 ** (values.abs().log2().floor() - 7)  # between neighbours of 8 bits
    error = (many.double().mean(0) - values.double()).abs()
    assert (error <= 4 * step / (2 * 40_000**0.5)).all()  # four standard errors at most
    for column, value in zip(many.T.float(), values, strict=True):
        low, high = column.min(), column.max()
        assert low <= value <= high
        assert high - low <= 2.0 ** (value.abs().log2().floor() - 7)
    assert set(many[:, 6].tolist()) == {1.0}
    assert set(many[:, 5].tolist()) == {0.0}


def test_infinity_stays_and_no_number_stays_none():
    values = torch.tensor([float("inf"), -float("inf"), float("nan")]).expand(1000, -1).contiguous()
    rounded = round_at_random(values, torch.Generator().manual_seed(0)).float()
    assert rounded[:, 0].eq(float("inf")).all()
    assert rounded[:, 1].eq(-float("inf")).all()
    assert rounded[:, 2].isnan().all()


def test_updates_far_below_the_last_bit_add_up():
    def after(rounds):
        (parameter,) = [nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))]
        update, _ = make_update(Optimizer.SGD, [parameter], rounds, rate=1e-4)
        for step in range(500):
            parameter.grad = torch.ones_like(parameter)
            update(step)
        return parameter.detach().float()

    assert after(rounds=False).eq(1).all()  # each 1e-4 is rounded away
    rounded = after(rounds=True)
    assert rounded.mean().item() == pytest.approx(1 - 500 * 1e-4, abs=1e-3)


@pytest.mark.parametrize("kind", INSTALLED, ids=lambda kind: kind.value)
def test_every_optimizer_computes_as_on_float32(kind):
    """One step from the same point, to within one rounding of what float32 weights become."""
    narrow, wide = weights(), [nn.Parameter(p.detach().float()) for p in weights()]
    for parameters in (narrow, wide):
        update, _ = make_update(kind, parameters, rate=0.01)
        take(update, parameters, 1)
    for p, exact in zip(narrow, wide, strict=True):
        assert p.dtype == torch.bfloat16
        assert p.grad is None
        near = exact.detach().abs() * 2**-7
        assert ((p.detach().float() - exact.detach()).abs() <= near).all()


@pytest.mark.parametrize("kind", INSTALLED, ids=lambda kind: kind.value)
def test_a_resumed_run_rounds_as_the_straight_one(kind, tmp_path):
    straight = weights()
    update, generator = make_update(kind, straight)
    take(update, straight, 3)
    torch.save([update.state_dict(), generator.get_state()], tmp_path / "state.pt")
    resumed = [nn.Parameter(p.detach().clone()) for p in straight]
    take(update, straight, 3, first=3)

    again, generator = make_update(kind, resumed)
    state, draws = torch.load(tmp_path / "state.pt", weights_only=True)
    assert again.load_state_dict(state) == []
    generator.set_state(draws)
    take(again, resumed, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_weights_shown_by_a_schedule_free_optimizer_come_back_bit_for_bit():
    parameters = weights()
    update, _ = make_update(Optimizer.SCHEDULE_FREE_ADAMW, parameters, rate=0.1)
    take(update, parameters, 4)
    before = [p.detach().clone() for p in parameters]
    with update.shown():
        assert not all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        assert all(p.dtype == torch.bfloat16 for p in parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    take(update, parameters, 1, first=4)


def test_weights_of_other_types_pass_by():
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.bfloat16))]
    kept = parameters[0].data
    with widened(parameters):
        assert parameters[0].data is not None
        assert parameters[1].dtype == torch.float32
    assert parameters[0].data.data_ptr() == kept.data_ptr()
    assert parameters[1].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", INSTALLED, ids=lambda kind: kind.value)
def test_weights_of_float16_step_as_those_of_float32_do(kind):
    """Also where the squares of their gradients would vanish."""
    narrow = [nn.Parameter(p.detach() * 1e-2) for p in weights(torch.float16)]
    wide = [nn.Parameter(p.detach().float()) for p in narrow]
    for parameters in (narrow, wide):
        update, _ = make_update(kind, parameters, rounds=False, rate=1e-2)
        generator = torch.Generator().manual_seed(1)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).mul(1e-5).half().to(p.dtype)
        torch.manual_seed(0)
        update(0)
    for one, other in zip(narrow, wide, strict=True):
        assert one.dtype == torch.float16
        assert torch.equal(one, other.half())
