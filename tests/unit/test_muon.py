"""Muon trains matrices of hidden layers, and Adam the rest, each as torch's own classes do."""

import copy

import pytest
import torch
from torch import nn

from modules.config import ConfigError, Optimizer, TrainConfig
from modules.training.muon import AUX, group_rates, split_groups
from modules.training.optimizers import (
    build_optimizer,
    load_optimizer_state,
    optimizer_problems,
)
from modules.training.randomness import Randomness
from modules.training.schedules import base_rates


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.block = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8))
        self.out = nn.Linear(8, 4, bias=False)


def made(kind="MUON", **numbers):
    return TrainConfig().update(learning_rate=0.02, optimizer={"optimizer": kind, **numbers})


def split(config, network):
    return split_groups(config.optimizer, {"unet": list(network.parameters())}, [network])


def names(network, parameters):
    known = {id(p): name for name, p in network.named_parameters()}
    return {known[id(p)] for p in parameters}


def test_matrices_are_muons_and_all_else_is_adams():
    network = Toy()
    groups = split(made(), network)
    assert names(network, groups["unet"]) == {"block.0.weight", "block.2.weight", "out.weight"}
    assert names(network, groups["unet" + AUX]) == {
        "embed.weight", "block.0.bias", "block.1.weight", "block.1.bias", "block.2.bias",
    }  # fmt: skip
    assert list(split(made("ADAMW"), network)) == ["unet"]


@pytest.mark.parametrize(
    ("layers", "regex", "muons"),
    [
        ("block", False, {"block.0.weight", "block.2.weight"}),
        ("block.2, out", False, {"block.2.weight", "out.weight"}),
        (r"^block\.0", True, {"block.0.weight"}),
    ],
)
def test_layers_can_be_chosen(layers, regex, muons):
    network = Toy()
    groups = split(made(muon_hidden_layers=layers, muon_adam_regex=regex), network)
    assert names(network, groups["unet"]) == muons


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ConfigError, match="is nowhere, which no matrix that trains is part of"):
        split(made(muon_hidden_layers="nowhere"), Toy())
    with pytest.raises(ConfigError, match="is a\\(, which is no regular expression"):
        split(made(muon_hidden_layers="a(", muon_adam_regex=True), Toy())
    with pytest.raises(ConfigError, match="5 of the tensors that train are no matrices"):
        split(made(MuonWithAuxAdam=False), Toy())


def test_adam_beside_muon_has_rates_of_its_own():
    groups = ["unet", "unet" + AUX, "text_encoder" + AUX]
    config = made(muon_adam_lr=1e-4, muon_te1_adam_lr=1e-5)
    rates = group_rates(config, base_rates(config, ["unet", "text_encoder"]), groups)
    assert rates == {"unet": 0.02, "unet" + AUX: 1e-4, "text_encoder" + AUX: 1e-5}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 brought it")
def test_steps_are_those_of_torchs_muon_and_adam():
    torch.manual_seed(0)
    ours, theirs = Toy(), Toy()
    theirs.load_state_dict(ours.state_dict())
    config = made(weight_decay=0.1, muon_adam_config={"beta1": 0.8, "beta2": 0.9, "eps": 1e-8})
    groups = split(config, ours)
    rates = group_rates(config, {"unet": 0.02}, groups)
    optimizer = build_optimizer(config.optimizer, groups, rates)
    matrices = [theirs.block[0].weight, theirs.block[2].weight, theirs.out.weight]
    rest = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    references = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=3e-4, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.0),
    ]
    for _ in range(4):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        for reference in references:
            reference.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6 if p.ndim < 2 or name == "embed.weight" else 2e-3)


@pytest.mark.parametrize("kind", ["MUON_ADV", "ADAMUON_ADV"])
def test_settings_of_the_adam_reach_it(kind):
    config = made(kind, muon_adam_config={"beta1": 0.8, "beta2": 0.9, "weight_decay": 0.3})
    assert optimizer_problems(config.optimizer) == []
    groups = split(config, Toy())
    optimizer = build_optimizer(config.optimizer, groups, dict.fromkeys(groups, 1e-3))
    muon, adam = optimizer.param_groups
    assert (muon["use_muon"], adam["use_muon"]) == (True, False)
    assert (adam["adam_betas"], adam["adam_weight_decay"]) == ((0.8, 0.9), 0.3)


def test_settings_that_the_adam_lacks_are_refused():
    def problem(**wanted):
        return str(optimizer_problems(made(muon_adam_config=wanted).optimizer)[0])

    assert "has amsgrad, which the Adam beside MUON cannot honour" in problem(amsgrad=True)
    assert "names LION, but beside MUON only an Adam can train" in problem(optimizer="LION")
    assert "has one of beta1 and beta2" in problem(beta1=0.5)
    usual = {"__version": 0, "optimizer": "ADAMW", "amsgrad": False, "fused": True}
    assert optimizer_problems(made(muon_adam_config=usual).optimizer) == []


@pytest.mark.parametrize("kind", [Optimizer.MUON, Optimizer.MUON_ADV, Optimizer.ADAMUON_ADV])
def test_muon_learns(kind):
    torch.manual_seed(0)
    network, goal = Toy(), Toy()
    config = made(kind.value, muon_adam_lr=1e-3)
    groups = split(config, network)
    optimizer = build_optimizer(
        config.optimizer, groups, group_rates(config, {"unet": 0.02}, groups)
    )
    losses = []
    for _ in range(60):
        words = torch.randint(0, 10, (32,))
        made_of, wanted = (n.out(n.block(n.embed(words))) for n in (network, goal))
        loss = (made_of - wanted.detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10]) / 2


def test_a_muon_that_draws_for_itself_draws_by_the_step_alone():
    """Twice in one process, and from the middle on: adv_optm's own generator goes on for ever."""

    def trained(first, network, moments=None):
        config = made("MUON_ADV", low_rank_ortho=True, ortho_rank=4)
        groups = split(config, network)
        optimizer = build_optimizer(config.optimizer, groups, dict.fromkeys(groups, 1e-2))
        if moments is not None:
            load_optimizer_state(optimizer, moments)
        randomness = Randomness(torch.device("cpu"), seed=1)
        for step in range(first, 4):
            randomness.seed_layers(step, 0)
            generator = torch.Generator().manual_seed(step)
            for p in network.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
            if step == 1:
                middle = copy.deepcopy(network), copy.deepcopy(optimizer.state_dict())
        return network, None if first else middle

    torch.manual_seed(0)
    start = Toy()
    straight, (network, moments) = trained(0, copy.deepcopy(start))
    again, _ = trained(0, copy.deepcopy(start))
    resumed, _ = trained(2, network, moments)
    for p, q, r in zip(
        straight.parameters(), again.parameters(), resumed.parameters(), strict=True
    ):
        assert torch.equal(p, q)
        assert torch.equal(p, r)
