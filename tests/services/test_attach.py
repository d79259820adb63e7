"""A kernel dies, another comes: what ran is shown, and what lives elsewhere is left alone."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import ot_notebook as ot
from modules.config import ConfigError
from modules.training import events as e
from ot_notebook.services import heartbeat
from ot_notebook.services.heartbeat import Heartbeat, WorkspaceBusyError, living
from ot_notebook.services.refusals import CommandRefused

LIVING = """
import sys, time
from pathlib import Path
from ot_notebook.services.heartbeat import Heartbeat
beat = Heartbeat(Path(sys.argv[1]), "other")
print("here", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """A process with a live run in `tmp_path / "workspace"`."""
    workspace = tmp_path / "workspace"
    workspace.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", LIVING, workspace], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"here\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def kernel(stage, monkeypatch):
    """`stage`'s service as the one of this kernel."""
    from ot_notebook.services import trainer_service

    monkeypatch.setattr(trainer_service, "_service", stage.service)
    return stage


def steps(stage, *numbers, loss=0.5):
    stage.run.enter("training")
    for number in numbers:
        stage.run.step(number, loss=loss)
    stage.service.flush()


def cut_off(stage):
    """What a kernel that was killed leaves: events without an end, and no sign of life."""
    handle = stage.start()
    steps(stage, *range(1, 121))
    sample = e.SampleImage("default", handle.workspace / "samples" / "a.png", "a fox", 7, 100, 1, 0)
    stage.run.emit(sample)
    stage.service.flush()
    live = stage.service._current
    live._heartbeat.close()
    handle.store.close()
    return ot.run(handle.id, handle.workspace)


def test_a_sign_of_life_lasts_as_long_as_its_process(tmp_path, other_process):
    workspace = tmp_path / "workspace"
    beat = living(workspace)
    assert (beat.run, beat.pid, beat.host) == ("other", other_process.pid, socket.gethostname())
    with pytest.raises(WorkspaceBusyError, match=f"in use by run other in process {beat.pid}"):
        Heartbeat(workspace, "mine")
    os.kill(other_process.pid, signal.SIGKILL)
    other_process.wait()
    assert living(workspace) is None
    mine = Heartbeat(workspace, "mine")
    assert living(workspace).run == "mine"
    mine.close()
    assert living(workspace) is None
    assert list(workspace.iterdir()) == []


def test_a_run_on_another_machine_is_told_by_the_age_of_its_sign(tmp_path):
    path = tmp_path / heartbeat.FILE
    path.write_text(json.dumps({"run": "far", "pid": 1, "host": "another-machine"}))
    assert living(tmp_path).run == "far"
    old = time.time() - heartbeat.DEAD_AFTER - 1
    os.utime(path, (old, old))
    assert living(tmp_path) is None


def test_a_drive_without_locks_goes_by_the_age_of_the_sign(tmp_path, monkeypatch):
    def none(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(heartbeat, "_lock", none)
    mine = Heartbeat(tmp_path, "mine")
    assert living(tmp_path).run == "mine"
    with pytest.raises(WorkspaceBusyError, match="in use by run mine"):
        Heartbeat(tmp_path, "other")
    old = time.time() - heartbeat.DEAD_AFTER - 1
    os.utime(tmp_path / heartbeat.FILE, (old, old))
    assert living(tmp_path) is None
    mine.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": 1}'])
def test_a_torn_sign_of_life_is_nobody(tmp_path, text):
    (tmp_path / heartbeat.FILE).write_text(text)
    assert living(tmp_path) is None
    Heartbeat(tmp_path, "mine").close()


def test_two_kernels_do_not_train_in_one_workspace(stage, other_process):
    with pytest.raises(ConfigError, match=rf"workspace_dir: .*process {other_process.pid}.*Stop"):
        stage.service.start(stage.config)
    assert stage.runs == []


def test_attach_shows_the_history_of_a_run_that_was_cut_off(stage, kernel, tmp_path, monkeypatch):
    from ot_notebook.services.trainer_service import TrainerService

    dead = cut_off(stage)
    fresh = TrainerService(stage._execute)  # a new kernel
    monkeypatch.setattr("ot_notebook.services.trainer_service._service", fresh)
    told = []
    fresh.subscribe(told.extend)
    run = ot.attach(tmp_path / "workspace")
    assert run.id == dead.id
    assert run.state == "cut off"
    assert "cut off" in repr(run)
    assert ot.runs(tmp_path / "workspace")["state"].tolist() == ["cut off"]
    assert fresh.run is run
    assert (fresh.state, fresh.step, fresh.max_step) == ("stopped", 120, 300)
    assert fresh.status.startswith("Cut off while training at step 120 of 300")
    assert fresh.history.points("loss", 10**6)[0].tolist() == list(range(1, 121))
    assert [sample.step for sample in fresh.history.samples] == [100]
    assert told == [e.TrainingState("stopped")]

    with pytest.raises(ConfigError, match="backup/elsewhen is not there"):
        run.resume(backup="elsewhen")
    resumed = run.resume(epochs=60)
    assert stage.run.config.continue_last_backup
    assert stage.run.config.epochs == 60
    stage.run.enter("loading", "training")
    for number in range(101, 131):  # the last backup was at step 100
        stage.run.step(number, loss=0.25)
    stage.run.end()
    fresh.flush()
    shown, values = fresh.history.points("loss", 10**6)
    assert shown.tolist() == list(range(1, 131))
    assert values.tolist() == [0.5] * 100 + [0.25] * 30
    fresh.close()

    again = TrainerService(stage._execute)  # a third kernel sees all of it
    again.show(ot.run(resumed.id, tmp_path / "workspace"))
    shown, values = again.history.points("loss", 10**6)
    assert shown.tolist() == list(range(1, 131))
    assert values.tolist() == [0.5] * 100 + [0.25] * 30
    assert again.state == "finished"


def test_a_run_that_lives_elsewhere_is_called_that(stage, kernel, tmp_path, other_process):
    from ot_notebook.services.run_store import RunStore

    store = RunStore(tmp_path / "workspace" / "run.db")
    store.begin("other", stage.config.to_dict(), time.time())
    store.append("other", [(time.time(), e.TrainingState("training"))])
    store.close()
    run = ot.attach(tmp_path / "workspace")
    assert run.state == "training"
    assert f"Live in run other in process {other_process.pid}" in stage.service.status
    with pytest.raises(ConfigError, match="is in use by run other"):
        run.resume()


def test_attach_finds_nothing_and_says_where(kernel, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"No run in .*empty"):
        ot.attach()


def test_attach_is_refused_while_a_run_is_live_here(kernel, tmp_path):
    kernel.start()
    with pytest.raises(CommandRefused, match="show is refused: a run is loading"):
        ot.attach(tmp_path / "workspace")


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [("3h40m", 12_600), ("90 min", 5_130), ("2 h", 6_840), (3600, 3420), ("100s", 40)],
)
def test_a_budget_leaves_time_to_save(budget, seconds):
    from ot_notebook.services.budget import training_seconds

    assert training_seconds(budget) == seconds


@pytest.mark.parametrize("budget", ["soon", "3 x", "", "60s", 30, float("inf"), -1])
def test_a_budget_that_makes_no_sense_is_refused(stage, budget):
    with pytest.raises(ValueError, match=r"budget is .*3h40m"):
        stage.service.start(stage.config, budget=budget)
    assert stage.runs == []


def test_a_run_stops_when_its_budget_is_over(stage):
    stage.service.start(stage.config, budget=60.2)
    stage.run.enter("training")
    until = time.monotonic() + 5
    while stage.service.state != "stopping" and time.monotonic() < until:
        time.sleep(0.02)
    assert stage.run.commands.stop_requested
    assert any("time is nearly up" in line.text for line in stage.service.history.log)


def test_a_long_run_is_drawn_without_reading_every_step(stage, tmp_path):
    handle = stage.start()
    stage.run.enter("training")
    count = 50_000
    for number in range(1, count + 1):
        stage.run.step(number, loss=9.0 if number == 1234 else 0.5, last=count)
        if number % 5000 == 0:
            stage.service.flush()
    stage.run.end()
    stage.service.flush()
    from ot_notebook.services.replay import replay

    steps, values = replay(ot.run(handle.id, handle.workspace)).points("loss", 10**6)
    assert (steps[0], steps[-1], values.max()) == (1, count, 9.0)
    assert len(steps) < 20_000
    assert (steps[1:] > steps[:-1]).all()
    assert len(handle.metrics()) == count
