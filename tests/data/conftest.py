"""A small real training set."""

import pytest
from pictures import PoolingEncoder, picture


@pytest.fixture
def encoder():
    return PoolingEncoder()


@pytest.fixture
def folder(tmp_path):
    """Six images with captions."""
    path = tmp_path / "set"
    path.mkdir()
    for index in range(6):
        picture(index).save(path / f"{index}.png")
        (path / f"{index}.txt").write_text(f"picture {index}")
    return path
