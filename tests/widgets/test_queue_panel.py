"""The queue's panel: what it shows of each job, and what its buttons do."""

import threading
import time
from types import SimpleNamespace

import pytest

from modules.training import events as e
from ot_notebook.services.queue_service import QueueService
from ot_notebook.widgets.job_config import JobConfig
from ot_notebook.widgets.queue_panel import LABELS, QueuePanel, job_html

HOSTILE = "<img src=x onerror=alert(1)>\x00\x1b[31m"


@pytest.fixture
def queue(stage, tmp_path):
    queue = QueueService(tmp_path / "queue", stage.service)
    yield queue
    queue.close()


@pytest.fixture
def configs(config, tmp_path):
    return [
        config.update(
            workspace_dir=str(tmp_path / f"workspace-{n}"),
            output_model_destination=str(tmp_path / f"lora-{n}.safetensors"),
        )
        for n in range(3)
    ]


@pytest.fixture
def panel(queue, wire):
    panel = QueuePanel(queue)
    yield panel
    panel.close()


def press(panel, op, job=None, **given):
    """Press a button of the page; the view that comes of it."""
    content = {"op": op, **({"id": job.id} if job else {}), **given}
    panel._front._handle_custom_msg(content, [])
    return panel._front.view


def names(panel):
    return [row["name"] for row in panel._front.view["jobs"]]


def row(panel, name):
    return next(row for row in panel._front.view["jobs"] if row["name"] == name)


def ops(panel, name):
    return {button["op"]: button["enabled"] for button in row(panel, name)["buttons"]}


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_an_empty_queue_says_so_and_has_nothing_to_start(panel):
    view = panel._front.view
    assert (view["summary"], view["label"], view["jobs"]) == ("No jobs", "Paused", [])
    assert not view["can_start"]
    assert not view["can_add"]
    assert "No jobs yet." in panel.story()


def test_jobs_added_by_code_appear_and_are_reordered_and_removed(panel, queue, configs):
    a, b, c = (queue.add(config, name) for name, config in zip("abc", configs, strict=True))
    assert names(panel) == ["a", "b", "c"]
    assert ops(panel, "a") == {"up": False, "down": True, "remove": True}
    assert ops(panel, "c") == {"up": True, "down": False, "remove": True}
    press(panel, "up", c)
    assert names(panel) == ["a", "c", "b"]
    press(panel, "down", a)
    assert [job.name for job in queue.jobs] == names(panel) == ["c", "a", "b"]
    press(panel, "remove", b)
    assert names(panel) == ["c", "a"]
    assert panel._front.view["summary"] == "2 waiting"


def test_add_takes_the_current_settings_of_the_job(queue, configs, wire):
    job = SimpleNamespace(config=configs[0])
    panel = QueuePanel(queue, job)
    assert panel._front.view["can_add"]
    assert press(panel, "add", name=" first ")["alert"] is None
    job.config = configs[1].update(epochs=7)
    press(panel, "add", name="")
    assert [row["name"] for row in panel._front.view["jobs"]] == [
        "first",
        configs[1].base_model_name,
    ]
    assert queue.jobs[1].config["epochs"] == 7
    assert "7 epochs" in panel._front.view["jobs"][1]["about"]
    panel.close()


def test_what_the_queue_refuses_is_shown_and_the_next_command_clears_it(queue, configs, wire):
    panel = QueuePanel(queue, SimpleNamespace(config=configs[0]))
    press(panel, "add", name="a")
    alert = press(panel, "add", name="b")["alert"]
    assert "where job 'a' will write its model. Give this one another." in alert["text"]
    assert names(panel) == ["a"]
    gone = SimpleNamespace(id="gone")
    assert "There is no job 'gone'" in press(panel, "remove", gone)["alert"]["text"]
    assert press(panel, "start")["alert"] is None
    panel.close()


