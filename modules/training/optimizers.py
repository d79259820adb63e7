"""Optimizers, by the names the config uses: where each comes from, what its numbers are called."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from modules.config import ConfigError, Optimizer, Problem, TrainOptimizerConfig
from modules.config.optimizer_packages import not_here
from modules.training.muon import MUON, aux_problems, group_settings
from modules.training.rounding import wide_types, widened

BY_ENGINE = frozenset(("stochastic_rounding", "fused_back_pass"))
"""Settings that `Update` does for every optimizer; libraries that know them too are told no."""

TORCH_ADVANCED = {"decoupled_decay": "weight_decouple"}
"""Settings that pytorch_optimizer calls otherwise."""


@dataclass(frozen=True)
class Recipe:
    """Where an optimizer comes from. Settings are passed under their own names where those fit."""

    source: str
    """Import path of the class."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Settings that the class calls otherwise."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that make the class what the name promises."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """The library's own, for those that the config leaves open."""
    above_zero: Mapping[str, float] = field(default_factory=dict)
    """Settings that the class refuses at 0, which is their usual value, with its own instead."""
    one_rate: bool = False
    """Whether all parts must have one learning rate, because it finds the rate itself."""

    @property
    def package(self) -> str:
        """Import name of the package that must be installed."""
        return self.source.partition(".")[0]


def _bitsandbytes(name: str) -> Recipe:
    # The class decides the width of its state; those of 8 bits refuse to be told any.
    fixed = {} if name.endswith("8bit") else {"optim_bits": 32}
    return Recipe(f"bitsandbytes.optim.{name}", fixed=fixed)


