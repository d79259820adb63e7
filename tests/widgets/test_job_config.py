"""`JobConfig`: code on one side, a page on the other, one truth between them."""

import json
import threading

import pytest

from modules.config import ConfigError, TrainConfig, settings
from ot_notebook.widgets.job_config import JobConfig, read

START = read("emoji LoRA")[0].config
"""What the preset says; a test changes settings to values that it does not have."""

EPOCHS = START.epochs


@pytest.fixture
def job(wire):
    job = JobConfig()
    yield job
    job.close()


def page(job, **content):
    """What the page sends."""
    job._front._handle_custom_msg(content, [])


def shown(job):
    """What the page was told last."""
    front = job._front
    return {name: getattr(front, name) for name in ("values", "changed", "problems", "head")}


def test_code_changes_the_form(job):
    job.update(epochs=3, **{"unet.learning_rate": 2e-4})
    job["batch_size"] = 2
    assert (job.config.epochs, job["unet.learning_rate"], job["batch_size"]) == (3, 2e-4, 2)
    assert shown(job)["values"]["unet.learning_rate"] == "0.0002"
    assert shown(job)["changed"] == {
        "epochs": str(EPOCHS),
        "unet.learning_rate": "not set",
        "batch_size": str(START.batch_size),
    }


def test_the_form_changes_what_code_sees(job):
    seen = []
    job.observe(lambda change: seen.append((change.old.epochs, change.new.epochs)), "config")
    page(job, op="edit", path="epochs", value="3")
    assert job.config.epochs == 3
    assert seen == [(EPOCHS, 3)]


def test_a_wrong_edit_is_a_problem_and_no_change(job):
    seen = []
    job.observe(seen.append, "config")
    page(job, op="edit", path="epochs", value="-1")
    assert seen == []
    assert [problem.field for problem in job.problems] == ["epochs"]
    (problem,) = shown(job)["problems"]
    assert problem["path"] == "epochs"
    assert problem["text"] == "epochs is '-1', but must be at least 1. Use a value at least 1."


def test_a_config_set_as_a_whole_is_shown(job):
    job.config = TrainConfig(epochs=9)
    assert shown(job)["values"]["epochs"] == "9"
    page(job, op="undo")
    assert job.config.epochs == EPOCHS


def test_an_unknown_name_changes_nothing_and_names_a_near_one(job):
    before = job.config
    with pytest.raises(ConfigError, match="Did you mean learning_rate"):
        job.update(epochs=3, learning_rat=1e-4)
    assert job.config is before


def test_an_edit_of_the_page_is_answered_once(job, wire):
    wire.clear()
    page(job, op="edit", path="epochs", value="3")
    (state,) = wire.states(job._front)
    assert "groups" not in state
    assert set(state) == {"values", "changed", "head"}
    wire.clear()
    page(job, op="beat", client="a")
    assert wire.states(job._front) == []  # nothing was lost, so nothing is repeated


def test_a_change_by_code_is_repeated_to_a_page_that_asks(job, wire):
    job.update(epochs=3)
    wire.clear()
    page(job, op="beat", client="a")
    (state,) = wire.states(job._front)
    assert state["values"]["epochs"] == "3"


def test_an_observer_may_change_the_job(job):
    def follow(change):
        job["batch_size"] = change.new.epochs

    job.observe(follow, "config")
    page(job, op="edit", path="epochs", value="3")
    assert (job.config.epochs, job.config.batch_size) == (3, 3)
    assert shown(job)["values"]["batch_size"] == "3"


