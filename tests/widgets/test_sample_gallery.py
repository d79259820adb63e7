"""The gallery beyond what a page always holds: pictures on request, other runs, selection."""

import io
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from modules.config import SampleConfig
from modules.training import events as e
from ot_notebook.services.run_store import RunStore
from ot_notebook.widgets.job_config import JobConfig
from ot_notebook.widgets.sample_gallery import SampleGallery
from ot_notebook.widgets.shelf import difference
from ot_notebook.widgets.thumbnails import MAX_TILES, SPARE_TILES


@pytest.fixture
def job(stage, wire):
    job = JobConfig(stage.config)
    yield job
    job.close()


@pytest.fixture
def gallery(stage, job, wire):
    gallery = SampleGallery(stage.service, job)
    yield gallery
    gallery.close()


def ask(gallery, **content):
    gallery._gallery._handle_custom_msg(content, [])


def answers(gallery, wire, op):
    return [said for said in wire.custom(gallery._gallery) if said["op"] == op]


def many(stage, picture, count):
    one = picture(0)
    stage.go("loading", "training")
    stage.say(*(replace(one, step=step) for step in range(count)))


def test_10000_samples_are_listed_at_once_and_their_pictures_come_when_seen(
    stage, gallery, picture, wire
):
    wire.clear()
    many(stage, picture, 10_000)
    front = gallery._gallery
    assert len(front.archive) + len(front.recent) == MAX_TILES
    listed = {one["id"]: one["step"] for one in [*front.others, *front.archive, *front.recent]}
    assert len(listed) == 10_000
    assert sorted(listed.values()) == list(range(10_000))
    began = time.perf_counter()
    stage.say(replace(picture(0), step=10_000))
    assert time.perf_counter() - began < 2, "one more picture must not go through all of them"
    ids = [one["id"] for one in front.others[100:103]]
    ask(gallery, op="thumbs", ids=ids)
    (said,) = answers(gallery, wire, "thumbs")
    assert [(one["id"], one["width"]) for one in said["tiles"]] == [(n, 64) for n in ids]
    buffers = next(b for _, data, b in wire.messages if data.get("content") == said)
    assert [Image.open(io.BytesIO(bytes(one))).size for one in buffers] == [(64, 64)] * 3


def test_pictures_that_stay_do_not_travel_again_with_each_new_one(stage, gallery, picture, wire):
    many(stage, picture, MAX_TILES)
    wire.clear()
    for step in range(MAX_TILES, MAX_TILES + SPARE_TILES):
        stage.say(replace(picture(0), step=step))
    sent = [state for state in wire.states(gallery._gallery) if "archive" in state]
    assert len(sent) <= SPARE_TILES // 20, "the archive is sent now and then, not each time"
    stage.say(replace(picture(0), step=10_000))
    assert len(gallery._gallery.archive) == MAX_TILES


def test_samples_that_are_selected_are_a_table(stage, gallery, picture):
    stage.go("loading", "training")
    stage.say(picture(0), picture(50), picture(100, "a boat", index=1))
    ids = [one["id"] for one in gallery._gallery.recent]
    gallery._gallery.set_state({"chosen": [ids[2], ids[1]]})  # a person's clicks
    table = gallery.selection()
    assert table[["step", "prompt", "seed"]].values.tolist() == [
        [100, "a boat", 42],
        [50, "a fox", 42],
    ]
    assert table["run"].tolist() == [stage.service.run.id] * 2
    gallery.selected = ids[:1]
    assert gallery._gallery.chosen == ids[:1]
    stage.go("finished")
    stage.go("loading")
    assert gallery.selection().empty, "numbers of another run would name other samples"


