"""The dashboard over a run that the test plays: what it shows, and what its buttons do."""

import json
import math
import time

import numpy as np
import pytest

from modules.training import events as e
from ot_notebook.widgets.dashboard import Dashboard
from ot_notebook.widgets.view_state import NO_VALUE

PATHS = {
    "idle": [],
    "loading": ["loading"],
    "caching": ["loading", "caching"],
    "training": ["loading", "caching", "training"],
    "paused": ["loading", "training", "paused"],
    "sampling": ["loading", "training", "sampling"],
    "saving": ["loading", "training", "saving"],
    "finished": ["loading", "training", "finished"],
    "stopped": ["loading", "stopped"],
    "failed": ["loading", "failed"],
}


def press(dashboard, command):
    dashboard._panel._handle_custom_msg({"op": "do", "command": command}, [])
    return dashboard._panel.view["alert"]


def buttons(dashboard):
    return {button["op"]: button["enabled"] for button in dashboard._panel.view["buttons"]}


@pytest.mark.parametrize("state", PATHS)
def test_a_button_is_enabled_exactly_when_the_service_accepts_its_command(stage, dashboard, state):
    if PATHS[state]:
        stage.go(*PATHS[state])
    assert dashboard._panel.view["state"] == state
    for command, enabled in buttons(dashboard).items():
        if command in ("start", "preflight", "stop", "pause", "resume"):
            continue  # they change the state; each has a test of its own
        alert = press(dashboard, command)
        assert (alert is None or "refused" not in alert["title"]) is enabled, command
    assert buttons(dashboard)["start"] is (state in ("idle", "finished", "stopped", "failed"))
    assert buttons(dashboard)["stop"] is (state not in ("idle", "finished", "stopped", "failed"))
    assert ("resume" in buttons(dashboard)) is (state == "paused")


def test_start_trains_with_the_job_and_stop_ends_the_run(stage, dashboard):
    assert dashboard._panel.view["status"] == "Press Start to train."
    assert press(dashboard, "start") is None
    assert stage.run is not None
    assert press(dashboard, "stop") is None
    assert stage.run.commands.stop_requested
    assert dashboard._panel.view["label"] == "Stopping"
    stage.run.end("stopped")
    stage.service.flush()
    assert dashboard._panel.view["label"] == "Stopped"


def test_a_pre_flight_is_told_in_every_view_until_a_run_starts(stage, dashboard, monkeypatch):
    from ot_notebook.services.preflight import Preflight

    found = Preflight(True, (), seconds_per_step=0.5, total_seconds=90.0)
    tried = []
    monkeypatch.setattr(
        "ot_notebook.services.trainer_service.preflight",
        lambda config, *_: tried.append(config) or found,
    )
    other = Dashboard(stage.service)
    assert buttons(dashboard)["preflight"] is True
    assert buttons(other)["preflight"] is False, "it has no settings to try"
    press(dashboard, "preflight")
    for _ in range(200):
        if stage.service.trial is found:
            break
        time.sleep(0.01)
    stage.service.flush()
    assert tried == [stage.config]
    for view in (dashboard._panel.view, other._panel.view):
        assert view["alert"]["tone"] == "good"
        assert view["alert"]["title"] == "Pre-flight: It fits."
        assert "0.5 s a step, 1 min 30 s for all steps" in view["alert"]["text"]
    press(dashboard, "start")
    assert dashboard._panel.view["alert"] is None
    assert "preflight" not in buttons(dashboard)
    other.close()


def test_pause_and_resume_reach_the_run(stage, dashboard):
    stage.go("loading", "training")
    press(dashboard, "pause")
    assert stage.run.commands.pause_requested
    stage.go("paused")
    press(dashboard, "resume")
    assert not stage.run.commands.pause_requested


def test_a_refused_command_says_why_and_the_next_one_clears_it(stage, dashboard):
    alert = press(dashboard, "pause")
    assert alert["title"] == "Pause refused"
    assert "no run has been started" in alert["text"]
    assert press(dashboard, "start") is None


def test_settings_that_cannot_run_are_refused_by_name(stage, dashboard):
    stage.config = stage.config.update(base_model_name="no/such/folder/here")
    alert = press(dashboard, "start")
    assert alert["title"] == "Start refused"
    assert "base_model_name" in alert["text"]
    assert stage.run is None


