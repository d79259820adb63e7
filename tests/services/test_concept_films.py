"""Films in the concept editor's core: listed for a model of films, shown by their first frame."""

import io

import numpy as np
import pytest
from imageio_ffmpeg import write_frames
from PIL import Image

from modules.config import ConceptConfig, TrainConfig
from ot_notebook.services.concept_run import RunFacts
from ot_notebook.services.concept_store import ConceptStore
from ot_notebook.widgets import concept_page, item_pictures


@pytest.fixture
def folder(tmp_path):
    """A picture, and a film of 20 frames that begins red and ends blue."""
    path = tmp_path / "films"
    path.mkdir()
    Image.new("RGB", (64, 64), "teal").save(path / "a.png")
    writer = write_frames(str(path / "b.mp4"), (64, 64), fps=16, macro_block_size=2)
    writer.send(None)
    for number in range(20):
        colour = (255, 0, 0) if number < 10 else (0, 0, 255)
        writer.send(np.full((64, 64, 3), colour, np.uint8))
    writer.close()
    (path / "b.txt").write_text("a change of colour")
    return path


def store(folder, tmp_path, model_type, **changes):
    made = ConceptStore([ConceptConfig(path=str(folder))], journal=tmp_path / "edits.db")
    changes = {"resolution": "64", "cache_dir": str(tmp_path / "cache"), **changes}
    made.follow_run(RunFacts.of(TrainConfig().update(model_type=model_type, **changes)))
    return made


def test_a_model_of_films_lists_them_with_length_and_bucket(folder, tmp_path):
    kept = store(folder, tmp_path, "WAN_2", frames="5,17")
    picture, film = kept.rows
    assert (film.name, film.caption, film.width) == ("b.mp4", "a change of colour", 64)
    assert (kept.bucket(picture), kept.bucket(film)) == ("64x64", "64x64, 17 frames")
    assert [row["bucket"] for row in kept.buckets()] == ["64x64", "64x64, 17 frames"]
    assert [concept_page.describe(kept, row)["seconds"] for row in kept.rows] == [0, 1.25]


def test_a_length_that_is_none_breaks_no_page(folder, tmp_path):
    kept = store(folder, tmp_path, "WAN_2", frames="many")
    assert [kept.bucket(row) for row in kept.rows] == ["64x64", "64x64"]


def test_another_model_lists_them_as_left_out(folder, tmp_path):
    kept = store(folder, tmp_path, "WAN_2")
    assert kept.rows[1].item is not None
    kept.follow_run(RunFacts.of(TrainConfig().update(resolution="64")))
    assert [(row.name, row.item is None, row.problems) for row in kept.rows] == [
        ("a.png", False, ("missing caption",)),
        ("b.mp4", True, ("unsupported",)),
    ]


def test_its_first_frame_stands_for_it(folder, tmp_path):
    kept = store(folder, tmp_path, "WAN_2")
    thumbnail, _ = item_pictures.Thumbnails().get(kept.rows[1])
    red, _, blue = np.asarray(Image.open(io.BytesIO(thumbnail)).convert("RGB")).mean((0, 1))
    assert red > 200
    assert blue < 50
