import threading

import pytest

from modules.config import SampleConfig, TrainConfig
from modules.training import events as e
from ot_notebook.preset_files import find
from ot_notebook.services.trainer_service import TrainerService


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