def test_a_job_is_followed_from_its_start_to_its_error_and_tried_again(
    stage, panel, queue, configs
):
    job = queue.add(configs[0], "a")
    press(panel, "start")
    until(lambda: row(panel, "a")["label"] == "Running")
    assert panel._front.view["label"] == "Running"
    stage.go("loading", "training")
    stage.step(1, 40)
    panel._front._handle_custom_msg({"op": "beat"}, [])
    assert row(panel, "a")["percent"] == 40
    assert row(panel, "a")["about"].startswith("step 40 of 100")
    assert ops(panel, "a") == {"stop": True}
    stage.say(e.RunFailed("OutOfMemoryError: no room", "Use a smaller batch."))
    stage.go("failed")
    until(lambda: row(panel, "a")["label"] == "Failed")
    assert "OutOfMemoryError: no room" in row(panel, "a")["error"]
    assert ops(panel, "a") == {"resume": True, "retry": True, "remove": True}
    press(panel, "pause")
    press(panel, "resume", job)
    assert row(panel, "a")["label"] == "Waiting"
    assert row(panel, "a")["about"].startswith("goes on from its last backup")
    assert row(panel, "a")["error"] == ""
    assert queue.jobs[0].resume


def test_pause_lets_the_running_job_end_and_says_so(stage, panel, queue, configs):
    queue.add(configs[0], "a")
    press(panel, "start")
    until(lambda: row(panel, "a")["label"] == "Running")
    assert press(panel, "pause")["label"] == "Ends with this job"
    stage.go("loading", "finished")
    until(lambda: row(panel, "a")["label"] == "Finished")
    assert panel._front.view["label"] == "Paused"
    assert ops(panel, "a") == {"retry": True, "remove": True}
    press(panel, "clear")
    assert names(panel) == []


def test_stop_ends_the_run_of_that_job_and_of_no_other(stage, panel, queue, configs):
    job, other = queue.add(configs[0], "a"), queue.add(configs[1], "b")
    press(panel, "start")
    until(lambda: row(panel, "a")["label"] == "Running")
    assert "not running" in press(panel, "stop", other)["alert"]["text"]
    assert not stage.run.commands.stop_requested
    assert press(panel, "stop", job)["alert"] is None
    assert stage.run.commands.stop_requested


def test_a_run_that_takes_steps_is_asked_about_before_it_stops(
    stage, panel, queue, configs, monkeypatch
):
    job = queue.add(configs[0], "a")
    press(panel, "start")
    until(lambda: row(panel, "a")["label"] == "Running")
    stage.say(e.TrainingState("training"))
    press(panel, "stop", job)
    assert not stage.run.commands.stop_requested
    assert [b["label"] for b in row(panel, "a")["buttons"]] == ["Stop and save", "Keep training"]
    press(panel, "keep", job)
    assert [b["label"] for b in row(panel, "a")["buttons"]] == ["Stop"]
    press(panel, "stop", job)
    press(panel, "stop", job)
    assert not stage.run.commands.stop_requested, "a double click answers nothing"
    monkeypatch.setattr("ot_notebook.widgets.questions.DOUBLE_CLICK_SECONDS", 0.0)
    press(panel, "stop", job)
    assert stage.run.commands.stop_requested


def test_a_job_that_waits_is_edited_in_the_form(queue, configs, wire):
    form = JobConfig(configs[2])
    panel = QueuePanel(queue, form)
    job, other = queue.add(configs[0].update(epochs=3), "a"), queue.add(configs[1], "b")
    press(panel, "edit", job)
    assert form["epochs"] == 3
    assert "being edited" in row(panel, "a")["about"]
    assert set(ops(panel, "a")) >= {"take", "keep"}
    assert "take" not in ops(panel, "b")
    assert form.edits == job.id
    alert = press(panel, "take", other)["alert"]  # a click on a button that was drawn before
    assert alert["text"] == "That job is not the one in the form. Press its Edit first."
    assert queue.jobs[1].config == other.config
    form.update(epochs=9)
    assert press(panel, "take", job)["alert"] is None
    assert queue.jobs[0].config["epochs"] == 9
    assert [one.name for one in queue.jobs] == ["a", "b"]
    assert form.edits == ""
    press(panel, "edit", job)
    form.update(output_model_destination=configs[1].output_model_destination)
    assert "'b' will write its model" in press(panel, "take", job)["alert"]["text"]
    assert "take" in ops(panel, "a"), "to be mended"
    press(panel, "keep", job)
    assert "edit" in ops(panel, "a")
    press(panel, "edit", other)
    queue.remove(other.id)
    assert panel._busy.edits == form.edits == ""
    press(panel, "edit", job)
    panel.close()
    assert form.edits == ""
    form.close()


