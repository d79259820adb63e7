"""Names, defaults and facts against those that OneTrainer's own code gives (see `reference_*`)."""

import json
from pathlib import Path

import pytest

from modules.config import MODELS, ConceptConfig, ModelType, Optimizer, SampleConfig, TrainConfig
from modules.config import TrainOptimizerConfig as Settings
from modules.config.optimizer_defaults import OPTIMIZER_DEFAULTS
from modules.config.section import Section, plain

REFERENCE = json.loads((Path(__file__).parent / "files" / "reference_defaults.json").read_text())
ELSEWHERE = {"__version", "ot", "seed", "uuid", "train_device"}
"""Ours, or drawn at random or by machine there."""


THEIRS = [kind for kind in ModelType if kind.value in REFERENCE["samples"]]
"""Model types that OneTrainer has too."""


def bare(value):
    """A section's plain values; an optimizer's before one was chosen, as the reference has it."""
    if isinstance(value, Settings):
        return {
            name: plain(field.get_default(call_default_factory=True))
            for name, field in Settings.model_fields.items()
        }
    return {
        name: bare(getattr(value, name))
        if isinstance(getattr(value, name), Section)
        else plain(getattr(value, name))
        for name in type(value).model_fields
        if name not in ELSEWHERE
    }


def test_only_two_model_types_are_our_own():
    assert set(ModelType) - set(THEIRS) == {
        ModelType.LUMINA_2,
        ModelType.AURA_FLOW,
        ModelType.WAN_2,
    }


def test_every_setting_and_its_default_is_onetrainers():
    assert bare(TrainConfig()) == REFERENCE["train_config"]


def test_every_setting_of_a_concept_and_its_default_is_onetrainers():
    assert bare(ConceptConfig()) == REFERENCE["concept"]


@pytest.mark.parametrize("name", Optimizer)
def test_an_optimizer_has_the_parameters_and_usual_values_of_onetrainer(name):
    expected = REFERENCE["optimizers"][name.value]
    assert {key: plain(value) for key, value in OPTIMIZER_DEFAULTS[name].items()} == expected
    made = Settings(optimizer=name).to_dict()
    assert {key: made[key] for key in expected} == expected


@pytest.mark.parametrize("kind", THEIRS)
def test_a_sample_of_a_model_type_is_onetrainers(kind):
    expected = dict(REFERENCE["samples"][kind.value])
    made = SampleConfig.for_model(kind).to_dict()
    if kind is ModelType.CHROMA_1:
        expected.pop("negative_prompt")  # ours is shorter
        assert made["negative_prompt"]
    assert {name: made[name] for name in expected} == expected


@pytest.mark.parametrize("kind", THEIRS)
def test_the_filter_presets_of_a_model_type_are_onetrainers(kind):
    ours = {name: [p.layer_filter, p.regex] for name, p in MODELS[kind].filters.items()}
    assert ours == REFERENCE["filters"][kind.value]