def test_edits_from_many_threads_are_all_kept(job):
    paths = ["epochs", "batch_size", "gradient_accumulation_steps", "lora_rank"]
    seen = []
    job.observe(lambda change: seen.append(change.new), "config")

    def count(path):
        for value in range(1, 11):
            job[path] = 100 + value

    def type_in(path):
        for value in range(1, 11):
            page(job, op="edit", path=path, value=str(100 + value))

    threads = [
        threading.Thread(target=(count if index % 2 else type_in), args=(path,))
        for index, path in enumerate(paths)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [job[path] for path in paths] == [110] * 4
    assert len(seen) == 40
    assert seen[-1] is job.config
    assert shown(job)["values"]["lora_rank"] == "110"


def test_two_jobs_do_not_mix(job):
    other = JobConfig()
    other.update(epochs=3)
    assert job.config.epochs == EPOCHS
    other.close()


def test_save_and_load(job, tmp_path):
    file = tmp_path / "mine.json"
    with pytest.raises(ValueError, match="no file yet"):
        job.save()
    page(job, op="edit", path="epochs", value="3")
    assert job.save(file) == file
    assert json.loads(file.read_text())["epochs"] == 3
    job.update(epochs=4)
    assert job.save() == file

    other = JobConfig(file)
    assert other.config == job.config
    assert other.preset == str(file)
    assert job.load("emoji LoRA") == []
    assert job.config.epochs == EPOCHS
    job.undo()
    assert job.config.epochs == 4
    other.close()


def test_a_shipped_preset_is_never_written_over(job):
    job.load("emoji LoRA")
    with pytest.raises(ValueError, match="no file yet"):
        job.save()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"op": "load", "source": "emoji LoRa2"}, "Did you mean 'emoji LoRA'"),
        ({"op": "import", "name": "x.json", "text": "{"}, "x.json is no JSON"),
        ({"op": "import", "name": "x.json", "text": '{"epochs": -3}'}, "epochs is -3"),
        ({"op": "save", "path": ""}, "no file yet"),
        ({"op": "save", "path": "/proc/no/such.json"}, "/proc/no"),
    ],
)
def test_a_request_that_fails_says_why_on_the_page(job, content, words):
    before = job.config
    page(job, **content)
    notice = shown(job)["head"]["notice"]
    assert notice["tone"] == "bad"
    assert words in notice["text"]
    assert job.config is before
    page(job, op="edit", path="epochs", value="3")
    assert shown(job)["head"]["notice"] is None


def test_an_imported_file_with_an_unknown_key_is_loaded_and_says_so(job):
    page(job, op="import", name="x.json", text='{"epochs": 3, "epoch_count": 4}')
    assert job.config.epochs == 3
    notice = shown(job)["head"]["notice"]
    assert notice["tone"] == "hold"
    assert "epoch_count" in notice["text"]


def test_export_is_what_load_reads(job, wire):
    page(job, op="edit", path="epochs", value="3")
    page(job, op="export")
    (message,) = [m for m in wire.custom(job._front) if m["op"] == "export"]
    assert message["name"] == "emoji LoRA.json"
    assert TrainConfig.load(json.loads(message["text"]))[0] == job.config


@pytest.mark.parametrize("source", ["emoji LoRA", TrainConfig()])
def test_as_python_makes_the_same_settings(job, source):
    job.load(source)
    job.update(epochs=3, **{"unet.learning_rate": 2e-4, "clip_grad_norm": None})
    page(job, op="items", path="concepts", action="add", index=0)
    page(job, op="edit", path=f"concepts.{len(job.config.concepts) - 1}.name", value="a 'b' \"c\"")
    names = {}
    exec(job.as_python(), names)
    assert names["job"].config == job.config
    names["job"].close()


def test_differences_are_listed_against_start_defaults_and_presets(job, wire):
    page(job, op="edit", path="epochs", value="3")
    assert job.diff() == [{"path": "epochs", "here": "3", "there": str(EPOCHS)}]
    assert {"path": "epochs", "here": "3", "there": "100"} in job.diff("")
    assert job.diff("emoji LoRA") == job.diff()
    page(job, op="diff", against=None)
    assert wire.custom(job._front)[-1] == {"op": "diff", "rows": job.diff()}


def test_a_secret_is_nowhere_in_what_the_page_gets(wire):
    secret = "hf_" + "x" * 30
    job = JobConfig({"secrets": {"huggingface_token": secret}})
    assert secret not in json.dumps(job._front.get_state(), default=str)
    assert secret not in job.as_python() + job.story() + repr(job)
    job.close()


def test_text_from_a_file_is_shown_as_text(job):
    job.update(workspace_dir="<script>alert(1)</script>")
    assert "<script>alert" not in job.story()
    assert "&lt;script&gt;" in job.story()


def test_the_saved_notebook_lists_what_was_changed(job):
    assert "emoji LoRA, unchanged." in job.story()
    job.update(epochs=3)
    assert f"<code>epochs</code></td><td>{EPOCHS}</td><td>3</td>" in job.story()
    assert f"epochs: 3 (there {EPOCHS})" in job.plain()


# core widgets ----------------------------------------------------------------------------------


@pytest.fixture
def core(wire):
    job = JobConfig(mode="core")
    yield job
    job.close()


def control(job, path):
    return job._core._lines[path]._control


def shown_paths(job):
    boxes = set(job._core._body.children)
    return [path for path, line in job._core._lines.items() if line.box in boxes]


