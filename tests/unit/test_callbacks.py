import dataclasses
import threading
import time

import pytest

from modules.config import SampleConfig
from modules.training import events as e
from modules.training.callbacks import TrainCallbacks
from modules.training.commands import Backup, SampleCustom, SampleDefault, TrainCommands


def test_each_callback_gets_its_kind_and_on_event_gets_all():
    everything, statuses = [], []
    callbacks = TrainCallbacks(everything.append, on_status=statuses.append)
    sent = [e.StatusLine("loading"), e.TrainingState("loading"), e.StatusLine("done")]
    for event in sent:
        callbacks.emit(event)
    assert everything == sent
    assert statuses == [sent[0], sent[2]]


def test_a_callback_that_raises_is_reported_once_and_called_again():
    calls, warnings = [], []

    def broken(event):
        calls.append(event)
        raise KeyError("loss")

    callbacks = TrainCallbacks(on_status=broken, on_warning=warnings.append)
    for _ in range(3):
        callbacks.emit(e.StatusLine("step"))
    assert len(calls) == 3
    assert len(warnings) == 1
    assert "broken raised KeyError: 'loss'" in warnings[0].message


def test_a_callback_for_no_event_is_refused_with_the_names_that_exist():
    with pytest.raises(TypeError, match=r"on_steps is no callback.*on_step, "):
        TrainCallbacks(on_steps=print)


def test_every_event_is_immutable_and_has_a_name_of_its_own():
    assert all(kind.__dataclass_params__.frozen for kind in e.EVENT_TYPES.values())
    assert len(e.EVENT_TYPES) == len(set(e.EVENT_TYPES.values()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.StatusLine("a").text = "b"


def test_requests_are_served_in_order():
    commands, sample = TrainCommands(), SampleConfig(prompt="a fox")
    commands.sample_default()
    commands.sample_custom(sample)
    commands.backup()
    taken = [commands.take() for _ in range(4)]
    assert taken == [SampleDefault(), SampleCustom(sample), Backup(), None]


@pytest.mark.parametrize("wake", ["resume", "stop", "backup"])
def test_a_paused_run_wakes_for_resume_stop_and_requests(wake):
    commands = TrainCommands()
    commands.pause()
    thread = threading.Thread(target=commands.wait_while_paused)
    thread.start()
    time.sleep(0.02)
    assert thread.is_alive()
    getattr(commands, wake)()
    thread.join(2)
    assert not thread.is_alive()