def test_a_dashboard_without_settings_cannot_start(stage, wire):
    dashboard = Dashboard(stage.service)
    assert buttons(dashboard)["start"] is False
    assert dashboard._panel.view["status"] == "No run yet."
    assert "Give Dashboard() a job" in press(dashboard, "start")["text"]
    dashboard.close()


def test_numbers_bars_curve_and_log_follow_the_run(stage, dashboard):
    stage.go("loading", "caching")
    stage.say(e.StatusLine("Encoding images"), e.TaskProgress("caching", 3, 60))
    assert dashboard._panel.view["status"] == "Encoding images (3 of 60)"
    stage.go("training")
    stage.step(*range(1, 26), loss=0.25)
    view = dashboard._panel.view
    assert view["bars"][1] == {"label": "Run", "text": "step 25 of 100", "percent": 25.0}
    assert dict(view["stats"])["Loss"] == "0.25"
    stage.go("paused")  # draws what a fast step put off
    stage.run.end("finished")
    stage.service.flush()
    assert list(dashboard._chart._lines[0].x) == list(range(1, 26))
    assert set(dashboard._chart._lines[0].y) == {0.25}
    assert "Step 25: loss 0.25" in dashboard._chart.tools.view["caption"]
    assert [line["text"] for line in dashboard._log.lines] == ["Starting", "Encoding images"]


def test_a_failed_run_shows_its_error_and_what_to_do(stage, dashboard):
    stage.go("loading")
    stage.say(e.RunFailed("OSError: no config.json in /m", "Choose a diffusers folder."))
    stage.run.end("failed")
    stage.service.flush()
    assert dashboard._panel.view["alert"] == {
        "tone": "bad",
        "title": "OSError: no config.json in /m",
        "text": "Choose a diffusers folder.",
    }
    assert dashboard._log.lines[-1]["level"] == "error"


def test_views_are_in_step_and_a_new_one_replays_everything(stage, dashboard, wire):
    stage.go("loading", "training")
    stage.step(*range(1, 11))
    late = Dashboard(stage.service, stage)
    stage.step(11)
    stage.run.end("finished")
    stage.service.flush()
    assert late._panel.view == dashboard._panel.view
    assert late._log.lines == dashboard._log.lines
    assert list(late._chart._lines[0].x) == list(dashboard._chart._lines[0].x) == list(range(1, 12))
    late.close()
    stage.go("loading")
    assert dashboard._panel.view["label"] == "Loading"


def test_a_second_run_starts_with_an_empty_curve(stage, dashboard):
    stage.go("loading", "training")
    stage.step(1, 2)
    stage.go("finished")
    stage.go("loading")
    assert dashboard._chart._empty in dashboard._chart.children


def test_a_loss_that_is_not_finite_breaks_no_page(stage, dashboard):
    stage.go("loading", "training")
    stage.step(1, loss=0.5)
    stage.step(2, loss=math.nan)
    stage.go("finished")
    view = dashboard._panel.view
    json.dumps(view, allow_nan=False)
    assert dict(view["stats"])["Loss"] == NO_VALUE
    assert len(dashboard._chart._lines[0].x) == 2


def test_a_long_curve_is_thinned_out_but_keeps_its_extremes(stage, dashboard):
    stage.go("loading", "training")
    for number_ in range(1, 6001):
        loss = 9.0 if number_ == 3333 else 0.5 + 0.1 * math.sin(number_)
        stage.run.emit(e.LossUpdate(number_, 1, loss, loss, {"unet": 1e-3}, 1.0, 8.0, 0))
    stage.go("finished")
    assert len(dashboard._chart._lines[0].x) <= 2000
    assert np.max(dashboard._chart._lines[0].y) == 9.0


def test_a_view_that_nobody_sees_sleeps_and_wakes_up_to_date(stage, dashboard, wire):
    say = dashboard._panel._handle_custom_msg
    say({"op": "show", "client": "a"}, [])
    say({"op": "hide", "client": "a"}, [])
    stage.go("loading", "training")
    wire.clear()
    stage.step(1, 2, 3)
    assert wire.states(dashboard._panel) == []
    say({"op": "show", "client": "b"}, [])
    assert dashboard._panel.view["bars"][1]["text"] == "step 3 of 100"


