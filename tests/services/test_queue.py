import json
import subprocess
import sys
import time

import pytest

from modules.config import ConfigError
from modules.training import events as e
from ot_notebook.services.queue_service import FILE, QueueError, QueueService

OWNER = """
import sys, time
from pathlib import Path
from ot_notebook.services.heartbeat import Heartbeat
beat = Heartbeat(Path(sys.argv[1]), "queue", "queue.live")
print("here", flush=True)
time.sleep(60)
"""


@pytest.fixture
def queue(stage, tmp_path):
    queue = QueueService(tmp_path / "queue", stage.service)
    yield queue
    queue.close()


@pytest.fixture
def configs(config, tmp_path):
    """Three that do not write over one another."""
    return [
        config.update(
            workspace_dir=str(tmp_path / f"workspace-{n}"),
            output_model_destination=str(tmp_path / f"lora-{n}.safetensors"),
        )
        for n in range(3)
    ]


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def states(queue):
    return [(job.name, job.state) for job in queue.jobs]


def test_jobs_run_one_after_another_whatever_becomes_of_each(stage, queue, configs):
    for name, config in zip("abc", configs, strict=True):
        queue.add(config, name)
    assert stage.runs == [], "nothing runs before start()"
    queue.start()
    until(lambda: len(stage.runs) == 1)
    assert stage.run.config == configs[0]
    until(lambda: states(queue) == [("a", "running"), ("b", "waiting"), ("c", "waiting")])
    stage.run.end()
    until(lambda: len(stage.runs) == 2)
    stage.run.emit(e.RunFailed("ValueError: no", "Do this."))
    stage.run.end("failed")
    until(lambda: len(stage.runs) == 3)
    stage.service.stop()
    stage.run.end("stopped")
    until(lambda: states(queue) == [("a", "finished"), ("b", "failed"), ("c", "stopped")])
    assert queue.jobs[1].error == "ValueError: no\nDo this."
    assert all(job.run for job in queue.jobs)
    queue.retry(queue.jobs[1].id)
    until(lambda: len(stage.runs) == 4)
    assert stage.run.config == configs[1]
    stage.run.end()


def test_a_paused_queue_starts_nothing_and_goes_on_when_started(stage, queue, configs):
    for config in configs[:2]:
        queue.add(config)
    queue.start()
    until(lambda: len(stage.runs) == 1)
    queue.pause()
    stage.run.end()
    until(lambda: queue.jobs[0].state == "finished")
    time.sleep(0.1)
    assert len(stage.runs) == 1
    queue.start()
    until(lambda: len(stage.runs) == 2)


def test_the_order_can_be_changed_and_jobs_taken_out(queue, configs):
    jobs = [queue.add(config, name) for name, config in zip("abc", configs, strict=True)]
    queue.move(jobs[2].id, 0)
    assert [job.name for job in queue.jobs] == ["c", "a", "b"]
    queue.move(jobs[2].id, 99)
    assert [job.name for job in queue.jobs] == ["a", "b", "c"]
    queue.move(jobs[0].id, 1)
    assert [job.name for job in queue.jobs] == ["b", "a", "c"]
    queue.remove(jobs[1].id)
    assert [job.name for job in queue.jobs] == ["a", "c"]


def test_a_waiting_job_can_be_edited_within_the_rules(queue, configs):
    job = queue.add(configs[0], "a")
    queue.edit(job.id, epochs=7)
    assert queue.jobs[0].config["epochs"] == 7
    with pytest.raises(ConfigError, match="base_model_name"):
        queue.edit(job.id, base_model_name="/nowhere")
    assert queue.jobs[0].config["epochs"] == 7


def test_a_grid_gives_each_combination_a_workspace_and_a_file(queue, configs):
    jobs = queue.add_grid(configs[0], learning_rate=[1e-4, 5e-4], lora_rank=[8, 16])
    rates = [(job.config["learning_rate"], job.config["lora_rank"]) for job in jobs]
    assert rates == [(1e-4, 8), (1e-4, 16), (5e-4, 8), (5e-4, 16)]
    assert jobs[3].name == "learning_rate 0.0005, lora_rank 16"
    for key in ("workspace_dir", "output_model_destination"):
        assert len({job.config[key] for job in jobs}) == 4
        assert all("learning_rate_0" in job.config[key] for job in jobs)
    with pytest.raises(ConfigError, match="learning_rate"):
        queue.add_grid(configs[1], learning_rate=[1e-4, "fast"])
    assert len(queue.jobs) == 4, "all or none"


