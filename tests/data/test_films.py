"""Films: found by name, cut to lengths, decoded frame by frame, and never left out in silence."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from pictures import concept, counting, film, picture, prepare
from PIL import Image

from modules.data import Batches, build, scan
from modules.data.encode import Picture, read_picture
from modules.data.films import Clip, Film, Lengths, read_clip
from modules.data.findings import Findings
from modules.data.freshness import Freshness
from modules.data.images import render, still
from modules.data.outlook import outlook
from modules.data.plan import Digests, Framing, Planner
from modules.data.report import report

LENGTHS = Lengths((5, 9), 4, 24)
FRAMING = Framing("64", 8, True, films=LENGTHS)


@pytest.fixture
def films(tmp_path):
    """A picture, and films of 3, 7 and 20 frames, each with its caption."""
    path = tmp_path / "films"
    path.mkdir()
    picture(0).save(path / "still.png")
    for count in (3, 7, 20):
        film(path / f"film{count}.mkv", counting(count))
    for file in list(path.iterdir()):
        file.with_suffix(".txt").write_text(f"this is {file.stem}")
    return path


def told(found):
    return {problem.kind: str(problem) for problem in found.problems}


def numbers(frames):
    """Which frames of `counting` these are."""
    return [round(float(np.asarray(frame).mean()) / 4) for frame in frames]


def frames_of(latents):
    """The same of latents [C, F, H, W]."""
    return [round((float(frame.mean()) + 1) * 127.5 / 4) for frame in latents.transpose(0, 1)]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", None), ("a.webm", "libvpx-vp9"), ("a.mov", None), ("a.avi", None), ("a.mkv", None)],
)
def test_a_scan_reads_how_long_and_large_a_film_is(name, codec, tmp_path):
    film(tmp_path / name, counting(30, 80, 48), 12, codec)
    (item,) = scan([concept(tmp_path)], films=True).items
    assert (item.width, item.height, item.film.frames) == (80, 48, 30)
    assert item.film.seconds == pytest.approx(2.5, abs=0.01)
    assert (item.film.length(24), item.film.length(16)) == (60, 40)


def test_a_film_of_a_turned_camera_is_upright(tmp_path):
    source, turned = film(tmp_path / "a.mp4", counting(5, 80, 48)), tmp_path / "films"
    turned.mkdir()
    command = [get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", source]
    subprocess.run([*command, "-c", "copy", turned / "b.mp4"], check=True)
    (item,) = scan([concept(turned)], films=True).items
    assert (item.width, item.height) == (48, 80)
    assert still(item).size == (48, 80)


def test_a_film_has_its_caption_and_mask_and_is_read_once(films, tmp_path, monkeypatch):
    Image.new("L", (64, 64), 255).save(films / "film7-masklabel.png")
    first = scan([concept(films)], tmp_path / "cache", films=True)
    by_name = {item.name: item for item in first.items}
    assert list(by_name) == ["film20.mkv", "film3.mkv", "film7.mkv", "still.png"]
    assert by_name["film7.mkv"].captions == ("this is film7",)
    assert by_name["film7.mkv"].mask.name == "film7-masklabel.png"
    assert by_name["still.png"].film is None
    assert first.problems == ()
    monkeypatch.setattr("modules.data.memo.SETTLED", 0)
    scan([concept(films)], tmp_path / "cache", films=True)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # nothing can be read any more
    again = scan([concept(films)], tmp_path / "cache", films=True)
    assert [(i.name, i.width, i.film) for i in again.items] == [
        (i.name, i.width, i.film) for i in first.items
    ]


def test_a_model_of_pictures_leaves_films_out_and_says_so(films):
    found = scan([concept(films)])
    assert [item.name for item in found.items] == ["still.png"]
    (problem,) = found.problems
    assert (problem.kind, problem.skipped, len(problem.paths)) == ("unsupported", True, 3)
    assert "film, and this model trains on pictures alone; it is left out" in problem.message


def test_films_without_ffmpeg_are_left_out_with_the_way_out(films, encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    found = scan([concept(films)], films=True)
    assert [item.name for item in found.items] == ["still.png"]
    (problem,) = found.problems
    assert len(problem.paths) == 3
    assert problem.skipped
    assert "pip install 'ot-notebook[video]'" in problem.fix


def test_a_film_takes_the_longest_length_that_it_fills(films, encoder, tmp_path):
    data = prepare(concept(films), encoder, tmp_path / "cache", films=LENGTHS)
    assert [str(bucket) for bucket in data.sizes] == ["64x64", "64x64, 5 frames", "64x64, 9 frames"]
    taken = {
        item.name: data.sizes[data.buckets[data.images.at(np.array([n]), np.array([0]))[0]]].frames
        for n, item in enumerate(data.items)
    }
    assert taken == {"film20.mkv": 9, "film3.mkv": 1, "film7.mkv": 5, "still.png": 1}
    (problem,) = [p for p in data.problems if p.kind == "short film"]
    assert [path.rpartition("/")[2] for path in problem.paths] == ["film3.mkv"]
    assert "shorter than the 5 frames" in problem.message
    assert "trains with 1 frame." in problem.message


@pytest.mark.parametrize(
    ("frames", "taken"), [(1, 1), (4, 1), (5, 5), (8, 5), (9, 9), (24, 9), (25, 25), (99, 25)]
)
def test_lengths_are_filled(frames, taken):
    assert Lengths((9, 25), 4, 24).of(Film(frames, frames / 24)) == taken
    assert Lengths((9, 25), 4, 24).too_short(Film(frames, frames / 24)) == (frames < 9)


def test_batches_hold_equal_shapes_and_the_frames_of_a_clip(films, encoder, tmp_path):
    for number in range(3):
        film(films / f"more{number}.mkv", counting(30))
    data = prepare(concept(films), encoder, tmp_path / "cache", films=LENGTHS)
    batches = Batches(data, 2, 0)
    assert {plan.bucket.frames: plan.images for plan in batches.buckets()} == {1: 2, 5: 1, 9: 4}
    seen = {}
    for _ in range(batches.batches_in(0)):
        batch = next(batches)
        for item, latents in zip(batch.items, batch.latents, strict=True):
            seen[data.items[item].name] = latents
        assert batch.size[0].tolist() == [64, 64, 0, 0, 64, 64]
    assert seen["still.png"].shape == seen["film3.mkv"].shape == (3, 8, 8)
    assert seen["film7.mkv"].shape == (3, 2, 8, 8)
    for name in ("film20.mkv", "more0.mkv", "more1.mkv", "more2.mkv"):
        first, middle, last = frames_of(seen[name])
        assert (middle - first, last - middle) == (4, 4)  # the encoder takes every fourth


def test_where_a_clip_begins_is_drawn_by_seed_and_variation(films):
    (item,) = (i for i in scan([concept(films)], films=True).items if i.name == "film20.mkv")

    def starts(framing=FRAMING, **settings):
        many = concept(films, image_variations=200, **settings)
        views = Planner([many], framing).plan(item, Digests(b"x" * 32)).views
        return [view.clip.start for view in views]

    assert starts() == starts()
    assert set(starts()) == set(range(12))  # 20 frames have room for 9 at 12 places
    assert starts() != starts(seed=5)
    assert starts() == starts(**{"image.enable_random_flip": True})


@pytest.mark.parametrize("rate", [12, 24, 30, 48])
@pytest.mark.parametrize("start", [0, 1, 7])
def test_frames_come_at_the_rate_of_the_model(rate, start, tmp_path):
    path = film(tmp_path / "a.mkv", counting(40), rate)
    found = numbers(read_clip(path, Clip(start, 9, 24), (64, 64)))
    wanted = [(start + number) / 24 for number in range(9)]
    late = [number / rate - time for number, time in zip(found, wanted, strict=True)]
    assert max(map(abs, late)) <= 0.5 / 24 + 1 / rate
    if rate == 24:
        assert found == list(range(start, start + 9))


def test_every_frame_is_cut_and_changed_alike(tmp_path):
    shown = [np.roll(np.asarray(picture(1, 96, 64)), 3 * n, 1) for n in range(12)]
    film(tmp_path / "a.mkv", shown)
    changed = concept(
        tmp_path,
        **{
            "image.enable_random_flip": True,
            "image.enable_random_rotate": True,
            "image.random_rotate_max_angle": 20.0,
            "image.enable_random_brightness": True,
            "image.random_brightness_max_strength": 0.4,
            "image.enable_random_hue": True,
            "image.random_hue_max_strength": 0.4,
        },
        image_variations=8,
    )
    (item,) = scan([changed], films=True).items
    digest = hashlib.sha256((tmp_path / "a.mkv").read_bytes()).digest()
    planned = Planner([changed], FRAMING).plan(item, Digests(digest))
    keyed = tuple(zip(planned.image_keys(), planned.views, strict=True))
    found = dict(read_picture(Picture(item, digest, keyed), Findings()))
    assert {view.flip for view in planned.views} == {True, False}
    for key, view in keyed:
        expected = [
            render(Image.fromarray(frame), replace(view, clip=None))
            for frame in shown[view.clip.start : view.clip.start + 9]
        ]
        assert np.array_equal(found[key], np.stack(expected))


def test_a_cache_knows_which_part_of_a_film_it_holds(films, encoder, tmp_path):
    cache = tmp_path / "cache"

    def work(lengths, **settings):
        before = encoder.images
        prepare(concept(films, **settings), encoder, cache, films=lengths)
        return encoder.images - before

    assert work(LENGTHS) == 4
    assert work(LENGTHS) == 0
    assert work(Lengths((5,), 4, 24)) == 1  # that of 20 frames is now shorter
    assert work(replace(LENGTHS, rate=12)) == 3  # all but the picture
    assert 0 < work(LENGTHS, seed=9) <= 3  # those that begin elsewhere now
    assert 0 < work(LENGTHS, image_variations=3) <= 6


def test_what_the_cache_has_of_a_film_is_known(films, encoder, tmp_path):
    cache = tmp_path / "cache"
    prepare(concept(films), encoder, cache, films=LENGTHS)

    def states(lengths):
        found = scan([concept(films)], cache, films=True)
        look = Freshness([concept(films)], replace(FRAMING, films=lengths), cache)
        return {item.name: look.state(item) for item in found.items}

    assert set(states(LENGTHS).values()) == {"fresh"}
    shorter = states(Lengths((5,), 4, 24))
    assert shorter.pop("film20.mkv") == "stale"
    assert set(shorter.values()) == {"fresh"}


@pytest.mark.parametrize(
    "name", ["-i.mkv", "concat:a|b.mkv", "%03d.mkv", "two\nlines.mkv", "über 'x' \"y\".mkv"]
)
def test_a_name_is_a_name_and_no_command(name, tmp_path):
    film(tmp_path / "plain.mkv", counting(9)).rename(tmp_path / name)
    (item,) = scan([concept(tmp_path)], films=True).items
    assert (item.name, item.film.frames) == (name, 9)
    assert numbers(read_clip(tmp_path / name, Clip(2, 5, 24), (64, 64))) == [2, 3, 4, 5, 6]


def test_a_film_that_is_too_large_is_left_out(films, monkeypatch):
    monkeypatch.setattr("modules.data.items.MAX_PIXELS", 64 * 64 - 1)
    (problem,) = scan([concept(films)], films=True).problems
    assert (problem.kind, problem.skipped, len(problem.paths)) == ("too large", True, 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)  # Pillow's own limit
    (problem,) = scan([concept(films)], films=True).problems
    assert (problem.kind, len(problem.paths)) == ("too large", 4)


def test_what_is_wrong_with_a_film_is_said_and_the_rest_trains(films, encoder, tmp_path):
    whole = film(tmp_path / "whole.mp4", counting(60)).read_bytes()
    (films / "text.mp4").write_text("no film at all")
    (films / "empty.webm").write_bytes(b"")
    (films / "headless.mp4").write_bytes(whole[: len(whole) // 2])
    matroska = film(tmp_path / "whole.mkv", counting(60)).read_bytes()
    (films / "short.mkv").write_bytes(matroska[: len(matroska) // 2])
    for file in ("text", "empty", "headless", "short"):
        (films / f"{file}.txt").write_text(file)
    found = scan([concept(films)], films=True)
    kinds = {path.rpartition("/")[2]: p.kind for p in found.problems for path in p.paths}
    assert kinds == {
        "text.mp4": "unreadable image",
        "empty.webm": "unreadable image",
        "headless.mp4": "unreadable image",
        "short.mkv": "damaged film",
    }
    short = next(item for item in found.items if item.name == "short.mkv")
    assert 10 < short.film.frames < 60
    data = prepare(concept(films), encoder, tmp_path / "cache", films=LENGTHS)
    assert len(data) == 5  # what there is of the short one trains


def test_a_film_that_breaks_off_or_changes_after_the_scan_is_left_out(films, encoder, tmp_path):
    cache = tmp_path / "cache"
    found = scan([concept(films)], cache, films=True)
    claimed = [
        replace(item, film=Film(60, 2.5)) if item.name == "film20.mkv" else item
        for item in found.items
    ]
    broken = replace(found, items=tuple(claimed))
    usual = {
        "resolution": "64", "quantum": 8, "bucketing": True, "threads": 1,
        "report": lambda *_: None, "should_stop": lambda: False,
    }  # fmt: skip
    data = build(broken, encoder, cache, **usual, films=Lengths((49,), 4, 24))
    assert "film20.mkv" not in {item.name for item in data.items}
    assert "it ends after" in told(data)["unreadable image"]

    again = scan([concept(films)], cache, films=True)
    film(films / "film7.mkv", counting(9))
    data = build(again, encoder, cache, **usual, films=LENGTHS)
    assert len(data) == 4  # its content counts, not its time


def test_films_in_an_archive_are_read_too(films, encoder, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in films.iterdir():
            archive.write(file, file.name)
    packed = concept(tmp_path / "set.zip")
    data = prepare(packed, encoder, tmp_path / "cache", films=LENGTHS)
    assert {item.name for item in data.items} == {
        "film20.mkv",
        "film3.mkv",
        "film7.mkv",
        "still.png",
    }
    assert [problem.kind for problem in data.problems] == ["short film"]
    before = encoder.images
    prepare(concept(films), encoder, tmp_path / "cache", films=LENGTHS)
    assert encoder.images == before  # content names what is cached


def test_a_folder_of_archives_stays_one_for_a_model_of_pictures(films, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    with zipfile.ZipFile(packed / "set.zip", "w") as archive:
        archive.write(films / "still.png", "still.png")
    film(packed / "film.mkv", counting(5))
    assert [item.name for item in scan([concept(packed)]).items] == ["set.zip/still.png"]
    assert [item.name for item in scan([concept(packed)], films=True).items] == ["film.mkv"]


def test_without_a_cache_a_film_is_the_same_at_first_and_then_another(films, encoder, tmp_path):
    alone = concept(films)
    (films / "still.png").unlink()
    Image.new("L", (64, 64), 255).save(films / "film20-masklabel.png")
    cached = prepare(alone, encoder, tmp_path / "cache", films=LENGTHS, masks=True)
    live = prepare(alone, encoder, None, films=LENGTHS, masks=True)
    one, other = Batches(cached, 1, 0), Batches(live, 1, 0)
    for _ in range(3):
        first, second = next(one), next(other)
        assert torch.equal(first.latents, second.latents)
        assert torch.equal(first.mask, second.mask)
    later = [next(other) for _ in range(12)]
    begins = {frames_of(b.latents[0])[0] for b in later if b.latents.shape[2:3] == (3,)}
    assert len(begins) > 1


def test_a_still_mask_is_of_all_frames(films, encoder, tmp_path):
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    half.save(films / "film20-masklabel.png")
    data = prepare(concept(films), encoder, tmp_path / "cache", films=LENGTHS, masks=True)
    batches = Batches(data, 1, 0)
    of_films = [b for b in (next(batches) for _ in range(4)) if b.latents.shape[2:] == (3, 8, 8)]
    assert of_films[0].mask.shape == (1, 1, 8, 8)
    assert of_films[0].mask[..., :4].eq(1).all()
    assert of_films[0].mask[..., 4:].eq(0).all()


def test_the_report_and_the_outlook_say_how_many_frames(films):
    found = scan([concept(films)], films=True)
    text = str(report(found, FRAMING))
    assert "64x64: 2 images, crops keep 100%" in text
    assert "64x64, 9 frames: 1 films, crops keep 100%" in text
    foreseen = outlook(found, FRAMING, 1, 0, "PAD")
    assert [(one.bucket.frames, one.images) for one in foreseen] == [(1, 2), (5, 1), (9, 1)]