RECIPES: dict[Optimizer, Recipe] = {
    Optimizer.SGD: Recipe("torch.optim.SGD"),
    Optimizer.ADAM: Recipe("torch.optim.Adam"),
    Optimizer.ADAMW: Recipe("torch.optim.AdamW"),
    Optimizer.ADAFACTOR: Recipe("transformers.optimization.Adafactor"),
    Optimizer.LION: Recipe("lion_pytorch.Lion", betas=(0.9, 0.99)),
    Optimizer.SCHEDULE_FREE_ADAMW: Recipe("schedulefree.AdamWScheduleFree"),
    Optimizer.SCHEDULE_FREE_SGD: Recipe(
        "schedulefree.SGDScheduleFree", above_zero={"momentum": 0.9}
    ),
    Optimizer.DADAPT_ADAM: Recipe("dadaptation.DAdaptAdam", one_rate=True),
    Optimizer.DADAPT_ADAN: Recipe(
        "dadaptation.DAdaptAdan", betas=(0.98, 0.92, 0.99), one_rate=True
    ),
    Optimizer.DADAPT_ADA_GRAD: Recipe(
        "dadaptation.DAdaptAdaGrad", above_zero={"eps": 1e-6}, one_rate=True
    ),
    Optimizer.DADAPT_LION: Recipe("dadaptation.DAdaptLion", betas=(0.9, 0.99), one_rate=True),
    Optimizer.DADAPT_SGD: Recipe("dadaptation.DAdaptSGD", one_rate=True),
    Optimizer.PRODIGY: Recipe("prodigyopt.Prodigy", one_rate=True),
    Optimizer.PRODIGY_PLUS_SCHEDULE_FREE: Recipe(
        "prodigyplus.ProdigyPlusScheduleFree", betas=(0.9, 0.99)
    ),
    Optimizer.CAME: Recipe("came_pytorch.CAME", betas=(0.9, 0.999, 0.9999)),
    Optimizer.ADAMW_ADV: Recipe("adv_optm.AdamW_adv", {"compile": "compiled_optimizer"}),
    Optimizer.ADOPT_ADV: Recipe(
        "adv_optm.Adopt_adv", {"compile": "compiled_optimizer"}, betas=(0.9, 0.9999)
    ),
    Optimizer.PRODIGY_ADV: Recipe("adv_optm.Prodigy_adv", {"compile": "compiled_optimizer"}),
    Optimizer.LION_ADV: Recipe(
        "adv_optm.Lion_adv", {"compile": "compiled_optimizer"}, betas=(0.9, 0.99)
    ),
    Optimizer.SIGNSGD_ADV: Recipe("adv_optm.SignSGD_adv", {"compile": "compiled_optimizer"}),
    # Jordan's own package is one file without releases; this is the same, with Adam beside it.
    Optimizer.MUON: Recipe("pytorch_optimizer.Muon", fixed={"nesterov": True}),
    Optimizer.MUON_ADV: Recipe("adv_optm.Muon_adv", {"compile": "compiled_optimizer"}),
    Optimizer.ADAMUON_ADV: Recipe(
        "adv_optm.AdaMuon_adv", {"compile": "compiled_optimizer"}, betas=(0.95, 0.95)
    ),
    Optimizer.ADABELIEF: Recipe("pytorch_optimizer.AdaBelief", TORCH_ADVANCED),
    Optimizer.TIGER: Recipe("pytorch_optimizer.Tiger", {**TORCH_ADVANCED, "beta1": "beta"}),
    Optimizer.AIDA: Recipe("pytorch_optimizer.Aida", TORCH_ADVANCED),
    Optimizer.ADOPT: Recipe("pytorch_optimizer.ADOPT", TORCH_ADVANCED, betas=(0.9, 0.9999)),
    Optimizer.YOGI: Recipe("pytorch_optimizer.Yogi", TORCH_ADVANCED),
    Optimizer.ADAGRAD: _bitsandbytes("Adagrad"),
    Optimizer.ADAGRAD_8BIT: _bitsandbytes("Adagrad8bit"),
    Optimizer.RMSPROP: _bitsandbytes("RMSprop"),
    Optimizer.RMSPROP_8BIT: _bitsandbytes("RMSprop8bit"),
    Optimizer.LARS: _bitsandbytes("LARS"),
    Optimizer.LARS_8BIT: _bitsandbytes("LARS8bit"),
    Optimizer.LAMB: _bitsandbytes("LAMB"),
    Optimizer.LAMB_8BIT: _bitsandbytes("LAMB8bit"),
    Optimizer.LION_8BIT: _bitsandbytes("Lion8bit"),
    Optimizer.ADAM_8BIT: _bitsandbytes("Adam8bit"),
    Optimizer.ADAMW_8BIT: _bitsandbytes("AdamW8bit"),
    Optimizer.SGD_8BIT: _bitsandbytes("SGD8bit"),
    Optimizer.AdEMAMix: _bitsandbytes("AdEMAMix"),
    Optimizer.AdEMAMix_8BIT: _bitsandbytes("AdEMAMix8bit"),
}
"""Every optimizer that this engine can build, where its package is installed."""


def optimizer_problems(settings: TrainOptimizerConfig) -> list[Problem]:
    """Why this optimizer cannot be built here: unknown to the engine, or not installed."""
    name = settings.optimizer.value
    if problem := _width_problem(settings) or not_here(settings.optimizer):
        return [problem]
    recipe = RECIPES[settings.optimizer]
    chosen = dict(settings)
    usual = dict(TrainOptimizerConfig(optimizer=settings.optimizer))
    changed = [key for key in chosen if chosen[key] not in (None, usual[key])]
    if not changed:
        return []
    known = _known_settings(recipe) | {"optim_bits"}  # which the name has decided
    if settings.optimizer in MUON:
        known |= {key for key in chosen if key.lower().startswith("muon")}
    return aux_problems(settings) + [
        Problem(
            f"optimizer.{key}",
            "error",
            f"optimizer.{key} is {chosen[key]}, but {name} has no such setting here.",
            f"Set it to {usual[key]}, its usual value, or choose another optimizer.",
        )
        for key in changed
        if key not in known
    ]


def _width_problem(settings: TrainOptimizerConfig) -> Problem | None:
    """Another width of moments than the optimizer's name says."""
    name, bits = settings.optimizer.value, settings.optim_bits
    usual = TrainOptimizerConfig(optimizer=settings.optimizer).optim_bits
    decided = 8 if name.endswith("_8BIT") else 32
    if bits in (None, usual, decided):
        return None
    other = f"{name}_8BIT" if bits == 8 else name.removesuffix("_8BIT")
    message = f"optimizer.optim_bits is {bits}, but the moments of {name} have {decided} bits."
    fix = f"Set it to {decided}"
    fix += f", or use {other}." if other != name and other in list(Optimizer) else "."
    return Problem("optimizer.optim_bits", "error", message, fix)


