"""Captions and masks by a model: modes, progress and stop."""

import numpy as np
import pytest
from PIL import Image

from modules.config import ConceptConfig
from ot_notebook.services import annotate
from ot_notebook.services.concept_store import ConceptStore


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(20):
        colour = "red" if number % 2 else "blue"
        Image.new("RGB", (24, 16), colour).save(folder / f"{number:02}.png")
    (folder / "00.txt").write_text("Blue, square")
    return ConceptStore([ConceptConfig(path=str(folder))], journal=tmp_path / "edits.db")


def colours(images):
    """Names the colour of a picture: simple, but a captioner."""
    return ["red" if image.getpixel((0, 0))[0] > 128 else "blue, flat" for image in images]


def left_half(images):
    masks = []
    for image in images:
        mask = np.zeros((image.height, image.width), np.float32)
        mask[:, : image.width // 2] = 1
        masks.append(mask)
    return masks


@pytest.mark.parametrize(
    ("mode", "first"),
    [("replace", "blue, flat"), ("fill", "Blue, square"), ("add", "Blue, square, flat")],
)
def test_captions_are_joined_as_the_mode_says(store, mode, first):
    told = []
    report = lambda run: told.append((run.done, run.total))  # noqa: E731
    run = annotate.caption(store, colours, mode=mode, report=report).wait()
    assert store.caption(0) == first
    assert store.caption(1) == "red"
    assert told[0] == (0, run.total)
    assert told[-1] == (run.total, run.total) == (20 - (mode == "fill"),) * 2
    store.undo()
    assert (store.caption(0), store.caption(1)) == ("Blue, square", "")


@pytest.mark.parametrize(
    ("mode", "old", "expected"),
    [
        ("replace", [0, 0.5, 1], [1, 1, 0]),
        ("fill", [0, 0.5, 1], [0, 0.5, 1]),
        ("add", [0, 0.5, 1], [1, 1, 1]),
        ("subtract", [0, 0.5, 1], [0, 0, 1]),
        ("blend", [0, 0.5, 1], [0.5, 0.75, 0.5]),
        ("fill", None, [1, 1, 0]),
        ("add", None, [1, 1, 0]),
        ("subtract", None, [0, 0, 1]),
    ],
)
def test_masks_are_combined_as_the_mode_says(mode, old, expected):
    old = None if old is None else np.array([old], np.float32)
    new = np.array([[1, 1, 0]], np.float32)
    assert annotate.combine(old, new, mode).tolist() == [expected]


def test_masks_are_written_and_undone(store):
    annotate.mask(store, left_half, where=[3]).wait()
    row = store.rows[3]
    with Image.open(row.mask_path) as mask:
        assert (mask.getpixel((2, 2)), mask.getpixel((20, 2)), mask.size) == (255, 0, (24, 16))
    annotate.mask(store, left_half, where=[3], mode="subtract").wait()
    assert not np.asarray(Image.open(row.mask_path)).any()
    store.undo()
    store.undo()
    assert not row.mask_path.exists()


def test_a_stopped_run_keeps_what_it_did(store):
    run = annotate.caption(store, colours, report=lambda run: run.done and run.stop()).wait()
    assert run.done == annotate.BATCH
    assert store.stats()["captioned"] == annotate.BATCH + 1


def test_a_failing_model_is_told_and_its_work_kept(store):
    def fails_later(images, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("out of memory")
        return colours(images)

    with pytest.raises(RuntimeError, match="out of memory"):
        annotate.caption(store, fails_later).wait()
    assert store.stats()["captioned"] == annotate.BATCH + 1


def test_a_bad_mode_is_refused(store):
    with pytest.raises(ValueError, match="mode is 'merge', but must be one of replace, fill, add"):
        annotate.caption(store, colours, mode="merge")


def test_a_model_that_says_nothing_takes_no_caption_away(store):
    annotate.caption(store, lambda images: [" "] * len(images), mode="replace").wait()
    assert store.caption(0) == "Blue, square"
    assert store.can() == ("", "")
