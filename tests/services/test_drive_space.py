"""Room where a run is kept: another drive, a quota, what Kaggle keeps."""

import time
from pathlib import Path

import pytest

import ot_notebook as ot
from ot_notebook.services import drive_space, system_monitor
from ot_notebook.services.drive_space import KAGGLE_KEEPS, DriveSpace, size_of
from ot_notebook.widgets.machine_strip import GIB, MachineStrip, meters


def fill(folder, *sizes):
    for number, size in enumerate(sizes):
        path = folder / f"deep/{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def test_the_disk_that_is_told_already_is_not_told_twice(tmp_path):
    assert DriveSpace(tmp_path / "not" / "made" / "yet", tmp_path).look() is None


def test_a_drive_of_its_own_is_told_also_before_the_workspace_is_made(tmp_path):
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is but one file system here")
    drive = DriveSpace(shm / "ot-notebook-no-such-run", tmp_path).look()
    assert drive.label == "Drive"
    assert 0 < drive.free <= drive.total


def test_a_network_drive_is_told_though_it_is_where_the_kernel_works(tmp_path, monkeypatch):
    monkeypatch.setattr(drive_space, "is_network", lambda folder: True)
    assert DriveSpace(tmp_path, tmp_path).look().total > 0


def test_what_kaggle_keeps_is_less_than_its_disk(tmp_path):
    working = tmp_path / "working"
    fill(working, 1000, 234)
    space = DriveSpace(working / "runs/one", tmp_path, kaggle=working)
    drive = space.look()
    assert (drive.label, drive.total, drive.free) == ("Output", KAGGLE_KEEPS, KAGGLE_KEEPS - 1234)
    fill(working, 5000)
    assert space.look() == drive, "files are not counted again at once"
    assert size_of(working) == 5234


def read(monitor, told=lambda reading: True):
    """The first new reading that tells."""
    monitor.start()
    old, until = monitor.reading, time.monotonic() + 5
    while (monitor.reading is old or not told(monitor.reading)) and time.monotonic() < until:
        time.sleep(0.01)
    assert told(monitor.reading)
    return monitor.reading


def test_the_monitor_tells_of_a_workspace_with_a_quota_and_the_strip_warns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    fill(folder, 950)
    monitor = ot.SystemMonitor(tmp_path, seconds=0.02)
    monitor.watch("run", quota=1000)
    reading = read(monitor)
    monitor.stop()
    assert reading.drive_of("run").free == 50
    (meter,) = (one for one in meters(reading, kept=folder) if one["label"] == "Drive")
    assert (meter["percent"], meter["tone"]) == (95.0, "bad")
    assert str(folder) in meter["hint"]
    assert all(one["label"] != "Drive" for one in meters(reading))


def test_each_strip_shows_the_drive_of_its_own_workspace(tmp_path):
    monitor = ot.SystemMonitor(tmp_path, seconds=0.02)
    strips = {}
    for name, used in (("one", 950), ("two", 400)):
        fill(tmp_path / name, used)
        monitor.watch(tmp_path / name, quota=GIB)
        strips[name] = MachineStrip(monitor, kept=lambda name=name: tmp_path / name)
    reading = read(monitor, lambda reading: len(reading.drives) == 2)
    monitor.stop()
    assert [reading.drive_of(tmp_path / name).free for name in strips] == [GIB - 950, GIB - 400]
    for name, other in (("one", "two"), ("two", "one")):
        strips[name].draw()
        assert f"files in {tmp_path / name}" in strips[name].value
        assert f"files in {tmp_path / other}" not in strips[name].value
    shown = strips["one"]
    shown._kept = lambda: tmp_path / "two"  # another run is shown
    shown.draw()
    assert f"files in {tmp_path / 'two'}" in shown.value


def test_a_workspace_that_nobody_shows_any_more_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(system_monitor, "WATCHED", 0.2)
    monitor = ot.SystemMonitor(tmp_path, seconds=0.02)
    for name in ("left", "shown"):
        monitor.watch(tmp_path / name, quota=1000)
    assert read(monitor).drives.keys() == {tmp_path / "left", tmp_path / "shown"}
    read(monitor, lambda reading: reading.drives.keys() == {tmp_path / "shown"})
    monitor.stop()


def test_a_drive_that_is_gone_ends_no_reading(tmp_path, monkeypatch):
    def gone(self):
        raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(DriveSpace, "look", gone)
    monitor = ot.SystemMonitor(tmp_path, seconds=0.02)
    monitor.watch(tmp_path)
    monitor.start()
    until = time.monotonic() + 5
    while len(monitor.history) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    monitor.stop()
    assert monitor.reading.drive_of(tmp_path) is None
    assert len(monitor.history) >= 3
