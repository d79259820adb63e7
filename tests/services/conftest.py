import shutil
import threading
import time

import pytest

import ot_notebook as ot
from modules.config import SampleConfig, TrainConfig
from modules.training import events as e
from ot_notebook.preset_files import find
from ot_notebook.services.trainer_service import TrainerService

SECONDS = 120
"""Longest that a small run may take, on a machine that does much else."""


class ScriptedRun:
    """A run whose every event the test decides: one more place where a run can execute."""

    trainer = object()

    def __init__(self, config, emit, commands, done):
        self.config, self.emit, self.commands, self._done = config, emit, commands, done
        self._over = threading.Event()

    def enter(self, *states):
        for state in states:
            self.emit(e.TrainingState(state))

    def step(self, number, loss=0.5, last=300):
        self.emit(e.LossUpdate(number, 1, loss, loss, {"unet": 1e-3}, 1.0, 8.0, 0))
        left = float(last - number)
        self.emit(e.Progress(number, last, 1, 5, number, last, loss, loss, 1e-3, 1.0, left))

    def end(self, state="finished"):
        self.enter(state)
        self._over.set()
        self._done()

    def join(self, timeout=None):
        return self._over.wait(timeout)


class Stage:
    """A service with scripted runs; `stage.run` is the latest."""

    def __init__(self, config):
        self.config, self.runs = config, []
        self.service = TrainerService(self._execute)

    def _execute(self, *arguments):
        self.runs.append(ScriptedRun(*arguments))
        return self.runs[-1]

    @property
    def run(self):
        return self.runs[-1]

    def start(self):
        handle = self.service.start(self.config)
        self.run.enter("loading")
        self.service.flush()
        return handle

    def close(self):
        if self.runs and not self.run._over.is_set():
            self.run.end("stopped")
        self.service.close()


@pytest.fixture
def config(tmp_path):
    """The quickstart's settings, with folders of the test's own."""
    config, _ = TrainConfig.load(find("emoji LoRA"))
    return config.update(
        workspace_dir=str(tmp_path / "workspace"),
        cache_dir=str(tmp_path / "cache"),
        output_model_destination=str(tmp_path / "lora.safetensors"),
    )


@pytest.fixture
def stage(config):
    stage = Stage(config)
    yield stage
    stage.close()


@pytest.fixture
def sample():
    return SampleConfig(prompt="a fox")


@pytest.fixture
def service():
    """A trainer's service of the test's own; what still runs at the end is stopped."""
    service = TrainerService()
    yield service
    if service.state not in ("idle", *e.ENDED):
        service.stop()
        service.run.wait(SECONDS)
    service.close()


@pytest.fixture
def small(config, tmp_path):
    """The quickstart on four pictures and one prompt: two steps an epoch, no samples due."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for picture in sorted(ot.assets.dataset("line art").glob("*.png"))[:4]:
        shutil.copy(picture, pictures)
        shutil.copy(picture.with_suffix(".txt"), pictures)
    return config.update(
        concepts=[{"name": "pictures", "path": str(pictures), "image_variations": 1}],
        samples=[{"prompt": "a fox", "width": 64, "height": 64, "diffusion_steps": 2, "seed": 7}],
        sample_after_unit="NEVER",
        batch_size=2,
        epochs=2,
        learning_rate_warmup_steps=1,
    )


@pytest.fixture
def reach():
    """Waits until a service is in a state; an error of its run fails the test."""

    def wait(service, state):
        until = time.monotonic() + SECONDS
        while service.state != state and time.monotonic() < until:
            time.sleep(0.01)
            assert service.error is None, service.error.traceback
        assert service.state == state

    return wait
