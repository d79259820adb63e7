"""Monitor, platform and doctor: the machine as it is, and a calm word where it is not."""

import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import psutil
import pytest

import ot_notebook as ot
from ot_notebook.checkup import Check, Checkup
from ot_notebook.platform import detect


@pytest.fixture
def monitor(tmp_path):
    monitor = ot.SystemMonitor(tmp_path, seconds=0.02)
    yield monitor
    monitor.stop()


def first_reading(monitor):
    until = time.monotonic() + 5
    while monitor.reading is None and time.monotonic() < until:
        time.sleep(0.01)
    return monitor.reading


def test_readings_agree_with_the_system_and_come_from_another_thread(monitor):
    threads = set()
    monitor.observe(lambda _change: threads.add(threading.current_thread().name), "reading")
    monitor.start()
    monitor.start()
    reading = first_reading(monitor)
    assert reading.ram_total == psutil.virtual_memory().total
    assert 0 < reading.process_ram < reading.ram_used <= reading.ram_total
    assert 0 <= reading.cpu <= 100
    assert 0 < reading.disk_free <= reading.disk_total
    time.sleep(0.15)
    assert threads == {"ot-monitor"}
    assert 3 <= len(monitor.history) <= 20
    monitor.stop()
    count = len(monitor.history)
    time.sleep(0.1)
    assert len(monitor.history) == count


def test_without_its_libraries_the_monitor_says_what_brings_them(tmp_path):
    code = (
        "import sys, time; sys.modules['psutil'] = sys.modules['pynvml'] = None\n"
        "import ot_notebook as ot\n"
        "monitor = ot.SystemMonitor(seconds=0.01); monitor.start()\n"
        "while monitor.reading is None: time.sleep(0.01)\n"
        "monitor.stop(); print(monitor.note, monitor.reading)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install psutil" in out.stdout
    assert "pip install nvidia-ml-py" in out.stdout
    assert "cpu=None" in out.stdout
    assert "gpus=()" in out.stdout
    assert out.stderr == ""


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_a_machine_without_a_driver_is_told_calmly(monitor):
    pytest.importorskip("pynvml")
    monitor.start()
    first_reading(monitor)
    assert monitor.note.startswith("No GPU figures: this machine has no NVIDIA driver")


@pytest.mark.gpu
def test_gpu_figures_agree_with_the_driver(monitor):
    import torch

    held = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    monitor.start()
    (gpu, *_) = first_reading(monitor).gpus
    assert gpu.name == torch.cuda.get_device_name(0)
    assert gpu.memory_used >= held.numel()
    assert 0 <= gpu.utilisation <= 100
    assert 0 < gpu.temperature < 120


def shell(**names):
    return types.SimpleNamespace(kernel=object(), user_ns=names)


@pytest.mark.parametrize(
    ("environment", "given", "name", "mode"),
    [
        ({"COLAB_RELEASE_TAG": "x"}, shell(), "colab", "rich"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, shell(), "kaggle", "core"),
        ({"VSCODE_PID": "1"}, shell(), "vscode", "rich"),
        ({}, shell(__vsc_ipynb_file__="a.ipynb"), "vscode", "rich"),
        ({}, shell(), "jupyter", "rich"),
        ({}, types.SimpleNamespace(kernel=None, user_ns={}), "terminal", "text"),
    ],
)
def test_platforms_are_told_apart(tmp_path, environment, given, name, mode):
    place = detect(environment, tmp_path, given)
    assert (place.name, place.mode) == (name, mode)


def test_colab_advises_to_mount_the_drive_until_it_is(tmp_path):
    place = detect({"COLAB_RELEASE_TAG": "x"}, tmp_path, shell())
    assert place.keep is None
    assert "drive.mount" in place.advice
    drive = tmp_path / "content" / "drive" / "MyDrive"
    drive.mkdir(parents=True)
    place = detect({"COLAB_RELEASE_TAG": "x"}, tmp_path, shell())
    assert (place.keep, place.advice) == (drive, "")


def test_kaggle_is_known_by_its_folder_too(tmp_path):
    (tmp_path / "kaggle" / "input").mkdir(parents=True)
    place = detect({}, tmp_path, shell())
    assert (place.name, place.keep) == ("kaggle", tmp_path / "kaggle" / "working")


def test_the_doctor_looks_at_everything_and_changes_nothing(tmp_path):
    found = ot.doctor(tmp_path)
    names = [check.name for check in found]
    assert names[:7] == ["Platform", "Python", "Engine", "Front end", "GPU", "Memory", "Disk"]
    assert found.healthy
    text = repr(found)
    assert "torch 2." in text
    assert "anywidget 0." in text
    assert str(tmp_path) in text
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_says_what_is_wrong_and_what_to_do(tmp_path):
    found = ot.doctor(tmp_path / "nowhere")
    assert not found.healthy
    (disk,) = (check for check in found if check.name == "Disk")
    assert (disk.verdict, disk.advice) == ("bad", "Choose a folder that exists.")
    assert "X Disk" in repr(found)


def test_foreign_text_in_a_checkup_is_text():
    page = Checkup([Check("<b>", "<script>alert(1)</script>", "bad", "<i>")])._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