def rate_problems(settings: TrainOptimizerConfig, rates: Mapping[str, float]) -> list[Problem]:
    """Learning rates, by part, that the optimizer cannot have beside each other."""
    recipe = RECIPES.get(settings.optimizer)
    if recipe is None or not recipe.one_rate or len(set(rates.values())) < 2:
        return []
    return [
        Problem(
            f"{next(iter(rates))}.learning_rate",
            "error",
            f"{settings.optimizer.value} finds the learning rate itself and takes one for "
            f"all parts, but they have {sorted(set(rates.values()))}.",
            "Leave the learning rates of the parts empty.",
        )
    ]


def build_optimizer(
    settings: TrainOptimizerConfig,
    parameters: Mapping[str, Sequence[nn.Parameter]],
    rates: Mapping[str, float],
) -> torch.optim.Optimizer:
    """An optimizer whose parameter groups have their names in "name".

    Args:
        settings: which optimizer, and its numbers; None means the library's own.
        parameters: what trains, by group: a part, or what Muon leaves to Adam of one.
        rates: base learning rate of each group.

    Raises:
        ConfigError: if this engine has no such optimizer, its package is missing, or it refuses
            its numbers.
    """
    if problems := optimizer_problems(settings) + rate_problems(settings, rates):
        raise ConfigError(problems)
    recipe = RECIPES[settings.optimizer]
    kind = _class_of(recipe)
    groups: list[dict[str, Any]] = [
        {"name": name, "params": list(values), "lr": rates[name], **group_settings(settings, name)}
        for name, values in parameters.items()
    ]
    accepted = inspect.signature(kind.__init__).parameters
    arguments = optimizer_arguments(settings, recipe, accepted)
    if accepted["lr"].default is None and not settings.relative_step:
        arguments["lr"] = max(rates.values())  # refused if missing, though every group has its own
    try:
        # those that make their state at once give it the type that they will see in each step
        types = wide_types(settings.stochastic_rounding)
        with widened(_all(parameters), types=types):
            optimizer = kind(groups, **arguments)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(
            [
                Problem(
                    "optimizer",
                    "error",
                    f"{settings.optimizer.value} refuses its settings: {error}.",
                    "Change the optimizer's settings, or leave them at their defaults.",
                )
            ]
        ) from error
    return cast(torch.optim.Optimizer, optimizer)


