"""The service over the real trainer and the embedded model, a few steps each."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import ot_notebook as ot
from ot_notebook.services.refusals import CommandRefused
from ot_notebook.services.run import RunFailedError

SECONDS = 120

EPOCHS = 15
"""Long enough for a stop, which waits for the next delivery, to come before the end."""


def test_a_run_from_start_to_files_and_a_second_one_in_the_same_process(service, small):
    from safetensors.torch import load_file

    states = []
    service.observe(lambda change: states.append(change.new), "state")
    began = time.monotonic()
    run = service.start(small)
    assert time.monotonic() - began < 2, "the model loads on the training thread"
    assert service.state == "loading"
    run.wait(SECONDS)
    assert service.state == "finished"
    assert states[0] == "loading"
    assert run.metrics()["step"].tolist() == [1, 2, 3, 4]
    assert run.metrics()["loss"].between(0, 5).all()
    first = load_file(small.output_model_destination)
    assert any(tensor.abs().max() > 0 for name, tensor in first.items() if "lora_up" in name)
    assert service.trainer is None, "the model is let go of"

    again = service.start(small)
    again.wait(SECONDS)
    assert again.id != run.id
    assert again.metrics()["loss"].tolist() == run.metrics()["loss"].tolist(), "same seed"
    second = load_file(small.output_model_destination)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_speaks_through_its_events_alone(small):
    code = (
        "import sys, warnings, ot_notebook as ot; warnings.simplefilter('ignore')\n"
        "import diffusers\n"
        "run = ot.trainer().start(ot.TrainConfig.load(sys.argv[1])[0]).wait()\n"
        "print(run.state, diffusers.utils.logging.is_progress_bar_enabled())"
    )
    path = Path(small.workspace_dir).with_name("config.json")
    small.update(epochs=1).save(path)
    command = [sys.executable, "-c", code, path]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("finished True\n", "")


def test_every_command_reaches_the_trainer(service, small, reach):
    run = service.start(small.update(epochs=100_000))
    reach(service, "training")
    service.sample_default()
    service.sample(ot.SampleConfig(prompt="an owl", width=64, height=64, diffusion_steps=2))
    service.save()
    service.backup()
    service.pause()
    reach(service, "paused")
    step = service.trainer.step
    time.sleep(0.3)
    assert service.trainer.step == step
    service.flush()
    assert run.samples()["prompt"].tolist() == ["a fox", "an owl"]
    assert run.samples()["kind"].tolist() == ["default", "custom"]
    (save,), (backup,) = run.events("save"), run.events("backup")
    assert save.path.is_file()
    assert backup.path.is_dir()
    with service.paused() as trainer:
        assert trainer.model.unet is trainer.parts.module("unet")
    assert service.state == "paused", "as it was before"
    service.resume()
    reach(service, "training")
    asked = time.monotonic()
    service.stop()
    run.wait(SECONDS)
    assert time.monotonic() - asked < 30
    assert (service.state, run.state) == ("stopped", "stopped")
    with pytest.raises(CommandRefused, match="the run has stopped"):
        service.pause()


def test_a_stop_while_it_loads_ends_it_without_a_step(service, small):
    run = service.start(small)
    service.stop()
    run.wait(SECONDS)
    assert service.state == "stopped"
    assert service.step == 0
    assert run.metrics().empty


def test_a_run_is_stopped_and_resumed_exactly(service, small, tmp_path):
    whole = small.update(epochs=EPOCHS, workspace_dir=str(tmp_path / "whole"))
    service.start(whole).wait(SECONDS)
    expected = service.run.metrics()["loss"].tolist()

    reached = threading.Event()

    @service.on("step")
    def stop_at_five(update):
        if update.step >= 5 and not reached.is_set():
            reached.set()
            service.stop()

    half = small.update(epochs=EPOCHS, workspace_dir=str(tmp_path / "half"))
    first = service.start(half)
    first.wait(SECONDS)
    taken = first.metrics()["loss"].tolist()
    assert 5 <= len(taken) < len(expected)
    assert taken == expected[: len(taken)]
    second = service.start(half.update(continue_last_backup=True), after=first)
    second.wait(SECONDS)
    assert taken + second.metrics()["loss"].tolist() == expected
    assert service.history.points("loss", 999)[1].tolist() == expected


def test_a_run_that_fails_says_why_and_leaves_the_service_ready(service, small, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(ot.assets.model(), damaged)
    (weights,) = (damaged / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    run = service.start(small.update(base_model_name=str(damaged)))
    with pytest.raises(RunFailedError):
        run.wait(SECONDS)
    assert (service.state, run.state) == ("failed", "failed")
    assert service.error.advice
    assert service.error.traceback.startswith("Traceback")
    assert service.trainer is None
    service.start(small).wait(SECONDS)
    assert service.state == "finished"


TRAIN = """
import sys
import ot_notebook as ot
config, _ = ot.TrainConfig.load(sys.argv[1])
svc = ot.trainer()
svc.on("backup")(lambda event: print(event.step, flush=True))
svc.start(config).wait()
"""

RESUME = """
import sys
import ot_notebook as ot
run = ot.attach(sys.argv[1])
print(run.state, ot.trainer().state, ot.trainer().step, sep="|")
resumed = run.resume().wait()
print(resumed.state, *resumed.metrics()["step"], sep="|")
"""


@pytest.mark.slow
def test_a_kernel_that_is_killed_is_taken_up_by_the_next_one(small, tmp_path):
    config = small.update(epochs=EPOCHS, backup_after=2, backup_after_unit="STEP")
    config.save(tmp_path / "config.json")
    first = subprocess.Popen(
        [sys.executable, "-c", TRAIN, tmp_path / "config.json"], stdout=subprocess.PIPE, text=True
    )
    saved = [int(first.stdout.readline()) for _ in range(3)]
    first.kill()
    first.wait()
    saved += [int(line) for line in first.stdout.read().split()]
    first.stdout.close()
    second = subprocess.run(
        [sys.executable, "-c", RESUME, config.workspace_dir],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = second.stdout.strip().splitlines()
    assert before.split("|")[:2] == ["cut off", "stopped"]
    assert int(before.split("|")[2]) >= saved[-1]
    state, *steps = after.split("|")
    assert state == "finished"
    assert int(steps[0]) >= saved[-1] + 1
    assert [int(step) for step in steps] == list(range(int(steps[0]), 2 * EPOCHS + 1))
