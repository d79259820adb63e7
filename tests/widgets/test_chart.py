"""The dashboard's chart: what can be chosen, what is marked, and how little is sent for it."""

import math
import time
from pathlib import Path

import numpy as np
import pytest

from modules.training import events as e
from ot_notebook.services.curve import log_ticks
from ot_notebook.services.replay import replay
from ot_notebook.services.run_store import RunStore
from ot_notebook.widgets.chart_view import EPOCH_COLOUR
from ot_notebook.widgets.dashboard import Dashboard


@pytest.fixture
def dashboard(stage, wire):
    dashboard = Dashboard(stage.service, stage)
    yield dashboard
    dashboard.close()


@pytest.fixture
def chart(dashboard):
    return dashboard._chart


def ask(chart, **content):
    chart.tools._handle_custom_msg(content, [])


def train(stage, *numbers, last=100):
    stage.go("loading", "training")
    stage.step(*numbers, last=last)
    stage.go("paused")


def names(chart):
    return [name for name, _, _ in chart.tools.view["key"]]


def test_a_series_is_chosen_and_drawn_with_its_values_in_words(stage, chart):
    train(stage, 1, 2, 3)
    ask(chart, op="series", name="learning_rate")
    assert chart._lines[0].y.tolist() == [1e-3] * 3
    assert chart.tools.view["caption"] == "Learning rate 0.001 at step 3."
    ask(chart, op="series", name="grad_norm")
    assert chart._lines[0].y.tolist() == [1.0] * 3
    ask(chart, op="series", name="no such")
    assert chart.tools.view["series"] == "grad_norm"


def test_each_part_that_trains_has_its_own_line(stage, chart):
    stage.go("loading", "training")
    rates = {"unet": 1e-3, "text_encoder": 1e-5}
    stage.say(e.LossUpdate(1, 1, 0.5, 0.5, rates, 1.0, 8.0, 0))
    ask(chart, op="series", name="learning_rate")
    assert names(chart) == ["unet", "text_encoder"]
    assert [line.y.tolist() for line in chart._lines] == [[1e-3], [1e-5]]


def test_validation_is_drawn_beside_the_loss(stage, chart):
    train(stage, 1, 2, 3)
    assert "validation" not in names(chart)
    stage.say(e.ValidationLoss(2, 0.25, {}))
    ask(chart, op="series", name="loss")
    assert names(chart)[:3] == ["each step", "smooth", "validation"]
    assert (chart._lines[2].x.tolist(), chart._lines[2].y.tolist()) == ([2.0], [0.25])


def test_a_loss_that_the_engine_evens_out_is_drawn_beside_it_and_after_a_replay(stage, chart):
    stage.go("loading", "training")
    for step in (1, 2, 3):
        update = e.LossUpdate(step, 1, 0.5, 0.5, {"unet": 1e-3}, 1.0, 8.0, 0, 0.25 * step)
        stage.say(update)
    ask(chart, op="series", name="loss")
    assert names(chart) == ["each step", "smooth", "timesteps evened out"]
    assert chart._lines[3].y.tolist() == [0.25, 0.5, 0.75]
    stage.run.end("finished")
    stage.service.flush()
    steps, values = replay(stage.service.run).points("corrected_loss", 100)
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3], [0.25, 0.5, 0.75])


def test_core_widgets_draw_validation_and_evened_out_loss_alone(stage, wire):
    core = Dashboard(stage.service, mode="core")
    stage.go("loading", "training")
    for step in (1, 2, 3):
        stage.say(e.LossUpdate(step, 1, 0.5, 0.5, {"unet": 1e-3}, 1.0, 8.0, 0, 0.25 * step))
    stage.say(e.ValidationLoss(2, 0.125, {}), e.ValidationLoss(3, 0.0625, {}))
    for name, words in (("validation_loss", "Validation loss 0.0625"), ("corrected_loss", "0.75")):
        core._choose_core(series=name)
        assert words in core._core_curve.value
        assert core._core_curve.value.count("<polyline") == 1
    core.close()


def test_a_logarithmic_chart_leaves_out_what_has_no_logarithm(stage, chart):
    stage.go("loading", "training")
    for number, loss in enumerate((0.5, 0.0, 0.05, math.nan, 0.005), start=1):
        stage.step(number, loss=loss)
    ask(chart, op="log", on=True)
    drawn = chart._lines[0].y[np.isfinite(chart._lines[0].y)]
    assert drawn.tolist() == [0.5, 0.05, 0.005]
    assert type(chart._up.scale).__name__ == "LogScale"
    ask(chart, op="log", on=False)
    assert type(chart._up.scale).__name__ == "LinearScale"


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.09, 1.1), [0.1, 0.2, 0.5, 1.0]),
        ((1e-7, 1.0), [10.0**n for n in range(-7, 1)]),
        ((0.11, 0.13), [0.11, 0.13]),
    ],
)
def test_ticks_of_powers_are_round_and_few(ends, expected):
    assert log_ticks(*ends, 8) == pytest.approx(expected)