def optimizer_arguments(
    settings: TrainOptimizerConfig, recipe: Recipe, accepted: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Keyword arguments for a class that accepts these; what the config leaves open is left out."""
    chosen = dict(settings)
    given: dict[str, Any] = {
        recipe.names.get(name, name): recipe.above_zero.get(name, value) if value == 0 else value
        for name, value in chosen.items()
        if value is not None and name not in ("optimizer", "optim_bits")
    }
    given |= dict.fromkeys(BY_ENGINE, False)
    numbers = [chosen[f"beta{place + 1}"] for place in range(len(recipe.betas))]
    given["betas"] = tuple(
        own if number is None else number for number, own in zip(numbers, recipe.betas, strict=True)
    )
    if "eps" in accepted and isinstance(accepted["eps"].default, tuple):
        first, second = accepted["eps"].default
        given["eps"] = (given.get("eps", first), given.get("eps2", second))
    if "orthogonal_gradient" in accepted and accepted["orthogonal_gradient"].default == "disabled":
        given["orthogonal_gradient"] = "flattened" if chosen["orthogonal_gradient"] else "disabled"
    if given.get("fused") and given.get("foreach") is False:
        del given["foreach"]  # torch refuses two ways at once, also where one is off
    arguments = {name: value for name, value in given.items() if name in accepted}
    return {**arguments, **recipe.fixed}


def _all(parameters: Mapping[str, Sequence[nn.Parameter]]) -> list[nn.Parameter]:
    return [parameter for part in parameters.values() for parameter in part]


def _class_of(recipe: Recipe) -> Any:
    module, _, name = recipe.source.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _known_settings(recipe: Recipe) -> set[str]:
    """Names of the settings that reach the class."""
    accepted = inspect.signature(_class_of(recipe).__init__).parameters
    names = {
        key for key in TrainOptimizerConfig.model_fields if recipe.names.get(key, key) in accepted
    }
    names |= BY_ENGINE
    if "betas" in accepted:
        names |= {f"beta{place + 1}" for place in range(len(recipe.betas))}
    if "eps" in accepted and isinstance(accepted["eps"].default, tuple):
        names.add("eps2")
    return names


def step_alone(optimizer: torch.optim.Optimizer, group: dict[str, Any], index: int) -> None:
    """Update one parameter of a group, as a step of all would.

    Args:
        optimizer: one of those in `ONE_BY_ONE`.
        group: its group, and...
        index: ...place there.
    """
    parameter = group["params"][index]
    if hasattr(optimizer, "step_parameter"):  # adv_optm
        optimizer.step_parameter(parameter, group, index)
        return
    groups = optimizer.param_groups
    optimizer.param_groups = [{**group, "params": [parameter]}]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups


def saved_state(
    optimizer: torch.optim.Optimizer, wide: Collection[torch.dtype] = ()
) -> dict[str, Any]:
    """What `load_optimizer_state` takes up again: moments, and for which weights they were made.

    Args:
        optimizer: whose they are.
        wide: types of parameters that it sees in float32.
    """
    seen = [
        [torch.float32 if p.dtype in wide else p.dtype for p in group["params"]]
        for group in optimizer.param_groups
    ]
    return {**optimizer.state_dict(), SEEN: seen}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take up a backup's moments; rates, decays and the like stay as the config says them.

    Args:
        optimizer: with its parameters in the types in which it sees them.
        state: of `saved_state`; older backups lack the types of their weights.

    Raises:
        ValueError: if the backup is of other parameters.
    """
    current = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    names = [group.get("name") for group in state["param_groups"]]
    if names != [group["name"] for group in current]:
        raise ValueError(
            f"the backup's optimizer trains {names}, this run {[g['name'] for g in current]}"
        )
    groups = state["param_groups"]
    needless = "actual_state_precision"
    if type(optimizer).__module__.startswith("adv_optm"):
        # Version 2.5 reads a key on loading that Lion, and Adam beside Muon, never write.
        groups = [{needless: "auto", **group} for group in groups]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    types = state.get(SEEN) or [[None] * len(group["params"]) for group in groups]
    for group, own, saved, seen in zip(
        optimizer.param_groups, current, state["param_groups"], types, strict=True
    ):
        group.update({key: value for key, value in own.items() if key in SETTINGS})
        if needless not in saved:
            group.pop(needless, None)
        for parameter, number, dtype in zip(group["params"], saved["params"], seen, strict=True):
            if number in state["state"]:  # none of what no gradient has reached yet
                _keep_bits(parameter, dtype, optimizer.state[parameter], state["state"][number])


def _keep_bits(
    parameter: nn.Parameter,
    seen: torch.dtype | None,
    loaded: dict[str, Any],
    saved: Mapping[str, Any],
) -> None:
    """Give an optimizer its numbers back as they were, in types of its own.

    torch makes all of them of their parameter's type, which is right where the run has another type
    of weights than the backup's, and costs bits where weights are narrower than moments.

    Args:
        parameter: as the optimizer sees it.
        seen: its type when they were saved; None if the backup does not tell: then it was this one
            if any of them has it.
        loaded: what torch has made of them.
        saved: what the backup holds.
    """
    tensors = {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}
    types = [seen] if seen else [tensors[name].dtype for name in tensors if name != "step"]
    if parameter.dtype in types:
        for name, value in tensors.items():
            if isinstance(loaded.get(name), torch.Tensor):
                loaded[name] = value.to(loaded[name].device)


SEEN = "seen_as"
"""Where a saved state has the types of its parameters, group by group."""

SETTINGS = frozenset(
    ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov", "amsgrad")
)
"""What a user sets in a parameter group; the rest of it may be the optimizer's own memory."""
