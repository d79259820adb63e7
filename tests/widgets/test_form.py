"""The settings form without a screen."""

import json
import statistics
import time
from dataclasses import replace
from enum import Enum
from typing import Annotated

import pytest
from pydantic import Field

from modules.config import ConfigError, TrainConfig
from modules.config.part_config import TrainEmbeddingConfig
from modules.config.section import Show
from ot_notebook.widgets.form import Form, Snapshot
from ot_notebook.widgets.form_rows import words
from ot_notebook.widgets.job_config import read


class Colour(str, Enum):
    DARK_RED = "DARK_RED"
    GREEN = "GREEN"


class WithOneMore(TrainConfig):
    """A config class to which somebody has added settings: one declaration each, no other line."""

    glitter: Annotated[
        float, Field(gt=0, le=2), Show(unit="grams", level="basic", group="Magic")
    ] = 0.5
    """How much it glitters."""

    colour: Annotated[Colour, Show(group="Magic")] = Colour.GREEN
    """Its colour."""

    shiny: Annotated[bool | None, Show(group="Magic")] = None
    """Whether it shines; null to let it decide."""

    spells: Annotated[tuple[str, ...], Show(group="Magic")] = ()
    """Words to say."""


@pytest.fixture
def form():
    """The form of a preset, its numbers fixed here so that the preset may change."""
    snapshot = read("emoji LoRA")[0]
    start = snapshot.config.update(epochs=50, batch_size=8)
    return Form(replace(snapshot, config=start, start=start))


@pytest.fixture
def magic():
    config = WithOneMore()
    return Form(Snapshot(config, config))


def rows_of(form, group):
    (found,) = (one["rows"] for one in form.groups() if one["name"] == group)
    return {row["path"]: row for row in found}


def test_a_new_setting_needs_one_declaration(magic):
    row = rows_of(magic, "Magic")["glitter"]
    assert row["kind"] == "number"
    assert row["label"] == "Glitter"
    assert row["unit"] == "grams"
    assert row["help"] == "How much it glitters."
    assert row["rule"] == "above 0 and at most 2"
    assert row["default"] == "0.5"
    assert magic.values()["glitter"] == "0.5"
    assert "glitter" in magic.visible()

    magic.edit("glitter", "1.25")
    assert magic.now.config.glitter == 1.25
    assert magic.changed() == {"glitter": "0.5"}


def test_the_control_follows_from_the_type(magic):
    rows = rows_of(magic, "Magic")
    assert rows["colour"]["kind"] == "choice"
    assert rows["colour"]["choices"] == [("DARK_RED", "Dark red"), ("GREEN", "Green")]
    assert rows["shiny"]["choices"] == [("", "Not set"), ("true", "Yes"), ("false", "No")]
    assert rows["spells"]["kind"] == "json"
    magic.edit("colour", "DARK_RED")
    magic.edit("shiny", "false")
    magic.edit("spells", '["abra", "cadabra"]')
    config = magic.now.config
    assert (config.colour, config.shiny, config.spells) == (
        Colour.DARK_RED,
        False,
        ("abra", "cadabra"),
    )
    magic.edit("shiny", "")
    assert magic.now.config.shiny is None


def test_every_setting_has_a_control_that_holds_its_value_and_gives_it_back(form):
    before = form.now.config
    for path, value in form.values().items():
        if not isinstance(value, list):
            form.edit(path, value)
    assert form.problems() == []
    assert form.now.config == before


def test_the_description_is_plain_json(form):
    for part in (form.groups(), form.values(), form.visible(), form.changed()):
        json.dumps(part, allow_nan=False)


def test_an_edit_that_is_no_value_stays_as_a_draft_beside_the_last_valid_config(form):
    form.edit("epochs", "3")
    form.edit("epochs", "many")
    assert form.now.config.epochs == 3
    assert form.values()["epochs"] == "many"
    (problem,) = form.problems()
    assert problem.field == "epochs"
    assert str(problem) == (
        "epochs: epochs is 'many', but must be a whole number. Give a number without a fraction."
    )
    form.edit("epochs", "5")
    assert form.problems() == []
    assert form.now.config.epochs == 5


def test_text_that_is_no_json_names_the_fault(magic):
    magic.edit("spells", "[abra")
    (problem,) = [one for one in magic.problems() if one.field == "spells"]
    assert "'[abra' is no JSON" in problem.message
    assert magic.now.config.spells == ()


def test_a_draft_inside_an_item_of_a_list_is_shown_there(form):
    form.edit("concepts.0.balancing", "-1")
    assert form.values()["concepts"][0]["balancing"] == "-1"
    assert form.problems()[0].field == "concepts.0.balancing"
    assert "at least 0" in form.problems()[0].message
    form.reset("concepts")
    assert form.problems() == []
    assert form.values()["concepts"][0]["balancing"] == "1"


