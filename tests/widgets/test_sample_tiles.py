"""Samples of a run that the test plays: which a page holds, and how they travel."""

from dataclasses import replace
from pathlib import Path

import pytest

from ot_notebook.widgets.sample_gallery import SampleGallery
from ot_notebook.widgets.thumbnails import MAX_TILES


@pytest.fixture
def gallery(stage, wire):
    gallery = SampleGallery(stage.service)
    yield gallery
    gallery.close()


def tiles(gallery):
    return [*gallery._gallery.archive, *gallery._gallery.recent]


def test_samples_appear_once_each_and_new_ones_travel_alone(stage, gallery, picture, wire):
    stage.go("loading", "training")
    stage.say(picture(0), picture(0, "a boat", index=1))
    wire.clear()
    stage.say(picture(50))
    (state,) = wire.states(gallery._gallery)
    assert set(state) == {"recent"}
    assert [(tile["prompt"], tile["step"]) for tile in tiles(gallery)] == [
        ("a fox", 0),
        ("a boat", 0),
        ("a fox", 50),
    ]
    assert len({tile["id"] for tile in tiles(gallery)}) == 3


def test_large_samples_travel_as_thumbnails_and_whole_on_request(stage, gallery, picture, wire):
    stage.go("loading", "training")
    stage.say(picture(0, size=512))
    (tile,) = tiles(gallery)
    assert (tile["width"], tile["height"], tile["whole"]) == (512, 512, False)
    assert len(tile["image"]) < 20_000
    gallery._gallery._handle_custom_msg({"op": "full", "id": tile["id"]}, [])
    assert wire.custom(gallery._gallery)[-1]["mime"] == "image/png"


def test_a_sample_whose_file_is_gone_is_named_not_fatal(stage, gallery, picture, wire):
    stage.go("loading", "training")
    event = picture(0)
    stage.say(event, replace(event, path=Path("/no/such.png"), step=1))
    assert [tile["width"] for tile in tiles(gallery)] == [64, 0]
    event.path.unlink()
    first = tiles(gallery)[0]["id"]
    gallery._gallery._handle_custom_msg({"op": "full", "id": first}, [])
    answer = wire.custom(gallery._gallery)[-1]
    assert answer["op"] == "gone"
    assert "No such file" in answer["why"]


def test_a_page_holds_a_bounded_number_of_samples_with_the_first_of_each_prompt(
    stage, gallery, picture
):
    stage.go("loading", "training")
    one, two = picture(0), picture(0, "a boat", index=1)
    stage.say(*(replace(kind, step=step) for step in range(400) for kind in (one, two)))
    held = tiles(gallery)
    assert len(held) == MAX_TILES
    assert next(tile["step"] for tile in held if tile["prompt"] == "a fox") == 0
    assert held[-1]["step"] == 399
    assert len(gallery._gallery.others) == 800 - MAX_TILES
    assert gallery._gallery.note == ""


def test_core_gallery_shows_first_and_latest_and_any_other_large(stage, wire, picture):
    gallery = SampleGallery(stage.service, mode="core")
    stage.go("loading", "training")
    stage.say(picture(0), picture(50), picture(100))
    first, latest, words = gallery._core.cards["a fox"]
    assert first.value == picture(0).path.read_bytes()
    assert latest.value == picture(100).path.read_bytes()
    assert "step 0 and step 100" in words.value
    gallery._core.step.index = 1
    assert gallery._core.large.value == picture(50).path.read_bytes()
    gallery.close()
