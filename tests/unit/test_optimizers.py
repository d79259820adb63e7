import importlib.util

import pytest
import torch
from torch import nn

from modules.config import ConfigError, Optimizer, TrainConfig
from modules.config.optimizer_packages import NOWHERE, PACKAGE_OF, PIP
from modules.training.muon import split_groups
from modules.training.optimizers import (
    RECIPES,
    build_optimizer,
    load_optimizer_state,
    optimizer_problems,
    saved_state,
)
from modules.training.rounding import widened

INSTALLED = [
    kind for kind, recipe in RECIPES.items() if importlib.util.find_spec(recipe.package) is not None
]


def settings(kind, **numbers):
    return TrainConfig().update(optimizer={"optimizer": kind.value, **numbers}).optimizer


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 8), (8, 16), (12,), (4, 3, 3, 3)]
    return {
        part: [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in of_part]
        for part, of_part in (("unet", shapes[:2]), ("text_encoder", shapes[2:]))
    }


def steps(optimizer, groups, count, first=0):
    """Walk down a bowl around 0, with noise that depends on the step alone."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        for parameter in (p for group in groups.values() for p in group):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (2 * parameter.detach() + 0.01 * noise).to(parameter.dtype)
        torch.manual_seed(step)  # stochastic rounding and the like
        optimizer.step()
        optimizer.zero_grad()


def build(kind, groups, rate=0.05, **numbers):
    other = rate if RECIPES[kind].one_rate else rate / 2
    network = nn.ParameterList([p for group in groups.values() for p in group])
    split = split_groups(settings(kind), groups, [network])
    rates = {name: rate if name.startswith("unet") else other for name in split}
    return build_optimizer(settings(kind, **numbers), split, rates)


@pytest.mark.parametrize("kind", INSTALLED, ids=lambda kind: kind.value)
def test_every_installed_optimizer_goes_downhill(kind):
    groups = parameters()
    before = sum(p.square().sum() for group in groups.values() for p in group)
    finds_its_rate = "PRODIGY" in kind.value or "DADAPT" in kind.value
    optimizer = build(kind, groups, rate=1.0 if finds_its_rate else 0.05)
    names = [group["name"] for group in optimizer.param_groups]
    assert [name for name in names if not name.endswith("(Adam)")] == ["unet", "text_encoder"]
    heights = []
    for step in range(20):
        steps(optimizer, groups, 1, first=step)
        heights.append(sum(p.square().sum() for group in groups.values() for p in group))
    # those that find their rate overshoot in so smooth a bowl before they settle
    assert (min(heights) if finds_its_rate else heights[-1]) < before
    assert all(p.isfinite().all() for group in groups.values() for p in group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", INSTALLED, ids=lambda kind: kind.value)
def test_a_reloaded_optimizer_goes_on_bit_for_bit(kind, dtype, tmp_path):
    straight = parameters(dtype)
    optimizer = build(kind, straight, stochastic_rounding=False)
    steps(optimizer, straight, 3)
    torch.save(saved_state(optimizer), tmp_path / "optimizer.pt")
    resumed = {
        name: [nn.Parameter(p.detach().clone()) for p in group] for name, group in straight.items()
    }
    steps(optimizer, straight, 3, first=3)

    again = build(kind, resumed, stochastic_rounding=False)
    load_optimizer_state(again, torch.load(tmp_path / "optimizer.pt", weights_only=True))
    steps(again, resumed, 3, first=3)
    for name, group in straight.items():
        for expected, parameter in zip(group, resumed[name], strict=True):
            assert torch.equal(expected, parameter), name
    one, other = optimizer.state_dict(), again.state_dict()
    assert [group.keys() for group in other["param_groups"]] == [
        group.keys() for group in one["param_groups"]
    ]
    for number, moments in one["state"].items():
        for key, expected in moments.items():
            found = other["state"][number][key]
            if isinstance(expected, torch.Tensor):
                assert (found.dtype, found.device) == (expected.dtype, expected.device), key
                assert torch.equal(found, expected), key


def test_an_older_backup_goes_on_bit_for_bit_where_its_moments_tell_the_type():
    """CAME keeps one number in the type of the weights, beside moments of float32."""
    straight = parameters(torch.bfloat16)
    optimizer = build(Optimizer.CAME, straight, stochastic_rounding=False)
    steps(optimizer, straight, 3)
    again = build(Optimizer.CAME, parameters(torch.bfloat16), stochastic_rounding=False)
    load_optimizer_state(again, optimizer.state_dict())
    for number, moments in optimizer.state_dict()["state"].items():
        for key, expected in moments.items():
            found = again.state_dict()["state"][number][key]
            assert (found == expected) if key == "step" else torch.equal(found, expected), key


@pytest.mark.parametrize("saved", [saved_state, torch.optim.Optimizer.state_dict])
def test_moments_follow_weights_that_have_another_type_now(saved):
    groups = {"unet": [nn.Parameter(torch.ones(3, dtype=torch.bfloat16))]}
    plain = settings(Optimizer.ADAMW, stochastic_rounding=False)
    optimizer = build_optimizer(plain, groups, {"unet": 1e-3})
    steps(optimizer, groups, 1)
    wide = {"unet": [nn.Parameter(torch.ones(3))]}
    again = build_optimizer(plain, wide, {"unet": 1e-3})
    load_optimizer_state(again, saved(optimizer))
    assert again.state[wide["unet"][0]]["exp_avg"].dtype == torch.float32
    steps(again, wide, 1)


def test_moments_of_weights_that_were_wide_follow_those_that_are_no_more():
    """Rounding at random was on, for which the optimizer saw float32, and is off now."""
    groups = {"unet": [nn.Parameter(torch.ones(3, dtype=torch.bfloat16))]}
    optimizer = build_optimizer(settings(Optimizer.ADAMW), groups, {"unet": 1e-3})
    with widened(groups["unet"]):
        steps(optimizer, groups, 1)
    state = saved_state(optimizer, wide=(torch.bfloat16,))
    again = build_optimizer(settings(Optimizer.ADAMW), groups, {"unet": 1e-3})
    load_optimizer_state(again, state)
    assert again.state[groups["unet"][0]]["exp_avg"].dtype == torch.bfloat16
    with widened(groups["unet"]):
        load_optimizer_state(again, state)
    assert again.state[groups["unet"][0]]["exp_avg"].dtype == torch.float32


def test_what_no_gradient_has_reached_has_no_moments_after_a_resume():
    groups = parameters()
    optimizer = build(Optimizer.ADAMW, groups)
    steps(optimizer, {"unet": groups["unet"]}, 1)
    again = build(Optimizer.ADAMW, groups)
    load_optimizer_state(again, optimizer.state_dict())
    assert again.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys() == {0, 1}


def test_numbers_reach_the_class():
    optimizer = build_optimizer(
        settings(Optimizer.ADAMW, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.3),
        parameters(),
        {"unet": 1e-3, "text_encoder": 1e-4},
    )
    unet, text = optimizer.param_groups
    assert (unet["lr"], text["lr"]) == (1e-3, 1e-4)
    assert (unet["betas"], unet["eps"], unet["weight_decay"]) == ((0.8, 0.95), 1e-6, 0.3)
    assert unet["fused"]


def test_settings_have_other_names_in_libraries():
    def group(kind, **numbers):
        return build_optimizer(
            settings(kind, **numbers), parameters(), {"unet": 1e-3, "text_encoder": 1e-4}
        ).param_groups[0]

    assert group(Optimizer.ADAFACTOR, eps2=0.01)["eps"] == (1e-30, 0.01)
    assert group(Optimizer.TIGER, beta1=0.9)["beta"] == 0.9
    assert group(Optimizer.YOGI, decoupled_decay=False)["weight_decouple"] is False
    assert group(Optimizer.CAME, beta3=0.95)["betas"] == (0.9, 0.999, 0.95)


def test_a_backup_keeps_the_moments_and_not_the_settings():
    groups = parameters()
    optimizer = build(Optimizer.ADAMW, groups)
    steps(optimizer, groups, 2)
    other = build_optimizer(
        settings(Optimizer.ADAMW, weight_decay=0.5), groups, {"unet": 1.0, "text_encoder": 2.0}
    )
    load_optimizer_state(other, optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [1.0, 2.0]
    assert {group["weight_decay"] for group in other.param_groups} == {0.5}
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(
        torch.equal(a, b["exp_avg"]) for a, b in zip(moments, other.state.values(), strict=True)
    )


def test_a_backup_of_other_parts_is_refused():
    optimizer = build(Optimizer.ADAMW, parameters())
    alone = build_optimizer(
        settings(Optimizer.ADAMW), {"unet": parameters()["unet"]}, {"unet": 1e-3}
    )
    with pytest.raises(ValueError, match="trains"):
        load_optimizer_state(alone, optimizer.state_dict())


def test_a_missing_package_is_named_with_its_pip_line():
    missing = [kind for kind in RECIPES if kind not in INSTALLED]
    if not missing:
        pytest.skip("every optional package is installed")
    (problem,) = optimizer_problems(settings(missing[0]))
    package = RECIPES[missing[0]].package
    assert package in problem.message
    assert f"pip install {package}" in problem.fix
    with pytest.raises(ConfigError, match="pip install"):
        build(missing[0], parameters())


def test_a_setting_that_the_optimizer_lacks_is_refused():
    (problem,) = optimizer_problems(settings(Optimizer.SGD, beta1=0.9))
    assert problem.field == "optimizer.beta1"
    assert "SGD has no such setting" in problem.message
    assert optimizer_problems(settings(Optimizer.SGD, momentum=0.9)) == []


@pytest.mark.parametrize(
    ("kind", "bits", "fix"),
    [
        (Optimizer.AdEMAMix, 8, "or use AdEMAMix_8BIT"),
        (Optimizer.LARS_8BIT, 32, "or use LARS."),
        (Optimizer.ADAMW, 8, "or use ADAMW_8BIT"),
    ],
)
def test_a_width_other_than_the_names_is_refused(kind, bits, fix):
    (problem,) = optimizer_problems(settings(kind, optim_bits=bits))
    assert problem.field == "optimizer.optim_bits"
    assert fix in problem.fix


def test_an_optimizer_that_finds_its_rate_takes_one():
    with pytest.raises(ConfigError, match="PRODIGY finds the learning rate itself"):
        build_optimizer(
            settings(Optimizer.PRODIGY), parameters(), {"unet": 1.0, "text_encoder": 0.5}
        )


def test_an_optimizer_that_the_engine_lacks_is_refused():
    (problem,) = optimizer_problems(settings(Optimizer.CAME_8BIT))
    assert "CAME_8BIT" in problem.message
    assert "ADAMW" in problem.fix


def test_numbers_that_a_library_refuses_are_the_users_to_change():
    bad = settings(Optimizer.SGD, nesterov=True, momentum=0.0)
    with pytest.raises(ConfigError, match=r"SGD refuses its settings.*[Nn]esterov"):
        build_optimizer(bad, parameters(), {"unet": 1e-3, "text_encoder": 1e-3})


def test_the_packages_that_the_rules_know_are_those_that_are_imported():
    assert {*RECIPES, *NOWHERE} == set(Optimizer)
    optional = {kind: recipe.package for kind, recipe in RECIPES.items()}
    own = {"torch", "transformers"}
    assert {kind: name for kind, name in optional.items() if name not in own} == PACKAGE_OF
    assert set(PACKAGE_OF.values()) == PIP.keys()