def test_typing_is_one_step_of_undo_and_another_field_is_another(form):
    for text in ("1", "12", "123"):
        form.edit("epochs", text)
    form.edit("batch_size", "4")
    assert form.undo()
    assert (form.now.config.epochs, form.now.config.batch_size) == (123, 8)
    assert form.undo()
    assert form.now.config.epochs == 50
    assert not form.undo()
    assert form.redo()
    assert form.redo()
    assert (form.now.config.epochs, form.now.config.batch_size) == (123, 4)
    assert not form.redo()


def test_an_edit_after_undo_ends_what_could_be_redone(form):
    form.edit("epochs", "3")
    form.undo()
    form.edit("batch_size", "2")
    assert form.can() == (True, False)


def test_undo_brings_back_the_preset_that_an_edit_started_from(form):
    other = TrainConfig()
    form.edit("epochs", "3")
    form.replace(Snapshot(other, other, "another"))
    assert form.changed() == {}
    form.undo()
    assert form.now.preset == "emoji LoRA"
    assert form.changed() == {"epochs": "50"}


def test_reset_is_to_the_preset_not_to_the_default(form):
    form.edit("epochs", "3")
    form.edit("batch_size", "2")
    form.reset("epochs")
    assert form.now.config.epochs == 50 != TrainConfig().epochs
    assert form.now.config.batch_size == 2
    form.edit("batch_size", "x")
    form.reset()
    assert form.now.config == form.now.start
    assert form.problems() == []


def test_items_are_added_copied_moved_and_removed(form):
    def names():
        return [concept.name for concept in form.now.config.concepts]

    form.change_items("concepts", "add", 0)
    form.edit("concepts.1.name", "mine")
    assert names() == ["line art", "mine"]
    form.change_items("concepts", "up", 1)
    assert names() == ["mine", "line art"]
    form.change_items("concepts", "copy", 0)
    assert names() == ["mine", "mine", "line art"]
    form.change_items("concepts", "down", 2)  # it is the last
    form.change_items("concepts", "remove", 7)  # another page was quicker
    form.change_items("concepts", "remove", 1)
    assert names() == ["mine", "line art"]
    with pytest.raises(ValueError, match="'fly' is no action"):
        form.change_items("concepts", "fly", 0)


def test_what_a_section_works_out_follows_its_words_until_somebody_sets_it(form):
    form.change_items("additional_embeddings", "add", 0)
    first = form.now.config.additional_embeddings[0].uuid
    form.edit("additional_embeddings.0.placeholder", "<fox>")
    second = form.now.config.additional_embeddings[0].uuid
    assert second == TrainEmbeddingConfig(placeholder="<fox>").uuid != first
    form.edit("additional_embeddings.0.uuid", "mine")
    form.edit("additional_embeddings.0.placeholder", "<cat>")
    made = form.now.config.additional_embeddings[0]
    assert (made.placeholder, made.uuid) == ("<cat>", "mine")
    form.edit("embedding.placeholder", "<dog>")
    embedding = form.now.config.embedding
    assert embedding.uuid == TrainEmbeddingConfig(placeholder="<dog>").uuid
    form.edit("embedding.token_count", "many")
    (problem,) = form.problems()
    assert problem.field == "embedding.token_count"
    assert form.now.config.embedding == embedding


def test_what_counts_follows_family_and_method(form):
    assert "unet.learning_rate" in form.visible()
    assert "lora_rank" in form.visible()
    assert "transformer.learning_rate" not in form.visible()
    form.edit("training_method", "FINE_TUNE")
    assert "lora_rank" not in form.visible()
    form.edit("model_type", "FLUX_DEV_1")
    assert "transformer.learning_rate" in form.visible()
    assert "unet.learning_rate" not in form.visible()


def test_settings_of_an_item_show_only_when_they_count(form):
    path = "concepts.0.text.tag_dropout_mode"
    assert path not in form.visible()
    form.edit("concepts.0.text.tag_dropout_enable", True)
    assert path in form.visible()


def test_values_from_code_drop_the_draft_that_they_replace_and_keep_others(form):
    form.edit("epochs", "many")
    form.edit("batch_size", "few")
    form.set(form.now.config.update(epochs=9))
    assert [problem.field for problem in form.problems()] == ["batch_size"]


def test_an_unknown_path_of_a_page_is_an_error(form):
    with pytest.raises((ConfigError, KeyError)):
        form.edit("no.such.setting", "1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("learning_rate", "Learning rate"),
        ("workspace_dir", "Workspace folder"),
        ("KOHYA_LORA", "Kohya LoRA"),
        ("ADAMW_8BIT", "AdamW 8-bit"),
        ("clip_grad_norm", "Clip grad norm"),
        ("ema_decay", "EMA decay"),
    ],
)
def test_names_of_code_become_words(name, text):
    assert words(name) == text


def test_an_edit_is_a_valid_config_within_50_ms(form):
    times = []
    for rate in range(1, 21):
        start = time.perf_counter()
        form.edit("unet.learning_rate", f"{rate}e-5")
        form.problems()
        times.append(time.perf_counter() - start)
    assert form.now.config.unet.learning_rate == 20e-5
    assert statistics.median(times) < 0.05
