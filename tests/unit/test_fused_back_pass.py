"""Weights that change in the backward pass become what they would after it."""

import importlib.util

import pytest
import torch
from torch import nn

from modules.config import TrainConfig
from modules.config.optimizer_defaults import ONE_BY_ONE, OPTIMIZER_DEFAULTS
from modules.training.muon import split_groups
from modules.training.optimizers import RECIPES, build_optimizer
from modules.training.update import Update

KINDS = sorted(
    kind
    for kind in ONE_BY_ONE
    if kind in RECIPES and importlib.util.find_spec(RECIPES[kind].package) is not None
)


class Trained:
    def __init__(self, kind, fused, dtype=torch.float32, clip=None):
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32), nn.Linear(32, 4)
        ).to(dtype)
        self.parameters = list(self.network.parameters())
        settings = TrainConfig().update(optimizer={"optimizer": kind.value}).optimizer
        if "fused" in OPTIMIZER_DEFAULTS[kind]:
            settings = settings.update(fused=False)
        groups = split_groups(settings, {"unet": self.parameters}, [self.network])
        self.update = Update(
            build_optimizer(settings, groups, dict.fromkeys(groups, 1e-2)),
            self.parameters,
            clip,
            torch.amp.GradScaler("cpu", enabled=False),
            rounding=torch.Generator().manual_seed(1),
            separable=True,
            fused=fused,
        )

    def step(self, number, passes=1, spoil=None):
        for index in range(passes):
            generator = torch.Generator().manual_seed(7 * number + index)
            images = torch.randn(16, 8, generator=generator).to(self.parameters[0].dtype)
            answer = self.network(images)
            if spoil is not None:
                answer = answer * spoil
            self.update.backward(answer.square().mean(), last=index == passes - 1)
        return self.update(number)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_it_ends_where_a_step_after_the_pass_does(kind):
    fused, plain = Trained(kind, fused=True), Trained(kind, fused=False)
    for number in range(4):
        norms = [run.step(number, passes=1 + number % 2) for run in (fused, plain)]
        assert torch.allclose(*norms)
    for one, other in zip(fused.parameters, plain.parameters, strict=True):
        assert torch.equal(one, other)


def test_one_gradient_at_a_time_is_there():
    run = Trained(KINDS[0], fused=True)
    alive = []
    for parameter in run.parameters:  # after the update's own hook
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in run.parameters))
        )
    run.step(0)
    assert alive == [0] * len(run.parameters)
    run.step(1, passes=2)
    assert max(alive) == len(run.parameters)  # accumulated first


def test_each_gradient_is_clipped_by_itself():
    parameters = [nn.Parameter(torch.full((3,), value)) for value in (1.0, 2.0, 1e-4)]
    optimizer = torch.optim.SGD([{"params": parameters, "name": "unet"}], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    update = Update(optimizer, parameters, 0.1, scaler, separable=True, fused=True)
    before = [p.detach().clone() for p in parameters]
    update.backward(sum(p.square().sum() for p in parameters) / 2, last=True)
    norm = update(0)
    moved = [(a - b).norm().item() for a, b in zip(before, parameters, strict=True)]
    assert moved == pytest.approx([0.1, 0.1, 3**0.5 * 1e-4], rel=1e-3)
    assert norm.item() == pytest.approx(15**0.5)  # of all, before clipping


def test_no_number_changes_nothing():
    run = Trained(KINDS[0], fused=True)
    before = [p.detach().clone() for p in run.parameters]
    assert not run.step(0, spoil=float("nan")).isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    assert run.step(1).isfinite()


def test_bfloat16_is_rounded_on_the_way():
    run = Trained(KINDS[0], fused=True, dtype=torch.bfloat16)
    run.step(0)
    assert all(p.dtype == torch.bfloat16 and p.grad is None for p in run.parameters)


def test_a_pass_that_fails_half_way_cannot_be_undone():
    run = Trained(KINDS[0], fused=True)
    run.update.undo()  # nothing has changed yet

    def fail(_):
        raise MemoryError

    run.parameters[0].register_post_accumulate_grad_hook(fail)  # the last to come
    with pytest.raises(MemoryError):
        run.step(0)
    with pytest.raises(RuntimeError, match="when 8 of 8 tensors had changed already"):
        run.update.undo()


def test_a_gradient_of_someone_else_changes_nothing():
    run = Trained(KINDS[0], fused=True)
    run.step(0)
    before = [p.detach().clone() for p in run.parameters]
    run.network(torch.ones(2, 8)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    assert all(p.grad is not None for p in run.parameters)


def test_frozen_parameters_stay():
    run = Trained(KINDS[0], fused=True)
    run.parameters[0].requires_grad_(False)
    before = run.parameters[0].detach().clone()
    run.step(0)
    assert torch.equal(before, run.parameters[0])
