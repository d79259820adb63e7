"""The loss with what the timesteps make of it taken out."""

import random

import numpy as np
import pytest
import torch

from modules.training.by_timestep import ByTimestep
from modules.training.meter import Meter


def usual(t):
    """A loss that is large where there is much noise, as a velocity's is near both ends."""
    return 0.2 + 4 * (t - 0.5) ** 2


def trained(steps, seed=0):
    """Timesteps and losses of a run that halves its loss on the way."""
    draw = random.Random(seed)
    for step in range(steps):
        t = draw.random()
        yield t, (1 - 0.5 * step / steps) * usual(t) * draw.uniform(0.95, 1.05)


def through_a_meter(run):
    meter = Meter(torch.device("cpu"))
    for step, (t, loss) in enumerate(run, start=1):
        numbers = (torch.tensor(loss), torch.tensor(1.0), torch.tensor(t))
        meter.push(step, 0, step, {"unet": 1e-3}, *numbers)
        yield from meter.readings()


def test_steps_that_drew_much_noise_no_longer_stand_out_and_the_trend_stays():
    correction, smooth, raw, corrected = ByTimestep(), 0.5, [], []
    for t, loss in trained(4000):
        smooth += 0.01 * (loss - smooth)
        raw.append(loss)
        corrected.append(correction.correct(loss, smooth, t))
    raw, corrected = np.array(raw[500:]), np.array(corrected[500:])
    ramp = np.linspace(1, 0, len(raw))
    spread = [np.std(x / np.polyval(np.polyfit(ramp, x, 1), ramp)) for x in (raw, corrected)]
    assert spread[1] < spread[0] / 4
    ends = corrected[-200:].mean() / corrected[:200].mean()
    assert ends == pytest.approx(0.5 / (1 - 0.5 / 8), rel=0.1)


def test_on_the_whole_a_loss_stays_as_large_as_it_is_also_while_it_falls():
    last = list(through_a_meter(trained(600)))[-1]
    assert last.corrected_loss == pytest.approx(last.smooth_loss, rel=0.06)


def test_a_meter_smooths_it_and_goes_on_from_a_backup_exactly():
    run = list(trained(400))
    whole = [reading.corrected_loss for reading in through_a_meter(run)]
    meter = Meter(torch.device("cpu"))
    halves = []
    for part in (run[:200], run[200:]):
        state = meter.state_dict()
        meter = Meter(torch.device("cpu"))
        meter.load_state_dict(state)
        for t, loss in part:
            numbers = (torch.tensor(loss), torch.tensor(1.0), torch.tensor(t))
            meter.push(1, 0, 1, {}, *numbers)
            halves += [reading.corrected_loss for reading in meter.readings()]
    assert halves == whole


def test_without_timesteps_there_is_no_corrected_loss():
    meter = Meter(torch.device("cpu"))
    meter.push(1, 0, 1, {}, torch.tensor(0.5), torch.tensor(1.0))
    (reading,) = meter.readings()
    assert reading.corrected_loss is None
    assert reading.smooth_loss == 0.5


def test_a_backup_of_before_is_taken_up():
    meter = Meter(torch.device("cpu"))
    meter.load_state_dict({"smooth": 0.4, "count": 30})
    meter.push(31, 0, 31, {}, torch.tensor(0.5), torch.tensor(1.0), torch.tensor(0.3))
    (reading,) = meter.readings()
    assert 0.4 < reading.corrected_loss < 0.41
