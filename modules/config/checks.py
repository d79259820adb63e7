"""Rules across settings, model, data and machine: what would stop a run, said before it starts.

`RULES` is the registry: small functions from a `Case` to problems, by subject in `rules_*.py`.
"""

from __future__ import annotations

from modules.config import (
    rules_embeddings,
    rules_engine,
    rules_files,
    rules_machine,
    rules_model,
    rules_training,
)
from modules.config.case import Case, DataFacts, Rule
from modules.config.hardware import Hardware, detect
from modules.config.models import MODELS
from modules.config.problems import Problem
from modules.config.sample_config import SampleConfig
from modules.config.train_config import TrainConfig

RULES: tuple[Rule, ...] = (
    *rules_engine.RULES,
    *rules_model.RULES,
    *rules_training.RULES,
    *rules_embeddings.RULES,
    *rules_files.RULES,
    *rules_machine.RULES,
)
"""Every rule."""


def validate(
    config: TrainConfig, hardware: Hardware | None = None, data: DataFacts | None = None
) -> list[Problem]:
    """Everything that would stop a run, or make it other than the config says; errors first.

    Nothing is loaded or written, and the hub is not asked; the file system is looked at.

    Args:
        config: what to check.
        hardware: the device that will train; None looks for `train_device` in this machine.
        data: what a scan found; None leaves out the rules that need to know.
    """
    device = hardware or detect(config.train_device)
    case = Case(config, MODELS[config.model_type], device, data)
    found = (problem for rule in RULES for problem in rule(case))
    return sorted(dict.fromkeys(found), key=lambda problem: problem.severity != "error")


def sample_problems(
    config: TrainConfig, definition: SampleConfig, hardware: Hardware | None = None
) -> list[Problem]:
    """What would keep a sample from being drawn as it is defined, by its fields' names.

    Args:
        config: of the run that draws it.
        definition: the sample.
        hardware: as `validate` takes it.
    """
    one = config.update(samples=[definition.update(enabled=True)])
    lead = "samples.0."
    return [
        Problem(
            problem.field.removeprefix(lead),
            problem.severity,
            problem.message.replace(lead, ""),
            problem.fix.replace(lead, ""),
        )
        for problem in validate(one, hardware)
        if problem.field.startswith(lead) and problem.severity == "error"
    ]
