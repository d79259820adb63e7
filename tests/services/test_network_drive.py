"""A workspace on a network drive: SQLite works here, and the drive holds whole files."""

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from modules.training import events as e
from ot_notebook.services import network_drive, run_store
from ot_notebook.services.network_drive import is_network
from ot_notebook.services.run_store import RunStore, StoreError

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local ext4 rw 0 0
drive /content/drive fuse.drive rw 0 0
//nas/my\\040files /mnt/my\\040files cifs rw 0 0
torn line
"""


@pytest.mark.parametrize(
    ("folder", "network"),
    [
        ("/srv/a", False),
        ("/home/me/run", True),
        ("/home/local/run", False),
        ("/content/drive/MyDrive/run", True),
        ("/content/run", False),
        ("/mnt/my files/run", True),
    ],
)
def test_network_drives_are_known_by_their_mount(tmp_path, folder, network):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert is_network(Path(folder), mounts) is network
    assert is_network(Path(folder), tmp_path / "none") is False


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A folder that counts as a network drive, and a place for local files."""
    folder = tmp_path / "drive"
    folder.mkdir()
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(run_store, "is_network", lambda path: path.is_relative_to(folder))
    monkeypatch.setattr(network_drive.tempfile, "gettempdir", lambda: str(tmp_path / "local"))
    return folder


def step(number):
    return 0.0, e.LossUpdate(number, 1, 0.5, 0.5, {"unet": 1e-3}, 1.0, 8.0, 0)


def test_the_drive_only_ever_sees_whole_files(drive):
    store, done, seen = RunStore(drive / "run.db"), threading.Event(), []

    def watch():
        while not done.is_set():
            seen.extend(path.name for path in drive.iterdir())

    watcher = threading.Thread(target=watch)
    watcher.start()
    store.begin("one", {}, now=0)
    for number in range(1, 50):
        store.append("one", [step(number)])
    store.close()
    done.set()
    watcher.join()
    assert not any("wal" in name or "journal" in name or "shm" in name for name in seen)
    with sqlite3.connect(drive / "run.db") as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert len(RunStore(drive / "run.db").metrics("one")) == 49


def test_copies_are_throttled_and_the_live_store_reads_what_is_new(drive):
    store = RunStore(drive / "run.db")
    store.begin("one", {}, now=0)
    first = (drive / "run.db").stat().st_ino
    for number in range(1, 20):
        store.append("one", [step(number)])
    assert (drive / "run.db").stat().st_ino == first, "copied once, with the first change"
    assert len(store.metrics("one")) == 19
    assert len(RunStore(drive / "run.db").metrics("one")) == 0, "what another process sees"
    store.close()
    assert len(RunStore(drive / "run.db").metrics("one")) == 19


def test_what_a_killed_process_left_here_is_taken_up(drive):
    killed = RunStore(drive / "run.db")
    killed.begin("one", {}, now=0)
    time.sleep(0.02)
    killed.append("one", [step(1)])
    killed._connection.close()  # no last copy
    after = RunStore(drive / "run.db")
    after.append("one", [step(2)])
    after.close()
    assert RunStore(drive / "run.db").metrics("one")["step"].tolist() == [1, 2]


def test_what_another_machine_wrote_meanwhile_wins(drive, tmp_path, monkeypatch):
    here = RunStore(drive / "run.db")
    here.begin("one", {}, now=0)
    here.close()
    time.sleep(0.02)
    (tmp_path / "there").mkdir()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(network_drive.tempfile, "gettempdir", lambda: str(tmp_path / "there"))
        other = RunStore(drive / "run.db")
        other.begin("two", {}, now=1)
        other.close()
    again = RunStore(drive / "run.db")
    again.begin("three", {}, now=2)
    again.close()
    assert [run.id for run in RunStore(drive / "run.db").runs()] == ["one", "two", "three"]


def test_a_drive_that_refuses_is_named_and_nothing_is_lost(drive, monkeypatch):
    store = RunStore(drive / "run.db")
    store.begin("one", {}, now=0)
    monkeypatch.setattr(network_drive, "SECONDS", 0.0)
    store._copy._due = 0.0

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(network_drive, "atomic_file", full)
        store.append("one", [step(1)])
        assert "run.db cannot be renewed" in store.behind
        assert "No space left on device" in store.behind
        with pytest.raises(StoreError, match=r"run\.db cannot be written: .*No space left"):
            store.close()
    store.append("one", [step(2)])
    assert store.behind == ""
    store.close()
    assert RunStore(drive / "run.db").metrics("one")["step"].tolist() == [1, 2]
