"""What is done when a run is over: a function of one's own, or giving the machine back."""

import sys
import threading
import time
from types import ModuleType

import pytest

from modules.training import events as e
from ot_notebook.platform import give_back


@pytest.mark.parametrize("ending", ["finished", "stopped", "failed"])
def test_it_is_called_once_with_all_of_the_run_on_disk(stage, ending):
    called = threading.Event()
    seen = []

    def hook(run):
        seen.append((run.state, run.metrics()["step"].tolist()))
        called.set()

    stage.service.start(stage.config, auto_stop=hook)
    stage.run.enter("training")
    stage.run.step(1)
    stage.run.step(2)
    assert not called.wait(0.1)
    stage.run.end(ending)
    assert called.wait(5)
    assert seen == [(ending, [1, 2])]


def test_one_that_raises_is_told_and_the_next_run_starts(stage):
    raised = threading.Event()

    def hook(_run):
        raised.set()
        raise OSError("no such pod")

    stage.service.start(stage.config, auto_stop=hook)
    stage.run.end()
    assert raised.wait(5)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        stage.service.flush()
        if any("no such pod" in line.text for line in stage.service.history.log):
            break
        time.sleep(0.01)
    assert any("OSError: no such pod" in line.text for line in stage.service.history.log)
    stage.start()


def test_the_settings_of_a_run_follow_what_is_set(stage):
    assert stage.service.config is None
    stage.start()
    stage.run.enter("training")
    assert stage.service.config == stage.config
    stage.run.emit(e.SettingChanged("clip_grad_norm", 1.0, 0.5, 3))
    assert stage.service.config == stage.config.update(clip_grad_norm=0.5)
    stage.run.end()
    assert stage.service.config is None


def test_a_machine_is_given_back_where_that_can_be_done(monkeypatch, tmp_path):
    ended = []
    names = ("google", "google.colab", "google.colab.drive", "google.colab.runtime")
    google = {name: ModuleType(name) for name in names}
    google["google.colab.drive"].flush_and_unmount = lambda: ended.append("drive")
    google["google.colab.runtime"].unassign = lambda: ended.append("colab")
    with monkeypatch.context() as patch:
        patch.setenv("COLAB_RELEASE_TAG", "release")
        for name, module in google.items():
            patch.setitem(sys.modules, name, module)
        give_back()
    program = tmp_path / "runpodctl"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\n')
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("RUNPOD_POD_ID", "pod-7")
        patch.setenv("PATH", str(tmp_path), prepend=":")
        give_back()
        program.write_text("#!/bin/sh\necho 'not allowed' >&2; exit 3\n")
        with pytest.raises(RuntimeError, match="pod-7: not allowed"):
            give_back()
        patch.setenv("PATH", str(tmp_path / "nothing"))
        with pytest.raises(RuntimeError, match="runpodctl is not installed"):
            give_back()
    assert ended == ["drive", "colab"], "what waits for the drive would be lost"
    assert (tmp_path / "told").read_text().strip() == "stop pod pod-7"


def test_elsewhere_it_says_what_to_do(monkeypatch):
    for name in ("COLAB_RELEASE_TAG", "RUNPOD_POD_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="Give start\\(\\) a function of your own"):
        give_back()