def test_what_makes_no_sense_is_refused_with_the_reason(stage, queue, configs):
    job = queue.add(configs[0], "a")
    with pytest.raises(QueueError, match=r"where job 'a' will write its model. Give this one"):
        queue.add(configs[0].update(epochs=3), "b")
    with pytest.raises(ConfigError, match="base_model_name"):
        queue.add(configs[1].update(base_model_name="/nowhere"))
    with pytest.raises(QueueError, match=rf"no job 'x'. The queue holds {job.id} \(a\)"):
        queue.remove("x")
    with pytest.raises(QueueError, match="'a' is waiting; only one that ended is retried"):
        queue.retry(job.id)
    queue.start()
    until(lambda: queue.jobs[0].state == "running")
    with pytest.raises(QueueError, match=r"'a' is running\. Stop its run first"):
        queue.remove(job.id)
    for change in (lambda: queue.move(job.id, 0), lambda: queue.edit(job.id, epochs=1)):
        with pytest.raises(QueueError, match="'a' is running; only one that waits"):
            change()


def test_a_job_that_cannot_start_any_more_fails_and_the_next_one_runs(stage, queue, configs):
    queue.add(configs[0], "a")
    queue.add(configs[1], "b")
    path = queue.path
    content = json.loads(path.read_text())
    content["jobs"][0]["config"]["base_model_name"] = "/gone/meanwhile"
    queue.close()
    path.write_text(json.dumps(content))
    later = QueueService(path.parent, stage.service)
    later.start()
    until(lambda: len(stage.runs) == 1)
    until(lambda: states(later) == [("a", "failed"), ("b", "running")])
    assert "/gone/meanwhile" in later.jobs[0].error
    later.close()


def test_a_run_started_by_hand_goes_first(stage, queue, configs):
    stage.start()
    queue.add(configs[1], "a")
    queue.start()
    time.sleep(0.2)
    assert states(queue) == [("a", "waiting")]
    stage.run.end()
    until(lambda: len(stage.runs) == 2)
    stage.run.end()


def test_the_queue_survives_its_kernel_and_an_interrupted_job_resumes(stage, queue, configs):
    first = queue.add(configs[0], "a")
    queue.add(configs[1], "b")
    queue.start()
    until(lambda: queue.jobs[0].state == "running")
    stage.run.enter("training")
    stage.run.step(1)
    on_disk = queue.path.read_text()
    queue.close()
    stage.run.end("stopped")
    until(lambda: stage.service.state == "stopped")
    queue.path.write_text(on_disk)  # as a kernel that was killed leaves it
    later = QueueService(queue.path.parent, stage.service)
    assert states(later) == [("a", "interrupted"), ("b", "waiting")]
    later.retry(first.id, resume=True)
    later.move(first.id, 0)
    later.start()
    until(lambda: len(stage.runs) == 2)
    assert stage.run.config.continue_last_backup
    stage.run.enter("training")
    stage.run.step(2)
    stage.service.flush()
    assert stage.service.history.points("loss", 9)[0].tolist() == [1, 2], "with what was before"
    later.close()


def test_two_kernels_do_not_run_one_queue(stage, tmp_path, configs):
    folder = tmp_path / "queue"
    folder.mkdir()
    other = subprocess.Popen([sys.executable, "-c", OWNER, folder], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"here\n"
    queue = QueueService(folder, stage.service)
    with pytest.raises(QueueError, match=rf"process {other.pid}.*Use the queue there"):
        queue.add(configs[0])
    other.kill()
    other.wait()
    other.stdout.close()
    queue.add(configs[0])
    queue.close()


@pytest.mark.parametrize("text", ["shopping list", "[]", '{"version": 9, "jobs": []}'])
def test_a_foreign_file_is_named_and_kept(stage, tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(QueueError, match=rf"{FILE} cannot be read: .*Move it away"):
        QueueService(tmp_path, stage.service)
    assert (tmp_path / FILE).read_text() == text


def test_an_observer_that_raises_does_not_stop_the_queue(stage, queue, configs):
    def broken(change):
        raise KeyError("jobs")

    queue.observe(broken, "jobs")
    queue.add(configs[0])
    queue.start()
    until(lambda: queue.jobs[0].state == "running")
    assert any("broken raised KeyError" in line.text for line in stage.service.history.log)