def test_a_beat_of_the_page_fetches_what_is_new(stage, dashboard, wire):
    stage.go("loading", "training")
    stage.run.step(7)
    wire.clear()
    beat = {"op": "beat", "client": "a"}
    dashboard._panel._handle_custom_msg(beat, [])
    assert wire.states(dashboard._panel)[-1]["view"]["bars"][1]["text"] == "step 7 of 100"
    assert wire.custom(dashboard._panel) == [], "the new state answers the beat"
    dashboard._panel._handle_custom_msg(beat, [])
    assert wire.custom(dashboard._panel) == [{"op": "ack"}], "or the page would wait"


def test_a_page_that_asks_is_sent_nothing_in_between(stage, dashboard, wire):
    """A push would bind the page's next message, perhaps Stop, to a main thread that may block."""
    stage.go("loading", "training")
    dashboard._panel._handle_custom_msg({"op": "beat", "client": "a"}, [])
    wire.clear()
    stage.step(1, 2, 3)
    assert wire.states(dashboard._panel) == []
    dashboard._panel._handle_custom_msg({"op": "beat", "client": "a"}, [])
    assert dashboard._panel.view["bars"][1]["text"] == "step 3 of 100"
    stage.go("finished")
    assert dashboard._panel.view["label"] == "Training"
    dashboard._panel._handle_custom_msg({"op": "beat", "client": "a"}, [])
    assert dashboard._panel.view["label"] == "Finished"


def test_what_was_pushed_unasked_is_sent_again_to_a_page_that_asks(stage, dashboard, wire):
    """Colab drops what a thread sends while no cell runs."""
    stage.go("loading", "training")
    stage.step(1, 2, 3)
    stage.go("finished")  # all of it pushed: the page has not asked
    wire.clear()
    dashboard._panel._handle_custom_msg({"op": "beat", "client": "a"}, [])
    assert wire.states(dashboard._panel)[-1]["view"]["label"] == "Finished"
    assert len(wire.states(dashboard._log)[-1]["lines"]) == 1
    assert "x" in wire.states(dashboard._chart._lines[0])[-1]
    wire.clear()
    dashboard._panel._handle_custom_msg({"op": "beat", "client": "a"}, [])
    assert wire.states(dashboard._panel) == []


def test_a_closed_dashboard_hears_nothing_more(stage, wire):
    dashboard = Dashboard(stage.service, stage)
    panel = dashboard._panel
    dashboard.close()
    wire.clear()
    stage.go("loading", "training")
    stage.step(1)
    assert wire.states(panel) == []
    assert not dashboard.children or dashboard.comm is None


def test_core_widgets_show_the_same(stage, core, monkeypatch):
    monkeypatch.setattr("ot_notebook.widgets.questions.DOUBLE_CLICK_SECONDS", 0.0)
    stage.go("loading", "training")
    stage.step(*range(1, 26), loss=0.25)
    html = core._core_panel.value
    assert "Training" in html
    assert "step 25 of 100" in html
    assert "<polyline" in core._core_curve.value
    core._buttons["stop"].click()
    assert not stage.run.commands.stop_requested, "it asks first"
    core._buttons["stop"].click()
    assert stage.run.commands.stop_requested


def test_core_buttons_are_those_that_the_service_accepts(stage, core):
    def visible():
        shown = {op: b for op, b in core._buttons.items() if b.layout.display != "none"}
        return {op for op, button in shown.items() if not button.disabled}

    assert visible() == {"start", "preflight"}
    stage.go("loading", "training")
    assert visible() == {"pause", "stop", "sample", "backup", "save"}
    stage.go("paused")
    assert visible() == {"resume", "stop", "sample", "backup", "save"}


def test_an_unanswered_page_falls_back_to_core_and_a_late_hello_comes_back(stage, dashboard):
    stage.go("loading", "training")
    dashboard._fall_back(again=False)
    assert dashboard.mode == "core"
    assert "Training" in dashboard._core_panel.value
    assert dashboard._panel not in dashboard.children
    dashboard._panel._handle_custom_msg({"op": "hello", "client": "a"}, [])
    assert dashboard.mode == "rich"
    assert dashboard._panel in dashboard.children


def test_a_fixed_front_end_gets_core_widgets_at_once(stage, wire, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    dashboard = Dashboard(stage.service)
    assert dashboard.mode == "core"
    dashboard.close()