def test_the_newest_part_of_a_run_can_be_followed(stage, chart):
    train(stage, *range(1, 101))
    ask(chart, op="range", name="tenth")
    assert chart._lines[0].x.tolist() == list(range(90, 101))
    ask(chart, op="range", name="all")
    assert len(chart._lines[0].x) == 100


def test_zoom_is_the_figures_own_and_switched_off_the_chart_follows_again(stage, chart):
    train(stage, *range(1, 51))
    ask(chart, op="zoom", on=True)
    assert chart._figure.interaction is not None
    across = chart._across.scale
    across.min, across.max = 10.0, 20.0  # what a wheel does
    stage.go("training")
    stage.step(51)
    stage.go("paused")
    assert (across.min, across.max) == (10.0, 20.0), "a new step does not take the view away"
    ask(chart, op="zoom", on=False)
    assert chart._figure.interaction is None
    assert (chart._across.scale.min, chart._across.scale.max) == (None, None)


def test_what_happened_is_marked_at_its_step(stage, chart, picture):
    stage.go("loading", "training")
    stage.step(*range(1, 51))
    stage.say(picture(20), picture(20, "a boat", index=1), e.BackupCreated(Path("/b"), 30))
    stage.say(e.SettingChanged("learning_rate", 1, 2, 40), e.ModelSaved(Path("/m"), "x", 45, False))
    stage.go("paused")
    marks = dict(zip(chart._dots.names.tolist(), chart._dots.x.tolist(), strict=True))
    assert marks["Samples at step 20"] == 20, "one mark for all samples of a step"
    assert marks["Backup at step 30"] == 30
    assert marks["learning_rate is 2 after step 40"] == 40
    assert marks["Model saved at step 45"] == 45
    assert [marks[f"Epoch {n} begins"] for n in (2, 3)] == [20, 40], "5 epochs of 100 steps"
    assert len(marks) == 6
    assert {"epochs", "samples", "backup", "setting changed"} <= set(names(chart))
    assert EPOCH_COLOUR in chart._dots.colors


def test_other_runs_are_laid_under_this_one(stage, chart, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = RunStore(tmp_path / "old" / "run.db")
    store.path.parent.mkdir()
    store.begin("old run", stage.config.to_dict(), 1.0)
    steps = [e.LossUpdate(n, 1, 0.9, 0.8, {"unet": 1e-3}, 1.0, 8.0, 0) for n in range(1, 6)]
    store.append("old run", [(1.0, step) for step in steps])
    store.close()
    train(stage, 1, 2, 3)
    ask(chart, op="others")
    (other,) = chart.tools.view["others"]
    assert other["label"].startswith("old run")
    ask(chart, op="other", key=other["key"], on=True)
    assert chart._lines[-1].y.tolist() == [0.8] * 5
    assert "old run" in names(chart)
    assert chart.tools.view["others"][0]["colour"] == 1
    ask(chart, op="other", key=other["key"], on=False)
    assert "old run" not in names(chart)


def test_a_drawing_is_few_messages(stage, dashboard, chart, wire):
    train(stage, *range(1, 201), last=100_000)
    stage.go("training")
    stage.step(201, last=100_000)
    time.sleep(1.05)  # the chart is drawn once a second
    wire.clear()
    stage.step(202, last=100_000)
    senders = [sender for sender, data, _ in wire.messages if data["method"] == "update"]
    assert len(senders) <= 6, "panel, tools, two lines, and ticks now and then"
    assert chart._lines[0].x[-1] == 202


def test_core_widgets_choose_the_curve_and_the_lines_of_the_log(stage, wire):
    core = Dashboard(stage.service, stage, mode="core")
    train(stage, 1, 2, 3)
    stage.say(e.Warned("too bright"), e.StatusLine("all well"))
    assert "too bright" in core._core_log.value
    core._level.value = "warning"
    assert "too bright" in core._core_log.value
    assert "all well" not in core._core_log.value
    core._level.value = ""
    core._words.value = "WELL"
    assert "all well" in core._core_log.value
    assert "too bright" not in core._core_log.value
    core._choose_core(series="learning_rate")
    assert "Learning rate 0.001 at step 3." in core._core_curve.value
    assert "<polyline" in core._core_curve.value
    core.close()
