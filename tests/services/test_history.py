from pathlib import Path

import numpy as np
import pytest

from modules.training import events as e
from ot_notebook.services.history import MAX_LINES, MAX_POINTS, History, thin


def update(step, loss, **rates):
    return e.LossUpdate(step, 1, loss, loss, rates or {"unet": 1e-3}, 0.5, 8.0, 0)


def test_points_come_back_as_they_were_added_while_they_are_few():
    history = History()
    for step in range(1, 6):
        history.add(update(step, step / 10), at=0)
    steps, values = history.points("loss", 100)
    assert steps.tolist() == [1, 2, 3, 4, 5]
    assert values.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert history.points("learning_rate", 100)[1].tolist() == [1e-3] * 5


def test_a_series_that_nobody_sent_is_empty():
    steps, values = History().points("loss", 100)
    assert len(steps) == len(values) == 0


def test_rates_of_several_parts_are_series_of_their_own():
    history = History()
    history.add(update(1, 0.5, unet=1e-3, text_encoder=1e-5), at=0)
    assert history.points("learning_rate.text_encoder", 9)[1].tolist() == [1e-5]
    assert history.points("learning_rate", 9)[1].tolist() == [1e-3]


@pytest.mark.parametrize("count", [50, 101, 999, 30_000])
def test_thinned_curves_keep_every_peak_and_the_last_point(count):
    random = np.random.default_rng(0)
    steps = np.cumsum(random.integers(1, 4, count)).astype(float)
    values = random.normal(size=count)
    peak, dip = count // 3, count // 2
    values[peak], values[dip] = 99.0, -99.0
    few_steps, few = thin(steps, values, 100)
    assert len(few) <= 100
    assert few.max() == 99.0
    assert few.min() == -99.0
    assert (few_steps[-1], few[-1]) == (steps[-1], values[-1])
    assert (np.diff(few_steps) > 0).all()
    positions = np.searchsorted(steps, few_steps)
    assert (values[positions] == few).all()  # points of the curve, none invented


def test_nan_neither_hides_a_peak_nor_breaks_the_curve():
    values = np.full(1000, np.nan)
    values[500] = 7.0
    few_steps, few = thin(np.arange(1000.0), values, 50)
    assert np.nanmax(few) == 7.0
    assert len(few_steps) <= 50


def test_a_long_run_stays_within_its_memory_and_keeps_its_extremes():
    history, count = History(), 100_000
    for step in range(1, count + 1):
        history.add(update(step, 5.0 if step == 3 else -5.0 if step == 70_000 else 1.0), at=0)
    steps, values = history.points("loss", 10**9)
    assert len(steps) < MAX_POINTS
    assert (values.max(), values.min()) == (5.0, -5.0)
    assert steps[-1] == count


def test_the_log_says_what_happened_and_numbers_stay_when_old_lines_go():
    history = History()
    for number in range(MAX_LINES + 10):
        history.add(e.StatusLine(f"line {number}"), at=number)
    history.add(e.Warned("Careful."), at=1)
    history.add(e.RunFailed("ValueError: no", "Do this."), at=2)
    log = history.log
    assert len(log) == MAX_LINES
    assert [log[0].number, log[0].text] == [12, "line 12"]
    assert [(line.level, line.text) for line in log[-2:]] == [
        ("warning", "Careful."),
        ("error", "ValueError: no Do this."),
    ]


def test_samples_are_kept_in_order():
    history = History()
    samples = [e.SampleImage("default", Path(f"{n}.png"), "a fox", 1, n, 1, 0) for n in range(3)]
    for sample in samples:
        history.add(sample, at=0)
    assert history.samples == samples
