"""Widgets without a front end: what they send is kept, and a test plays the page."""

import threading
from types import SimpleNamespace

import comm
import pytest
from comm.base_comm import BaseComm
from ipywidgets.widgets import widget
from PIL import Image

from modules.config import TrainConfig
from modules.training import events as e
from ot_notebook.preset_files import find
from ot_notebook.services.trainer_service import TrainerService
from ot_notebook.widgets.dashboard import Dashboard


class Wire:
    """Every message that widgets have sent, as (widget's model id, content, buffers)."""

    def __init__(self):
        self.messages = []

    def custom(self, widget):
        """Custom messages of a widget, oldest first."""
        return [
            data["content"]
            for sender, data, _ in self.messages
            if sender == widget.model_id and data.get("method") == "custom"
        ]

    def states(self, widget):
        """State updates of a widget, oldest first."""
        return [
            data["state"]
            for sender, data, _ in self.messages
            if sender == widget.model_id and data.get("method") == "update"
        ]

    def clear(self):
        self.messages.clear()


@pytest.fixture
def wire(monkeypatch):
    wire = Wire()

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        if msg_type == "comm_msg":
            wire.messages.append((self.comm_id, data, buffers))

    if hasattr(widget, "Comm"):  # ipywidgets 7 with ipykernel 6, which Colab has
        manager = SimpleNamespace(register_comm=lambda _: "", unregister_comm=lambda _: None)
        monkeypatch.setattr(widget.Comm, "kernel", SimpleNamespace(comm_manager=manager))
        monkeypatch.setattr(widget.Comm, "_publish_msg", publish_msg)
    else:
        recorder = type("Recorder", (BaseComm,), {"publish_msg": publish_msg})
        monkeypatch.setattr(comm, "create_comm", recorder)
    return wire


class ScriptedRun:
    """A run whose every event the test decides: one more place where a run can execute."""

    trainer = None

    def __init__(self, config, emit, commands, done):
        self.emit, self.commands, self._done = emit, commands, done
        self.over = threading.Event()

    def step(self, number, loss=0.5, last=100):
        self.emit(e.LossUpdate(number, 1, loss, loss, {"unet": 1e-3}, 1.0, 8.0, 0))
        left = float(last - number)
        self.emit(e.Progress(number, last, 1, 5, number, last, loss, loss, 1e-3, 1.0, left))

    def end(self, state):
        self.emit(e.TrainingState(state))
        self.over.set()
        self._done()

    def join(self, timeout=None):
        return self.over.wait(timeout)


class Stage:
    """A service and its scripted runs."""

    def __init__(self, config):
        self.config, self.run = config, None
        self.service = TrainerService(self._execute)

    def _execute(self, *arguments):
        self.run = ScriptedRun(*arguments)
        return self.run

    def go(self, *states):
        """Start a run where none is live, and take it through `states`."""
        if self.run is None or self.run.over.is_set():
            self.service.start(self.config)
        for state in states:
            self.run.end(state) if state in e.ENDED else self.run.emit(e.TrainingState(state))
        self.service.flush()

    def say(self, *events):
        """Let the run say something, and deliver it."""
        for event in events:
            self.run.emit(event)
        self.service.flush()

    def step(self, *numbers, **given):
        for number in numbers:
            self.run.step(number, **given)
        self.service.flush()


@pytest.fixture
def config(tmp_path):
    config, _ = TrainConfig.load(find("emoji LoRA"))
    return config.update(workspace_dir=str(tmp_path / "run"), cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def stage(config):
    stage = Stage(config)
    yield stage
    if stage.run is not None and not stage.run.over.is_set():
        stage.run.end("stopped")
    stage.service.close()


@pytest.fixture
def picture(tmp_path):
    """Writes a sample and gives its event."""

    def picture(step, prompt="a fox", size=64, index=0, suffix="png"):
        path = tmp_path / f"{step}-{index}-{size}.{suffix}"
        Image.new("RGB", (size, size), (step % 256, 90, 160)).save(path)
        return e.SampleImage("default", path, prompt, 42, step, 1, index)

    return picture


@pytest.fixture
def dashboard(stage, wire):
    """Start trains with the stage's settings."""
    dashboard = Dashboard(stage.service, stage)
    yield dashboard
    dashboard.close()


@pytest.fixture
def core(stage, wire):
    dashboard = Dashboard(stage.service, stage, mode="core")
    yield dashboard
    dashboard.close()
