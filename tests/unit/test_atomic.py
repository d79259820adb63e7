import stat
import sys
import threading
import time

import pytest

from modules.atomic import atomic_file, atomic_folder


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise OSError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_is_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & stat.S_IRGRP


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "b") as new:  # noqa: PT012
        (new / "meta.json").write_text("{}")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_written_over(tmp_path):
    with pytest.raises(FileExistsError, match="another name"), atomic_folder(tmp_path):
        pass


def test_a_replaced_folder_is_there_at_every_moment(tmp_path):
    model = tmp_path / "model"

    def write(text):
        with atomic_folder(model, replace=True) as new:
            (new / "weights").write_text(text)

    write("0")
    missing, done = [], threading.Event()

    def watch():
        while not done.is_set():
            if not model.exists():
                missing.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(1, 101):
        write(str(number))
    done.set()
    watcher.join()
    assert (model / "weights").read_text() == "100"
    assert list(tmp_path.iterdir()) == [model]
    if sys.platform == "linux":  # elsewhere no call swaps two folders
        assert not missing


def test_a_folder_is_replaced_where_the_system_cannot_swap(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "other")
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "model", replace=True) as new:
            (new / "weights").write_text(text)
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
