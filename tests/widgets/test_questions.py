"""What the dashboard asks in place: before a stop, and whether a run takes up edits of the form."""

import time

import pytest

from modules.training import commands as c
from modules.training import events as e
from ot_notebook.services.heartbeat import Beat
from ot_notebook.widgets.dashboard import Dashboard
from ot_notebook.widgets.job_config import JobConfig


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Clicks of these tests count as those of one who has read what is asked."""
    monkeypatch.setattr("ot_notebook.widgets.questions.DOUBLE_CLICK_SECONDS", 0.0)


@pytest.fixture(params=["rich", "core"])
def view(stage, wire, request):
    job = JobConfig(stage.config, mode=request.param)
    view = Dashboard(stage.service, job, mode=request.param)
    yield view
    view.close()
    job.close()


def press(view, op):
    """A click on a button, or on an answer where one with that name is asked for."""
    if view.mode == "rich":
        view._panel._handle_custom_msg({"op": "do", "command": op}, [])
        return
    answer = view._answers.get(op)
    shown = answer is not None and answer.layout.display != "none"
    (answer if shown else view._buttons[op]).click()


def asked(view):
    """The text of the question and its choices, or None."""
    if view.mode == "rich":
        question = view._panel.view["question"]
        return question and (question["text"], [one["op"] for one in question["choices"]])
    offered = [op for op, button in view._answers.items() if button.layout.display != "none"]
    return (view._core_question.value, offered) if view._core_question.value else None


@pytest.mark.parametrize("state", ["training", "paused", "sampling", "saving"])
def test_a_stop_asks_first_and_a_second_one_confirms(stage, view, state):
    stage.go("loading", "training", state)
    stage.step(7)
    press(view, "stop")
    assert not stage.run.commands.stop_requested
    text, choices = asked(view)
    assert "Stop after step 7 of 100?" in text
    assert ("pause" in choices) is (state != "paused")
    press(view, "stop")
    assert stage.run.commands.stop_requested
    assert asked(view) is None


def test_a_double_click_asks_and_answers_nothing(stage, view, monkeypatch):
    monkeypatch.setattr("ot_notebook.widgets.questions.DOUBLE_CLICK_SECONDS", 0.1)
    stage.go("loading", "training")
    press(view, "stop")
    press(view, "stop")
    assert not stage.run.commands.stop_requested
    assert "Stop after" in asked(view)[0]
    time.sleep(0.11)
    press(view, "stop")
    assert stage.run.commands.stop_requested


@pytest.mark.parametrize("state", ["loading", "caching"])
def test_where_no_step_is_lost_a_stop_stops_at_once(stage, view, state):
    stage.go("loading", state)
    press(view, "stop")
    assert stage.run.commands.stop_requested


def test_what_is_written_is_said(stage, view):
    for backup, words in ((True, "a backup to go on from"), (False, "no backup")):
        stage.config = stage.config.update(backup_before_save=backup)
        stage.go("loading", "training")
        press(view, "stop")
        assert words in asked(view)[0]
        stage.go("finished")


@pytest.mark.parametrize("answer", ["keep", "pause", "sample"])
def test_any_other_command_takes_the_question_back(stage, view, answer):
    stage.go("loading", "training")
    press(view, "stop")
    press(view, answer)
    assert asked(view) is None
    assert stage.run.commands.pause_requested is (answer == "pause")
    press(view, "stop")
    assert not stage.run.commands.stop_requested, "it asks anew"


def test_a_question_ends_with_its_run(stage, view):
    stage.go("loading", "training")
    press(view, "stop")
    stage.go("finished")
    assert asked(view) is None
    stage.go("loading", "training")
    press(view, "stop")
    assert not stage.run.commands.stop_requested


def test_two_views_ask_each_for_itself(stage, view):
    stage.go("loading", "training")
    other = Dashboard(stage.service, mode=view.mode)
    press(other, "stop")
    assert asked(view) is None
    other.close()


def test_a_run_of_another_process_is_asked_about_too(stage, view, monkeypatch):
    stage.service.set_trait("elsewhere", Beat("other", 4321, "here"))
    stops = []
    monkeypatch.setattr(stage.service, "stop", lambda: stops.append(1))
    press(view, "stop")
    assert "process 4321" in asked(view)[0]
    assert stops == []
    press(view, "stop")
    assert stops == [1]


def test_an_edit_of_the_form_is_offered_to_the_run_and_applied(stage, view):
    stage.go("loading", "training")
    assert asked(view) is None
    view.job.update(learning_rate=5e-4, epochs=99)
    view._pull()
    text, choices = asked(view)
    assert "Learning rate 0.0005 (run: " in text
    assert "pochs" not in text, "that is fixed when a run starts"
    assert choices == ["apply"]
    press(view, "apply")
    assert stage.run.commands.take() == c.ChangeSetting("learning_rate", 5e-4)
    old = stage.config.learning_rate
    stage.say(e.SettingChanged("learning_rate", old, 5e-4, 3))
    view._pull()
    assert asked(view) is None
    assert stage.service.config.learning_rate == 5e-4
    view.job.update(learning_rate=old)
    view._pull()
    assert f"(run: {5e-4})" in asked(view)[0]


def test_edits_that_can_be_are_applied_beside_one_that_cannot(stage, view):
    stage.go("loading", "training")
    view.job.update(mse_strength=0.0, clip_grad_norm=0.5)
    view._pull()
    press(view, "apply")
    assert stage.run.commands.take() == c.ChangeSetting("clip_grad_norm", 0.5)
    assert stage.run.commands.take() is None
    assert "are all 0" in view._alert["text"]


def test_settings_that_do_not_count_for_the_run_are_not_offered(stage, view):
    stage.go("loading", "training")
    view.job["transformer.learning_rate"] = 5e-4  # the model has none
    view._pull()
    assert asked(view) is None


@pytest.mark.parametrize("name", ["workspace_dir", "output_model_destination"])
def test_a_form_of_another_run_offers_this_one_nothing(stage, view, name, tmp_path):
    stage.go("loading", "training")
    view.job.update(learning_rate=5e-4, **{name: str(tmp_path / "other.safetensors")})
    view._pull()
    assert asked(view) is None
    view.do("apply")  # a click on what was offered before
    assert stage.run.commands.take() is None


def test_a_job_of_the_queue_that_is_edited_in_the_form_is_not_offered(stage, view):
    stage.go("loading", "training")
    view.job.edits = "a job"
    view.job.update(learning_rate=5e-4)
    view._pull()
    assert asked(view) is None
    view.job.edits = ""
    view._redraw()
    assert asked(view)[1] == ["apply"]


def test_no_edits_are_offered_where_no_run_could_take_them(stage, view):
    view.job.update(learning_rate=5e-4)
    view._pull()
    assert asked(view) is None
    stage.go("loading")
    assert asked(view) is None
    stage.go("training", "failed")
    assert asked(view) is None
    assert stage.service.config is None


def test_a_closed_view_hears_its_job_no_more(stage, wire):
    job = JobConfig(stage.config)
    view = Dashboard(stage.service, job)
    view.close()
    wire.clear()
    job.update(learning_rate=5e-4)
    assert [sender for sender, *_ in wire.messages if sender != job._front.model_id] == []
    assert not view._edited
    job.close()
