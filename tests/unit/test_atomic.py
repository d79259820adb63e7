import stat

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
