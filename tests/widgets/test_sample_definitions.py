"""The editor of sample definitions: in step with its job, and honest about what is wrong."""

import pytest

from modules.config import SampleConfig, settings
from ot_notebook.widgets.job_config import JobConfig
from ot_notebook.widgets.sample_definitions import SampleDefinitions, shown_rows


@pytest.fixture
def job(config, wire):
    samples = [{"prompt": prompt, "seed": 7} for prompt in ("a fox", "a frog", "an owl")]
    job = JobConfig(config.update(samples=samples))
    yield job
    job.close()


@pytest.fixture
def editor(job, stage):
    editor = SampleDefinitions(job, stage.service)
    yield editor
    editor.close()


def say(editor, op, **given):
    editor._front._handle_custom_msg({"op": op, **given}, [])
    return editor._front.view


def prompts(editor):
    return [item["values"]["prompt"] for item in editor._front.view["items"]]


def test_an_edit_reaches_the_job_and_its_form(job, editor):
    say(editor, "edit", index=1, name="prompt", value="a toad")
    say(editor, "edit", index=1, name="width", value="256")
    say(editor, "edit", index=0, name="enabled", value=False)
    assert job.config.samples[1].prompt == "a toad"
    assert job.config.samples[1].width == 256
    assert job.config.samples[1].seed == 7
    assert not job.config.samples[0].enabled
    assert job._front.values["samples"][1]["prompt"] == "a toad"
    assert editor._front.view["summary"] == "2 of 3 drawn"


def test_code_and_form_reach_the_editor(job, editor):
    job.update(samples=[{"prompt": "a cake"}])
    assert prompts(editor) == ["a cake"]
    job._front._handle_custom_msg({"op": "edit", "path": "samples.0.prompt", "value": "a bun"}, [])
    assert prompts(editor) == ["a bun"]
    job.update(samples=[])
    assert prompts(editor) == []
    assert "No samples yet." in editor.story()


def test_order_copies_and_new_ones(job, editor):
    say(editor, "up", index=2)
    assert prompts(editor) == ["a fox", "an owl", "a frog"]
    say(editor, "copy", index=0)
    assert [sample.prompt for sample in job.config.samples] == prompts(editor)
    assert prompts(editor) == ["a fox", "a fox", "an owl", "a frog"]
    say(editor, "remove", index=0)
    say(editor, "add")
    assert prompts(editor) == ["a fox", "an owl", "a frog", ""]
    say(editor, "undo")
    say(editor, "undo")
    assert prompts(editor) == ["a fox", "a fox", "an owl", "a frog"]
    say(editor, "remove", index=99)
    assert len(prompts(editor)) == 4


def test_what_is_no_value_stays_as_typed_with_the_reason_and_changes_nothing(job, editor):
    view = say(editor, "edit", index=0, name="width", value="wide")
    assert view["items"][0]["values"]["width"] == "wide"
    assert (
        "samples.0.width is 'wide', but must be a whole number"
        in (view["items"][0]["problems"]["width"])
    )
    assert job.config.samples[0].width != "wide"
    view = say(editor, "edit", index=0, name="width", value="128")
    assert view["items"][0]["problems"] == {}
    assert job.config.samples[0].width == 128


def test_one_is_drawn_now_only_while_a_run_takes_steps(stage, job, editor):
    assert not editor._front.view["can_draw"]
    alert = say(editor, "draw", index=1)["alert"]
    assert "no run has been started" in alert["text"]
    stage.go("loading", "training")
    assert editor._front.view["can_draw"]
    assert say(editor, "draw", index=1)["alert"] is None
    assert stage.run.commands.take().sample == job.config.samples[1]
    assert "gone" in say(editor, "draw", index=9)["alert"]["text"]
    stage.go("finished")
    assert not editor._front.view["can_draw"]


def test_a_page_edits_samples_and_nothing_else(job, editor):
    before = job.config
    say(editor, "edit", index=0, name="prompt.x", value="a")
    say(editor, "edit", index="0", name="prompt", value="a")
    say(editor, "edit", index=0, name="../epochs", value="9")
    say(editor, "nonsense", self=1, index=0)
    assert job.config == before


def test_prompts_are_text_in_every_mode(job, editor, stage):
    job.update(samples=[{"prompt": "<script>alert(1)</script>" + "x" * 10_000}])
    assert "<script" not in editor.story()
    assert "&lt;script" in editor.story()
    assert len(editor.story()) < 5000
    assert len(editor.plain()) < 500


def test_core_widgets_do_the_same(job, stage, wire):
    editor = SampleDefinitions(job, stage.service, mode="core")
    card = editor._cards[1]
    card._lines["prompt"]._control.value = "a toad"
    assert job.config.samples[1].prompt == "a toad"
    card._lines["width"]._control.value = "wide"
    assert "must be a whole number" in card._lines["width"]._words.value
    job.update(samples=[{"prompt": "a bun"}])
    assert len(editor._list.children) == 1
    assert editor._cards[0]._lines["prompt"]._control.value == "a bun"
    assert editor._cards[0]._draw.disabled
    stage.go("loading", "training")
    assert not editor._cards[0]._draw.disabled
    editor.close()


def test_every_basic_setting_of_a_sample_has_a_control():
    names = {setting.path for setting in settings(SampleConfig) if setting.level == "basic"}
    assert {row["path"] for row in shown_rows()} == names
    assert {"prompt", "width", "height", "seed", "diffusion_steps", "cfg_scale"} < names
