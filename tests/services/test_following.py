"""A run of another process, watched from here: it is seen, can be stopped, and is never split."""

import signal
import subprocess
import sys
import time

import pytest

import ot_notebook as ot
from ot_notebook.services.heartbeat import STOP_FILE, Heartbeat
from ot_notebook.services.refusals import CommandRefused
from ot_notebook.services.trainer_service import TrainerService
from ot_notebook.widgets.view_state import controls, status_text

ELSEWHERE = """
import sys, threading, time
sys.path.insert(0, sys.argv[2])
from conftest import ScriptedRun
from modules.config import TrainConfig
from modules.training import events as e
from ot_notebook.services.trainer_service import TrainerService

runs = []
def execute(*given):
    runs.append(ScriptedRun(*given))
    return runs[-1]

service = TrainerService(execute)
service.start(TrainConfig.load(sys.argv[1])[0])
run = runs[-1]
run.enter("loading", "training")
print("here", flush=True)
for number in range(1, 100_000):
    if run.commands.stop_requested:
        break
    run.step(number, last=100_000)
    if number % 20 == 0:
        run.emit(e.StatusLine(f"Step {number} done"))
    time.sleep(0.02)
run.end("stopped")
service.close()
"""


@pytest.fixture
def elsewhere(config, tmp_path):
    """A process that takes steps in the config's workspace until it is asked to stop."""
    path = tmp_path / "config.json"
    config.save(path)
    here = str(__file__).rpartition("/")[0]
    process = subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, path, here], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def kernel(stage, monkeypatch):
    monkeypatch.setattr("ot_notebook.services.trainer_service._service", stage.service)
    return stage.service


def eventually(condition, seconds=15):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def attach(config):
    eventually(
        lambda: len(ot.runs(config.workspace_dir)) and ot.runs(config.workspace_dir)["step"][0]
    )
    return ot.attach(config.workspace_dir)


def test_a_run_elsewhere_is_watched_live_and_stops_when_it_is_asked_to(
    elsewhere, kernel, config, sample
):
    told = []
    kernel.on("step")(lambda update: told.append(update.step))
    run = attach(config)
    assert kernel.elsewhere.pid == elsewhere.pid
    assert kernel.state == "training"
    first = kernel.step
    assert first > 0
    assert eventually(lambda: kernel.step > first + 20), "it follows"
    assert str(elsewhere.pid) in status_text(kernel, can_start=True)
    enabled = [control["op"] for control in controls(kernel, can_start=True) if control["enabled"]]
    assert enabled == ["stop"]
    for command, given in (("pause", []), ("backup", []), ("sample", [sample])):
        with pytest.raises(CommandRefused, match=rf"{command} is refused: .*Only stop reaches it"):
            getattr(kernel, command)(*given)
    kernel.stop()
    assert eventually(lambda: kernel.state == "stopped")
    assert elsewhere.wait(10) == 0
    assert kernel.elsewhere is None
    steps, _ = kernel.history.points("loss", 10**6)
    assert steps.tolist() == run.metrics()["step"].tolist(), "none lost, none twice"
    assert told == list(range(told[0], told[-1] + 1))
    said = [line.text for line in kernel.history.log if line.text.endswith("done")]
    assert said == sorted(set(said), key=said.index), "each line once"
    assert any("Another process asked" in line.text for line in kernel.history.log)
    assert not (run.workspace / STOP_FILE).exists()


def test_a_process_that_dies_is_noticed_and_its_run_can_be_resumed(
    elsewhere, kernel, config, stage
):
    run = attach(config)
    elsewhere.send_signal(signal.SIGKILL)
    assert eventually(lambda: (kernel.elsewhere, kernel.state) == (None, "stopped"))
    assert run.state == "cut off"
    assert "Cut off while training" in kernel.status
    assert run.resume().state == "loading"
    assert stage.run.config.continue_last_backup


def test_starting_here_ends_the_watching_and_takes_nothing_from_the_run(
    elsewhere, kernel, config, stage, tmp_path
):
    watched = attach(config)
    stage.service.start(config.update(workspace_dir=str(tmp_path / "mine")))
    stage.run.enter("loading", "training")
    stage.run.step(1)
    time.sleep(2.5)  # longer than between two looks at the other's store
    kernel.flush()
    assert (kernel.elsewhere, kernel.step) == (None, 1)
    assert watched.state == "training"
    assert elsewhere.poll() is None


def test_a_request_to_stop_that_was_meant_for_another_run_is_dropped(tmp_path):
    asked = []
    (tmp_path / STOP_FILE).write_text("an older run")
    beat = Heartbeat(tmp_path, "mine", asked_to_stop=lambda: asked.append(1))
    assert eventually(lambda: not (tmp_path / STOP_FILE).exists())
    assert asked == []
    (tmp_path / STOP_FILE).write_text("mine")
    assert eventually(lambda: asked == [1])
    beat.close()


def test_two_views_of_one_run_elsewhere_do_not_disturb_each_other(elsewhere, kernel, config, stage):
    attach(config)
    second = TrainerService(stage._execute)
    second.show(ot.run(kernel.run.id, config.workspace_dir))
    at = second.step
    assert eventually(lambda: second.step > at and kernel.step > at)
    second.close()
