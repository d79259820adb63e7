"""One declaration feeds form, docs, terminal and schema."""

import json
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field
from typer.testing import CliRunner

from modules import cli_config
from modules.cli import build_app
from modules.config import (
    ConceptConfig,
    ModelType,
    SampleConfig,
    Show,
    TrainConfig,
    TrainingMethod,
    settings,
)
from modules.config.reference import models_markdown, options_markdown, options_text, schema
from modules.config.section import Int

DOCS = Path(__file__).parents[2] / "docs" / "options.md"


class Extended(TrainConfig):
    """A config with one more setting, declared once."""

    GROUP = "Experiments"

    grain: Annotated[
        Int,
        Field(ge=0, lt=10),
        Show(unit="px", level="basic", applies="now", methods=frozenset({TrainingMethod.LORA})),
    ] = 3
    """Size of the grain."""


def test_one_declaration_reaches_the_settings():
    (setting,) = [each for each in settings(Extended) if each.path == "grain"]
    assert (setting.annotation, setting.default, setting.nullable) == (int, 3, False)
    assert (setting.minimum, setting.exclusive_minimum) == (0, False)
    assert (setting.maximum, setting.exclusive_maximum) == (10, True)
    assert (setting.unit, setting.level, setting.applies) == ("px", "basic", "now")
    assert (setting.group, setting.help) == ("Experiments", "Size of the grain.")
    assert setting.applies_to(Extended().update(training_method="LORA"))
    assert not setting.applies_to(Extended())


def test_one_declaration_reaches_the_docs():
    row = (
        "| `grain` | whole number from 0 below 10, px | `3` | Size of the grain. | LORA | at once |"
    )
    page = options_markdown(Extended, "Options")
    assert row in page.splitlines()
    assert "## Experiments" in page


def test_one_declaration_reaches_the_terminal(monkeypatch):
    monkeypatch.setattr(cli_config, "TrainConfig", Extended)
    shown = CliRunner().invoke(build_app(), ["config", "options", "grain"]).stdout
    assert shown == (
        "grain  (whole number from 0 below 10, px; default 3; LORA)\n    Size of the grain.\n"
    )
    assert options_text(Extended, ["grain"]) + "\n" == shown


def test_one_declaration_reaches_the_schema():
    place = schema(Extended)["properties"]["grain"]
    expected = {
        "description": "Size of the grain.",
        "default": 3,
        "minimum": 0,
        "exclusiveMaximum": 10,
        "type": "integer",
        "x-unit": "px",
        "x-level": "basic",
        "x-applies": "now",
    }
    assert expected.items() <= place.items()


def test_one_declaration_reaches_the_file_and_the_checks(tmp_path):
    config = Extended().update(grain=7)
    config.save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["grain"] == 7
    assert Extended.load(tmp_path / "a.json")[0].grain == 7
    with pytest.raises(ValueError, match="grain is 10, but must be below 10"):
        config.update(grain=10)


def test_the_page_of_options_is_current():
    assert DOCS.read_text(encoding="utf-8") == cli_config.options_page(), (
        "docs/options.md is old; write it anew with "
        "`ot-notebook config options --markdown > docs/options.md`"
    )


def test_the_table_of_architectures_is_current():
    page = DOCS.with_name("compatibility.md").read_text(encoding="utf-8")
    assert models_markdown() in page, (
        "the table in docs/compatibility.md is old; take that of `ot-notebook config models`"
    )


@pytest.mark.parametrize("cls", [TrainConfig, ConceptConfig, SampleConfig])
def test_every_setting_says_what_it_does(cls):
    for setting in settings(cls, collections=True):
        assert setting.help.endswith("."), setting.path
        assert setting.group, setting.path
        assert len(setting.help) <= 200, setting.path


def test_settings_are_scalars_unless_collections_are_asked_for():
    names = {setting.path for setting in settings(TrainConfig)}
    more = {setting.path for setting in settings(TrainConfig, collections=True)}
    assert more - names == {
        "concepts",
        "samples",
        "scheduler_params",
        "optimizer_defaults",
        "additional_embeddings",
        "optimizer.muon_adam_config",
    }


@pytest.mark.parametrize(
    ("path", "changes", "counts"),
    [
        ("lokr_dim", {"training_method": "LORA"}, False),
        ("lokr_dim", {"training_method": "LORA", "peft_type": "LOKR"}, True),
        ("lokr_dim", {"training_method": "FINE_TUNE", "peft_type": "LOKR"}, False),
        ("unet.learning_rate", {}, True),
        ("unet.learning_rate", {"model_type": "FLUX_DEV_1"}, False),
        ("transformer.guidance_scale", {"model_type": "FLUX_DEV_1"}, True),
        ("transformer.guidance_scale", {"model_type": "QWEN"}, False),
        ("optimizer.d0", {}, False),
        ("optimizer.d0", {"optimizer.optimizer": "PRODIGY"}, True),
        ("text_encoder_2.train", {}, False),
        ("embedding.token_count", {"training_method": "EMBEDDING"}, True),
        ("embedding.token_count", {"model_type": "QWEN", "training_method": "EMBEDDING"}, False),
    ],
)
def test_a_setting_counts_where_it_is_used(path, changes, counts):
    (setting,) = [each for each in settings(TrainConfig) if each.path == path]
    assert setting.applies_to(TrainConfig().update(**changes)) is counts


@pytest.mark.parametrize("kind", ModelType)
def test_every_model_type_has_a_section_for_each_of_its_parts(kind):
    config = TrainConfig().update(model_type=kind)
    shown = {s.path.partition(".")[0] for s in settings(TrainConfig) if s.applies_to(config)}
    from modules.config import MODELS

    assert set(MODELS[kind].parts) <= shown


def test_the_schema_accepts_what_we_write_and_knows_each_sections_defaults():
    made = schema(TrainConfig)
    assert made["properties"]["text_encoder"]["properties"]["stop_training_after"]["default"] == 30
    assert made["properties"]["unet"]["properties"]["stop_training_after"]["default"] == 0
    json.dumps(made, allow_nan=False)
    jsonschema = pytest.importorskip("jsonschema")
    config = TrainConfig().update(concepts=[{"path": "a"}], samples=[{}])
    jsonschema.Draft202012Validator.check_schema(made)
    check = jsonschema.Draft202012Validator(made).validate  # `validate` alone checks the schema too
    check(config.to_dict())
    for bad in ({"epochs": 0}, {"unet": {"offload_fraction": 2}}, {"samples": [{"seed": "x"}]}):
        with pytest.raises(jsonschema.ValidationError):
            check(bad)