def test_settings_of_a_sample_join_the_job(stage, gallery, job, picture, wire):
    definition = stage.config.samples[0].update(prompt="a fox", cfg_scale=5.5, seed=7)
    stage.config = stage.config.update(samples=[definition])
    job.update(samples=[])
    stage.go("loading", "training")
    stage.say(replace(picture(50), seed=99), replace(picture(60, "custom"), index=-1))
    first, custom = (one["id"] for one in gallery._gallery.recent)
    told = []
    gallery.observe(lambda change: told.append(change.new), "used")
    ask(gallery, op="use", id=first)
    assert job.config.samples == (definition.update(seed=99),), "the seed that it was drawn with"
    assert told == [definition.update(seed=99)]
    assert answers(gallery, wire, "used") == [{"op": "used", "id": first}]
    assert gallery.use(custom) == SampleConfig(prompt="custom", seed=42)
    ask(gallery, op="where", id=first)
    assert answers(gallery, wire, "where")[0]["path"] == str(picture(50).path)
    ask(gallery, op="use", id=12345)
    assert "no sample 12345" in answers(gallery, wire, "gone")[0]["why"]


def test_samples_of_another_run_are_at_hand(stage, gallery, picture, wire, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = RunStore(tmp_path / "old" / "run.db")
    store.path.parent.mkdir()
    store.begin("old run", stage.config.to_dict(), 1.0)
    store.append("old run", [(1.0, picture(30))])
    store.close()
    stage.go("loading", "training")
    stage.say(picture(0))
    ask(gallery, op="runs")
    (runs,) = (said["runs"] for said in answers(gallery, wire, "runs"))
    assert [one["label"] for one in runs] == ["old run in old"]
    ask(gallery, op="run", key=runs[0]["key"])
    (said,) = answers(gallery, wire, "run")
    (sample,) = said["samples"]
    assert (sample["step"], sample["prompt"]) == (30, "a fox")
    assert sample["id"] != gallery._gallery.recent[0]["id"]
    ask(gallery, op="full", id=sample["id"])
    assert answers(gallery, wire, "full")[0]["id"] == sample["id"]
    ask(gallery, op="run", key=f"{tmp_path / 'gone'}|x")
    assert "does not exist" in answers(gallery, wire, "gone")[0]["why"]


def test_samples_of_plain_weights_are_told_apart(stage, gallery, picture, tmp_path):
    folder = tmp_path / "0 - a fox - no-ema"
    folder.mkdir()
    plain = replace(picture(10), path=picture(10).path.rename(folder / "a.png"))
    stage.go("loading", "training")
    stage.say(picture(10), plain)
    assert [one["raw"] for one in gallery._gallery.recent] == [False, True]


def test_a_difference_is_black_where_nothing_changed(tmp_path):
    one, other = tmp_path / "1.png", tmp_path / "2.png"
    Image.new("RGB", (8, 8), (100, 100, 100)).save(one)
    changed = Image.new("RGB", (8, 8), (100, 100, 100))
    changed.putpixel((3, 2), (110, 90, 100))
    changed.save(other)
    pixels = np.asarray(difference(one, other, gain=4))
    assert pixels[2, 3].tolist() == [40, 40, 0]
    assert pixels.sum() == 80


def test_core_gallery_scrubs_through_steps_and_shows_the_difference(stage, wire, picture):
    gallery = SampleGallery(stage.service, mode="core")
    stage.go("loading", "training")
    stage.say(picture(0), picture(50), picture(20, "a boat", index=1))
    core = gallery._core
    assert core.prompt.value == "a fox"
    assert core.step.label == "50"
    stage.say(picture(100))
    assert core.step.label == "100", "it follows where it stood at the newest"
    core.step.index = 1
    stage.say(picture(150))
    assert core.step.label == "50", "and stays where a person has put it"
    core.way.value = "beside"
    assert core.first.value == picture(0).path.read_bytes()
    core.way.value = "difference"
    shown = np.asarray(Image.open(io.BytesIO(core.large.value)))
    assert shown[0, 0].tolist() == [200, 0, 0], "four times 50"
    core.prompt.value = "a boat"
    assert core.step.label == "20"
    gallery.close()


def test_a_sample_event_keeps_its_kind(stage, gallery, picture):
    stage.go("loading", "training")
    stage.say(replace(picture(5), kind="custom"))
    gallery.selected = [one["id"] for one in gallery._gallery.recent]
    assert gallery.selection()["kind"].tolist() == ["custom"]
    assert isinstance(stage.service.history.samples[0], e.SampleImage)
