"""Layers that learn and wait elsewhere meanwhile: not a bit of what they learn differs."""

from copy import deepcopy

import pytest
import torch

from modules.config import ModelType, TrainConfig
from modules.families import family_for
from modules.training.memory import recompute
from modules.training.muon import split_groups
from modules.training.optimizers import build_optimizer
from modules.training.placement import LayerOffload, gather
from modules.training.update import Update
from modules.training.waiting import waiting

CPU = torch.device("cpu")


class Learner:
    """A whole network that trains, some of whose layers may wait, with its update."""

    def __init__(self, kind, fraction, fused, optimizer="ADAFACTOR", dtype=torch.float32):
        self.family = family_for(kind)
        self.parts = self.family.tiny()
        self.network = self.parts.denoiser
        torch.manual_seed(1)
        for parameter in self.network.parameters():  # layers that start at zero hide mistakes
            torch.nn.init.normal_(parameter, std=0.05)
        self.network.to(dtype).requires_grad_(False)
        self.offload = LayerOffload(self.network, fraction, CPU, CPU)
        self.network.requires_grad_(True)
        self.parameters = list(self.network.parameters())
        gather(self.parameters, CPU)
        recompute(self.network)
        self.network.train()
        settings = TrainConfig().update(optimizer={"optimizer": optimizer}).optimizer
        if optimizer == "ADAMW":
            settings = settings.update(fused=False)
        groups = split_groups(settings, {"unet": self.parameters}, [self.network])
        self.update = Update(
            build_optimizer(settings, groups, dict.fromkeys(groups, 1e-3)),
            self.parameters,
            1.0,
            torch.amp.GradScaler("cpu", enabled=False),
            rounding=torch.Generator().manual_seed(1) if dtype == torch.bfloat16 else None,
            separable=True,
            fused=fused,
        )

    def step(self, number, passes=1):
        for index in range(passes):
            self.update.backward(self.loss(10 * number + index), last=index == passes - 1)
        return self.update(number)

    def loss(self, seed):
        torch.manual_seed(seed)
        latents = self.family.encode_images(self.parts, torch.rand(2, 3, 64, 64)).detach()
        condition = self.family.encode_text(self.parts, ["a", "b"])
        condition = {name: tensor.detach() for name, tensor in condition.items()}
        flow = self.family.objective(self.parts) == "flow"
        time = torch.tensor([0.1, 0.9]) if flow else torch.tensor([10, 900])
        noisy = torch.randn_like(latents).to(self.parts.dtype)
        with torch.autocast("cpu", enabled=self.parts.dtype != torch.float32):
            prediction = self.family.predict(self.parts, noisy, time, condition)
        return prediction.float().square().mean()


def assert_same(one, other):
    for first, second in zip(one.parameters, other.parameters, strict=True):
        assert torch.equal(first, second)
    states = [run.update.optimizer.state_dict()["state"] for run in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) == len(one.parameters)


CASES = [
    pytest.param(ModelType.FLUX_DEV_1, True, "ADAFACTOR", torch.float32, id="fused"),
    pytest.param(ModelType.FLUX_DEV_1, False, "ADAMW", torch.float32, id="at-home"),
    pytest.param(ModelType.FLUX_DEV_1, True, "ADAFACTOR", torch.bfloat16, id="rounded"),
    *(
        pytest.param(
            ModelType.STABLE_DIFFUSION_15,
            fused,
            kind,
            torch.float32,
            id=f"unet-{kind}",
            marks=pytest.mark.slow,
        )
        for fused, kind in ((True, "ADAMW"), (False, "ADAFACTOR"), (True, "ADAMW_ADV"))
    ),
]


@pytest.mark.parametrize(("kind", "fused", "optimizer", "dtype"), CASES)
def test_what_waits_learns_the_same(kind, fused, optimizer, dtype):
    """Three steps, the second of two passes, and a sample between them."""
    waits, stays = (Learner(kind, share, fused, optimizer, dtype) for share in (1.0, 0.0))
    before = [p.detach().clone() for p in waits.parameters]
    assert waits.offload.count == len(LayerOffload.layers_of(waits.network)) > 1
    for number in range(3):
        for run in (waits, stays):
            run.step(number, passes=1 + number % 2)
            with torch.no_grad():
                run.loss(7)
    for one, other in zip(waits.parameters, stays.parameters, strict=True):
        assert torch.equal(one, other)
        assert one.grad is None
    moved = sum(not torch.equal(a, b) for a, b in zip(before, waits.parameters, strict=True))
    assert moved > 0.9 * len(before)


def test_they_are_at_home_but_while_they_compute():
    """The optimizer changes them on the device, one layer after the other."""
    run = Learner(ModelType.FLUX_DEV_1, 1.0, fused=True)
    layers = LayerOffload.layers_of(run.network)
    homes = {id(p): p.data_ptr() for layer in layers for p in layer.parameters()}
    own = [{id(p) for p in layer.parameters()} for layer in layers]
    met, changed = [], []

    def away():
        return {id(p) for p in run.parameters if p.data_ptr() != homes.get(id(p), p.data_ptr())}

    for layer in layers:
        layer.attn.register_forward_hook(lambda *_: met.append(away()))
    for parameter in run.parameters:  # called after the update's own hook
        parameter.register_post_accumulate_grad_hook(lambda _: changed.append(away()))
    loss = run.loss(1)
    assert met == own
    assert away() == set()
    run.update.backward(loss, last=True)
    assert met[2:] == own[::-1]  # recomputed, the last first
    assert all(any(now <= of for of in own) for now in changed)
    assert away() == set()
    assert all(waiting(p).parameter is p for layer in layers for p in layer.parameters())


def test_a_copy_fetched_ahead_is_not_used_once_its_weight_has_changed():
    """As the average does that a sample is drawn with."""
    run = Learner(ModelType.FLUX_DEV_1, 1.0, fused=True)
    with torch.no_grad():
        first = run.loss(1)
        for layer in run.offload._layers:
            layer.fetch()
        for parameter in run.parameters:
            parameter.mul_(0.5)
        second = run.loss(1)
        assert second != first
        assert second == run.loss(1)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_gradient_that_only_an_earlier_pass_brought_counts(share):
    """As that of an expert which the last images of a step did not need."""
    run = Learner(ModelType.FLUX_DEV_1, share, fused=True)
    before = [p.detach().clone() for p in run.parameters]
    run.update.backward(run.loss(1), last=False)
    assert all(map(torch.equal, before, run.parameters))
    unused = torch.ones((), requires_grad=True)
    run.update.backward(unused * 2, last=True)
    run.update(0)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    assert moved > 0.9 * len(before)
    assert all(p.grad is None for p in run.parameters)


def test_moments_of_a_backup_come_to_the_device_with_their_parameter():
    whole = Learner(ModelType.FLUX_DEV_1, 1.0, fused=True)
    whole.step(0)
    later = Learner(ModelType.FLUX_DEV_1, 1.0, fused=True)
    later.network.load_state_dict(whole.network.state_dict())
    later.update.load_state_dict(deepcopy(whole.update.state_dict()))
    for run in (whole, later):
        run.step(1)
    assert all(map(torch.equal, whole.parameters, later.parameters))