def test_an_answer_about_one_job_leaves_the_edit_of_another(stage, queue, configs, wire):
    form = JobConfig(configs[2])
    panel = QueuePanel(queue, form)
    running, waits = queue.add(configs[0], "a"), queue.add(configs[1], "b")
    press(panel, "start")
    until(lambda: row(panel, "a")["label"] == "Running")
    stage.say(e.TrainingState("training"))
    press(panel, "edit", waits)
    press(panel, "stop", running)
    press(panel, "keep", running)
    assert list(ops(panel, "a")) == ["stop"]
    assert "take" in ops(panel, "b")
    edited = form.config
    alert = press(panel, "edit", running)["alert"]  # a click on a button that was drawn before
    assert alert["text"] == "That job does not wait any more."
    assert form.config == edited
    panel.close()
    form.close()


def test_a_panel_without_a_form_edits_nothing(panel, queue, configs):
    queue.add(configs[0], "a")
    assert "edit" not in ops(panel, "a")


def test_texts_of_users_are_cut_and_escaped_in_every_mode(panel, queue, configs, wire):
    queue.add(configs[0], HOSTILE + "x" * 1_000_000)
    shown = row(panel, names(panel)[0])
    assert len(shown["name"]) < 200
    assert "\x00" not in shown["name"]
    assert "\x1b" not in shown["name"]
    core = QueuePanel(queue, mode="core")
    html = "".join(w.value for w in (core._head, *(card._words for card in core._cards.values())))
    assert "<img" not in html + panel.story() + job_html(shown)
    assert "&lt;img" in html
    assert len(panel.story()) < 5000
    core.close()


def test_core_widgets_do_the_same(stage, queue, configs, wire):
    job = SimpleNamespace(config=configs[0])
    panel = QueuePanel(queue, job, mode="core")
    panel._name.value = "a"
    panel._core["add"].click()
    assert panel._name.value == ""
    job.config = configs[1]
    panel._name.value = "b"
    panel._core["add"].click()
    cards = [panel._cards[one.id] for one in queue.jobs]
    assert panel._rows.children == tuple(card.box for card in cards)
    up = {button.description: button for button in cards[1]._buttons.children}["Up"]
    up.click()
    assert [one.name for one in queue.jobs] == ["b", "a"]
    assert panel._rows.children == (cards[1].box, cards[0].box)
    assert not panel._core["start"].disabled
    panel._core["start"].click()
    until(lambda: "Running" in cards[1]._words.value)
    assert panel._core["start"].disabled
    panel.close()


def test_a_push_that_may_be_lost_is_repeated_once_to_a_page_that_pulls(panel, queue, configs, wire):
    wire.clear()
    queue.add(configs[0], "a")
    assert len(wire.states(panel._front)) == 1
    panel._front._handle_custom_msg({"op": "beat"}, [])
    panel._front._handle_custom_msg({"op": "beat"}, [])
    assert len(wire.states(panel._front)) == 2


def test_plain_text_names_each_job_and_its_error(panel, queue, configs):
    queue.add(configs[0], "a")
    assert "Paused. 1 waiting" in repr(panel)
    assert "Waiting      a" in panel.plain()


def test_every_state_of_a_job_has_a_name(queue):
    from typing import get_args

    from ot_notebook.services.queue_service import JobState

    assert set(LABELS) == set(get_args(JobState))


def test_closing_leaves_the_queue(queue, configs, wire):
    panel = QueuePanel(queue)
    panel.close()
    queue.add(configs[0], "a")
    assert queue.jobs[0].name == "a"


def test_a_page_and_code_may_change_the_queue_at_once(panel, queue, configs):
    """The queue tells watchers while it holds its lock; a panel that held its own would hang."""
    jobs = [queue.add(config, name) for name, config in zip("abc", configs, strict=True)]

    def reorder():
        for number in range(40):
            queue.move(jobs[number % 3].id, 0)

    other = threading.Thread(target=reorder, daemon=True)
    other.start()
    page = threading.Thread(
        target=lambda: [press(panel, "up", jobs[number % 3]) for number in range(40)], daemon=True
    )
    page.start()
    for thread in (other, page):
        thread.join(20)
        assert not thread.is_alive()
    assert names(panel) == [job.name for job in queue.jobs]