def test_core_widgets_hold_the_values_and_edit_them(core):
    assert control(core, "epochs").value == str(EPOCHS)
    control(core, "epochs").value = "3"
    control(core, "model_type").value = "STABLE_DIFFUSION_20"
    control(core, "concepts.0.enabled").value = False
    assert core.config.epochs == 3
    assert str(core.config.model_type) == "STABLE_DIFFUSION_20"
    assert core.config.concepts[0].enabled is False
    core.update(epochs=4)
    assert control(core, "epochs").value == "4"


def test_core_widgets_say_on_the_page_what_a_setting_is(core):
    state = control(core, "epochs").get_state()
    hint = state.get("tooltip") or state.get("description_tooltip")  # ipywidgets 7 or 8
    (setting,) = (one for one in settings(TrainConfig) if one.path == "epochs")
    assert hint == setting.help


def test_core_widgets_show_what_is_wrong_under_the_field(core):
    control(core, "epochs").value = "many"
    assert core.config.epochs == EPOCHS
    words = core._core._lines["epochs"]._words.value
    assert "epochs is &#x27;many&#x27;, but must be a whole number." in words
    control(core, "epochs").value = "5"
    assert core._core._lines["epochs"]._words.value == ""


def test_core_search_finds_advanced_settings_with_their_values(core):
    assert "clear_cache_before_training" not in shown_paths(core)
    core._core._search.value = "clear cache"
    assert shown_paths(core) == ["clear_cache_before_training"]
    assert control(core, "clear_cache_before_training").value is True
    core._core._search.value = ""
    assert "epochs" in shown_paths(core)


def test_core_lists_are_added_to_and_their_items_moved_copied_and_removed(core):
    count = len(core.config.samples)
    first, second = (sample.prompt for sample in core.config.samples[:2])
    tools = core._core._items
    tools["samples.0"].tools["down"].click()
    assert [sample.prompt for sample in core.config.samples[:2]] == [second, first]
    assert first in tools["samples.1"]._words.value
    tools["samples.1"].tools["copy"].click()
    assert len(core.config.samples) == count + 1
    tools["samples.1"].tools["remove"].click()
    core._core._lists["samples"].add.click()
    assert len(core.config.samples) == count + 1
    assert f"samples.{count}.prompt" in shown_paths(core)
    core._core._lists["samples"].reset.click()
    assert core.config.samples[0].prompt == first
    assert f"samples.{count}.prompt" not in shown_paths(core)


def test_core_additional_embeddings_are_edited_by_search(core):
    assert not [path for path in shown_paths(core) if path.startswith("additional")]
    core._core._search.value = "embeddings"
    core._core._lists["additional_embeddings"].add.click()
    control(core, "additional_embeddings.0.placeholder").value = "<fox>"
    control(core, "additional_embeddings.0.token_count").value = "4"
    control(core, "additional_embeddings.0.initial_embedding_text").value = "a red animal"
    core._core._search.value = "stop training after"
    control(core, "additional_embeddings.0.stop_training_after").value = "7"
    (made,) = core.config.additional_embeddings
    assert (made.placeholder, made.token_count, made.stop_training_after) == ("<fox>", 4, 7)
    assert made.initial_embedding_text == "a red animal"
    assert "&lt;fox&gt;" in core._core._items["additional_embeddings.0"]._words.value
    core._core._items["additional_embeddings.0"].tools["copy"].click()
    assert "so is" in core._core._lines["additional_embeddings.1.placeholder"]._words.value
    control(core, "additional_embeddings.1.placeholder").value = "<cat>"
    first, second = core.config.additional_embeddings
    assert first.uuid != second.uuid, "it follows the word that it is made of"
    assert [problem for problem in core.problems if "embedding" in problem.field] == []


def test_core_undo_and_reset(core):
    control(core, "epochs").value = "3"
    core._core._lines["epochs"]._reset.click()
    assert core.config.epochs == EPOCHS
    core._core._undo.click()
    assert core.config.epochs == 3
    assert control(core, "epochs").value == "3"


def test_core_preset_and_file(core, tmp_path):
    file = tmp_path / "mine.json"
    control(core, "epochs").value = "3"
    core._core._path.value = str(file)
    core._core._save.click()
    assert json.loads(file.read_text())["epochs"] == 3
    core._core._preset.value = ""
    core._core._preset.value = "emoji LoRA"
    assert core.config.epochs == EPOCHS
    core._core._load.click()
    assert core.config.epochs == 3


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode is 'rihc', but must be one of"):
        JobConfig(mode="rihc")
