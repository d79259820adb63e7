"""The cache: what survives crashes, company and files that are not as they should be."""

import os
import random
import shutil
import threading
import time
from itertools import islice

import pytest
import torch
from cached import contents, work
from fill_slowly import start
from pictures import PoolingEncoder, concept, picture, prepare

from modules.config import ConfigError
from modules.data import Batches, CachingStopped, build, scan
from modules.data.cache import Space, keys_of
from modules.data.upkeep import verify


def test_stopping_keeps_what_is_done(folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.data.encode.PICTURES", 1)
    done = []
    with pytest.raises(CachingStopped):
        prepare(
            concept(folder),
            encoder,
            tmp_path / "cache",
            report=lambda count, total: done.append((count, total)),
            should_stop=lambda: len(done) >= 3,
        )
    assert done[:3] == [(1, 12), (2, 12), (3, 12)]
    images, texts = work(encoder, concept(folder), tmp_path / "cache")
    assert images <= 3
    assert texts == 6


def test_captions_are_encoded_while_pictures_are(folder, encoder, tmp_path):
    """Each waits in its encoder until the other is there too."""
    both, heard = threading.Barrier(2, timeout=20), []

    class Meeting(PoolingEncoder):
        def encode_images(self, pixels):
            both.wait()
            return super().encode_images(pixels)

        def encode_text(self, captions):
            both.wait()
            return super().encode_text(captions)

    meeting = Meeting()
    meeting.lanes = 2
    prepare(
        concept(folder), meeting, tmp_path / "cache", report=lambda *counts: heard.append(counts)
    )
    assert heard == [(6, 12), (12, 12)]
    prepare(concept(folder), encoder, tmp_path / "alone")
    assert contents(tmp_path / "cache") == contents(tmp_path / "alone")


def test_pictures_are_encoded_in_lanes(folder, encoder, tmp_path, monkeypatch):
    """Each waits in its encoder until another is there too."""
    monkeypatch.setattr("modules.data.encode.PICTURES", 1)
    two = threading.Barrier(2, timeout=20)

    class Meeting(PoolingEncoder):
        def encode_images(self, pixels):
            two.wait()
            return super().encode_images(pixels)

    meeting = Meeting()
    meeting.lanes = 2
    prepare(concept(folder), meeting, tmp_path / "cache")
    prepare(concept(folder), encoder, tmp_path / "alone")
    assert contents(tmp_path / "cache") == contents(tmp_path / "alone")


def test_what_fails_beside_something_else_ends_both(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.data.encode.PICTURES", 1)

    seen = threading.Event()

    class Failing(PoolingEncoder):
        def encode_images(self, pixels):
            seen.set()
            time.sleep(0.1)
            return super().encode_images(pixels)

        def encode_text(self, captions):
            seen.wait(20)
            raise RuntimeError("no memory for captions")

    encoder = Failing()
    encoder.lanes = 2
    with pytest.raises(RuntimeError, match="no memory for captions"):
        prepare(concept(folder), encoder, tmp_path / "cache")
    assert 0 < encoder.images < 6
    assert len(contents(tmp_path / "cache")) == encoder.images  # kept


def many(folder, count=24):
    for index in range(count):
        picture(1000 + index, 32, 32).save(folder / f"more{index}.png")
        (folder / f"more{index}.txt").write_text(f"more {index}")


def fill(folder, kept, pause=0.0):
    process = start(folder, kept, pause)
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_lose_nothing_that_was_written(folder, tmp_path, kills):
    many(folder)
    fill(folder, tmp_path / "clean")
    clean = contents(tmp_path / "clean")
    assert len(clean) > 60
    kept, rng, before, midway = tmp_path / "kept", random.Random(kills), 0, 0
    while midway < kills:
        if before == len(clean):  # it ended before the kill came: start over
            shutil.rmtree(kept)
            before = 0
        process = start(folder, kept, 0.01)
        time.sleep(rng.uniform(0.05, 0.4))
        process.kill()
        process.join()
        now = len(contents(kept))  # every shard there is whole
        assert now >= before
        midway += before < now < len(clean)
        before = now
    fill(folder, kept)
    assert contents(kept) == clean
    assert verify(kept) == []
    assert list(kept.glob("*/.*.part")) == []


def test_processes_at_once_share_one_cache(folder, tmp_path):
    many(folder)
    fill(folder, tmp_path / "alone")
    both = [start(folder, tmp_path / "cache", 0.005) for _ in range(2)]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    rows = [key for path in (tmp_path / "cache").glob("*/*.safetensors") for key in keys_of(path)]
    assert len(rows) == len(set(rows))  # the second waited and found them all
    assert contents(tmp_path / "cache") == contents(tmp_path / "alone")


def test_waiting_for_another_process_can_be_stopped(folder, encoder, tmp_path):
    kept = tmp_path / "cache"
    prepare(concept(folder), encoder, kept)
    (space,) = [Space(path) for path in kept.glob("image-*")]
    picture(50).save(folder / "0.png")
    with space.writing(lambda: False):
        started = time.monotonic()
        with pytest.raises(CachingStopped):
            prepare(
                concept(folder),
                encoder,
                kept,
                should_stop=lambda: time.monotonic() - started > 0.5,
            )
    assert time.monotonic() - started < 5


def test_a_file_that_changes_meanwhile_is_left_out_and_said(folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.data.encode.PICTURES", 1)

    def change(done, total):
        picture(60).save(folder / "5.png")

    data = prepare(concept(folder), encoder, tmp_path / "cache", report=change, threads=1)
    assert len(data) == 5
    (problem,) = data.problems
    assert problem.kind == "changed"
    assert "5.png" in str(problem)
    again = prepare(concept(folder), encoder, tmp_path / "cache")
    clean = prepare(concept(folder), encoder, tmp_path / "clean")
    for one, other in islice(zip(Batches(again, 1, 1), Batches(clean, 1, 1), strict=True), 6):
        assert torch.equal(one.latents, other.latents)


def test_pictures_that_break_behind_their_header_are_left_out(folder, encoder, tmp_path):
    content = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(content[: len(content) // 2])
    data = prepare(concept(folder), encoder, tmp_path / "cache")
    assert [item.name for item in data.items] == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    (problem,) = data.problems
    assert problem.kind == "unreadable image"
    assert "3.png" in str(problem)


def test_nothing_left_to_train_on_is_an_error_that_says_why(tmp_path, encoder):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="No image is left to train on"):
        prepare(concept(tmp_path), encoder, tmp_path / "cache")


def test_a_cache_that_cannot_be_written(folder, encoder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="Choose another folder for the cache"):
        prepare(concept(folder), encoder, tmp_path / "file" / "cache")


def test_threads_of_one_process_may_share_a_cache(folder, tmp_path):
    encoders = [PoolingEncoder() for _ in range(3)]
    threads = [
        threading.Thread(target=prepare, args=(concept(folder), encoder, tmp_path / "cache"))
        for encoder in encoders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(encoder.images for encoder in encoders) == 6


def test_a_file_that_vanishes_after_the_scan_is_said(folder, encoder, tmp_path):
    found = scan([concept(folder)])
    (folder / "2.png").unlink()
    settings = {"resolution": "64", "quantum": 8, "bucketing": True, "threads": 2}
    silent = {"report": lambda done, total: None, "should_stop": lambda: False}
    data = build(found, encoder, tmp_path / "cache", **settings, **silent)
    assert len(data) == 5
    (problem,) = data.problems
    assert "2.png" in str(problem)
    assert "left out" in str(problem)


def test_a_broken_mask_takes_its_image_out_and_is_named(folder, encoder, tmp_path):
    (folder / "0-masklabel.png").write_bytes(b"no picture")
    data = prepare(concept(folder), encoder, tmp_path / "cache", masks=True)
    assert [item.name for item in data.items] == [f"{i}.png" for i in range(1, 6)]
    assert "0-masklabel.png" in str(data.problems[0])
    assert len(prepare(concept(folder), encoder, tmp_path / "cache")) == 6


def test_nothing_is_written_beside_the_images(folder, encoder, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    prepare(concept(folder), encoder, tmp_path / "cache", masks=True)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_cache_on_a_read_only_drive_serves(folder, encoder, tmp_path, monkeypatch):
    prepare(concept(folder), encoder, tmp_path / "cache")

    def refuse(*args, **kwargs):
        raise PermissionError(30, "Read-only file system")

    for name in ("utime", "replace", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    assert work(encoder, concept(folder), tmp_path / "cache") == (0, 0)
