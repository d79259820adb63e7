"""The cache: what is encoded again after which change, and what survives crashes and company."""

import json
import os
import random
import shutil
import threading
import time
from itertools import islice

import pytest
import torch
from fill_slowly import start
from pictures import PoolingEncoder, concept, picture, prepare
from safetensors.torch import load_file

from modules.config import ConfigError
from modules.data import Batches, CachingStopped, build, cache, scan
from modules.data.cache import Shelf, Space, keys_of, prune
from modules.data.upkeep import export, take_in, usage, verify


def contents(folder):
    """Every row of a cache by space and name, as bytes."""
    found = {}
    for path in folder.glob("*/*.safetensors"):
        rows = load_file(path)
        for row, key in enumerate(keys_of(path)):
            held = {name: tensor[row].numpy().tobytes() for name, tensor in rows.items()}
            found.setdefault((path.parent.name, key), held)
            assert found[path.parent.name, key] == held
    return found


def work(encoder, concepts, folder, **settings):
    """Images and captions that a build encodes."""
    images, texts = encoder.images, len(encoder.texts)
    prepare(concepts, encoder, folder, **settings)
    return encoder.images - images, len(encoder.texts) - texts


# ------------------------------------------------------------- what an edit costs


def change_caption(folder, settings, encoder):
    (folder / "0.txt").write_text("another caption")


def change_image(folder, settings, encoder):
    picture(77).save(folder / "0.png")


def rename(folder, settings, encoder):
    (folder / "0.png").rename(folder / "zero.png")
    (folder / "0.txt").rename(folder / "zero.txt")


def touch(folder, settings, encoder):
    os.utime(folder / "0.png")


def add_an_image(folder, settings, encoder):
    picture(78).save(folder / "new.png")
    (folder / "new.txt").write_text("a new one")


def remove_an_image(folder, settings, encoder):
    (folder / "0.png").unlink()
    (folder / "0.txt").unlink()


def copy_an_image(folder, settings, encoder):
    shutil.copy(folder / "0.png", folder / "copy.png")
    shutil.copy(folder / "0.txt", folder / "copy.txt")


def resolution(folder, settings, encoder):
    settings["resolution"] = "32"


def another_vae(folder, settings, encoder):
    encoder.image_identity = "another vae"


def layer_skip(folder, settings, encoder):
    encoder.text_identity = "clip-skip1"


def add_a_mask(folder, settings, encoder):
    picture(5, mode="L").save(folder / "0-masklabel.png")


def change_a_mask(folder, settings, encoder):
    picture(6, mode="L").save(folder / "1-masklabel.png")


def flip_all(folder, settings, encoder):
    settings["concept"]["image.enable_fixed_flip"] = True


def flip_some(folder, settings, encoder):
    settings["concept"]["image.enable_random_flip"] = True


def brighten(folder, settings, encoder):
    settings["concept"] |= {
        "image.enable_fixed_brightness": True,
        "image.random_brightness_max_strength": 0.2,
    }


def one_more_variation(folder, settings, encoder):
    settings["concept"]["image_variations"] = 2


def shuffle_tags(folder, settings, encoder):
    settings["concept"]["text.enable_tag_shuffling"] = True


def template(folder, settings, encoder):
    settings["concept"]["ot.caption_template"] = "sks, {caption}"


def jitter_off(folder, settings, encoder):
    settings["concept"]["image.enable_crop_jitter"] = False


def seed(folder, settings, encoder):
    settings["concept"]["seed"] = 7


def loss_weight(folder, settings, encoder):
    settings["concept"] |= {"loss_weight": 0.5, "balancing": 2.0, "name": "other"}


def move_the_folder(folder, settings, encoder):
    folder.rename(folder.with_name("moved"))
    settings["folder"] = folder.with_name("moved")


EDITS = [
    # six images, of which one has a mask; the edit, images and captions that are encoded again
    (change_caption, 0, 1),
    (change_image, 1, 0),
    (rename, 0, 0),
    (touch, 0, 0),
    (add_an_image, 1, 1),
    (remove_an_image, 0, 0),
    (copy_an_image, 0, 0),
    (resolution, 6, 0),
    (another_vae, 6, 0),
    (layer_skip, 0, 6),
    (add_a_mask, 0, 0),
    (change_a_mask, 0, 0),
    (flip_all, 6, 0),
    (flip_some, 3, 0),  # those that the draw turns; the others are there already
    (brighten, 6, 0),
    (one_more_variation, 0, 0),  # nothing random about them: both variations are the same
    (shuffle_tags, 0, 0),  # one tag each
    (template, 0, 6),
    (jitter_off, 0, 0),  # they fill their size, nothing is cropped
    (seed, 0, 0),
    (loss_weight, 0, 0),
    (move_the_folder, 0, 0),
]


@pytest.mark.parametrize(("edit", "images", "texts"), EDITS, ids=[e[0].__name__ for e in EDITS])
def test_an_edit_costs_only_what_it_changes(folder, encoder, tmp_path, edit, images, texts):
    picture(9, mode="L").save(folder / "1-masklabel.png")
    kept = tmp_path / "cache"
    assert work(encoder, concept(folder), kept, masks=True) == (6, 6)
    assert work(encoder, concept(folder), kept, masks=True) == (0, 0)
    settings = {"concept": {}, "folder": folder}
    edit(folder, settings, encoder)
    concepts = concept(settings.pop("folder"), **settings.pop("concept"))
    assert work(encoder, concepts, kept, masks=True, **settings) == (images, texts)
    fresh = PoolingEncoder(encoder.image_identity, encoder.text_identity)
    clean = prepare(concepts, fresh, tmp_path / "clean", masks=True, **settings)
    dirty = prepare(concepts, fresh, kept, masks=True, **settings)
    for one, other in islice(zip(Batches(clean, 2, 1), Batches(dirty, 2, 1), strict=True), 4):
        assert one.captions == other.captions
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.condition["hidden"], other.condition["hidden"])


def change_the_masked_image(folder, settings, encoder):
    picture(77).save(folder / "1.png")


def remove_the_mask(folder, settings, encoder):
    (folder / "1-masklabel.png").unlink()


def change_a_conditioning_image(folder, settings, encoder):
    picture(79).save(folder / "0-condlabel.png")


HINT_EDITS = [
    # of six images one has a mask; all others show the model the same: nothing
    (change_caption, "inpainting", 0),
    (change_image, "inpainting", 0),
    (change_the_masked_image, "inpainting", 1),
    (rename, "inpainting", 0),
    (add_a_mask, "inpainting", 1),
    (change_a_mask, "inpainting", 1),
    (remove_the_mask, "inpainting", 0),
    (resolution, "inpainting", 2),
    (another_vae, "inpainting", 2),
    (layer_skip, "inpainting", 0),
    (flip_all, "inpainting", 1),
    (brighten, "inpainting", 1),
    (change_a_conditioning_image, "conditioning", 1),
    (change_a_mask, "conditioning", 1),
    (change_image, "conditioning", 0),
    (brighten, "conditioning", 0),
    (flip_all, "conditioning", 6),
    (change_image, "depth", 1),
    (change_a_mask, "depth", 0),
    (change_caption, "depth", 0),
    (resolution, "depth", 6),
]


@pytest.mark.parametrize(("edit", "kind", "count"), HINT_EDITS)
def test_an_edit_costs_only_the_hints_that_it_changes(folder, tmp_path, edit, kind, count):
    conditioning = kind == "conditioning"
    encoder = PoolingEncoder(hint="inpainting" if conditioning else kind)
    picture(9, mode="L").save(folder / "1-masklabel.png")
    for index in range(6):
        picture(50 + index).save(folder / f"{index}-condlabel.png")
    kept, settings = tmp_path / "cache", {"concept": {}, "conditioning": conditioning}
    prepare(concept(folder), encoder, kept, conditioning=conditioning)
    assert encoder.hints == {"inpainting": 2, "conditioning": 6, "depth": 6}[kind]
    edit(folder, settings, encoder)
    encoder.hint_identity = f"{encoder.image_identity}-{encoder.hint}"
    concepts, encoder.hints = concept(folder, **settings.pop("concept")), 0
    dirty = prepare(concepts, encoder, kept, **settings)
    assert encoder.hints == count
    clean = prepare(concepts, encoder, tmp_path / "clean", **settings)
    for one, other in islice(zip(Batches(clean, 2, 1), Batches(dirty, 2, 1), strict=True), 4):
        assert one.captions == other.captions
        assert all(torch.equal(one.hints[name], other.hints[name]) for name in ("mask", "kept"))


def test_going_back_costs_nothing(folder, encoder, tmp_path):
    kept = tmp_path / "cache"
    work(encoder, concept(folder), kept)
    assert work(encoder, concept(folder), kept, resolution="32") == (6, 0)
    assert work(encoder, concept(folder), kept) == (0, 0)


def test_a_change_under_the_same_name_size_and_time_is_noticed(
    folder, encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr("modules.data.memo.SETTLED", 0)
    path, old = folder / "0.bmp", 1_500_000_000_000_000_000
    (folder / "0.png").unlink()
    picture(1).save(path)
    os.utime(path, ns=(old, old))
    kept = tmp_path / "cache"
    work(encoder, concept(folder), kept)
    picture(99).save(path)  # as many bytes
    os.utime(path, ns=(old, old))
    assert work(encoder, concept(folder), kept) == (1, 0)


def test_unchanged_files_are_not_read_again(folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.data.memo.SETTLED", 0)
    prepare(concept(folder), encoder, tmp_path / "cache")

    def refuse(source, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr("modules.data.plan.read", refuse)
    prepare(concept(folder), encoder, tmp_path / "cache")
    assert (encoder.images, len(encoder.texts)) == (6, 6)


def test_a_file_that_is_still_changing_is_not_remembered(folder, encoder, tmp_path):
    prepare(concept(folder), encoder, tmp_path / "cache")  # written within the last two seconds
    (memo,) = (tmp_path / "cache" / "files").glob("*.json")
    assert json.loads(memo.read_text())["files"] == {}


def test_a_spoilt_memo_only_costs_time(folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.data.memo.SETTLED", 0)
    prepare(concept(folder), encoder, tmp_path / "cache")
    (memo,) = (tmp_path / "cache" / "files").glob("*.json")
    for content in ("", "[]", '{"version": 1}', '{"version": 1, "root": 3, "files": 7}'):
        memo.write_text(content)
        assert work(encoder, concept(folder), tmp_path / "cache") == (0, 0)


# ------------------------------------------------------------- crashes and company


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


# ------------------------------------------------------------- upkeep


def test_damage_is_found_removed_and_made_good(folder, encoder, tmp_path):
    kept = tmp_path / "cache"
    prepare(concept(folder), encoder, kept)
    before = contents(kept)
    (shard,) = kept.glob("image-*/*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 0xFF
    shard.write_bytes(content)
    ((path, reason),) = verify(kept)
    assert path == shard
    assert "row 5 of 6" in reason
    verify(kept, remove=True)
    assert work(encoder, concept(folder), kept) == (6, 0)
    assert contents(kept) == before
    shard = next(kept.glob("text-*/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    assert "cannot be read" in verify(kept)[0][1]
    assert work(encoder, concept(folder), kept) == (0, 6)  # a torn shard never stops a run
    assert contents(kept) == before


def test_the_cap_removes_what_was_not_used_for_longest(folder, encoder, tmp_path):
    kept = tmp_path / "cache"
    for number, edge in enumerate(("32", "48", "64")):
        prepare(concept(folder), encoder, kept, resolution=edge)
        for path in kept.glob("*/*.safetensors"):
            if time.time() - path.stat().st_mtime < 100:
                os.utime(path, (1e9 + number, 1e9 + number))
    sizes = sorted((path.stat().st_mtime, path.stat().st_size) for path in kept.glob("image*/*s"))
    assert prune(kept, 0) == []
    total = sum(path.stat().st_size for path in kept.glob("*/*.safetensors"))
    assert len(prune(kept, total - 1)) == 1
    assert work(encoder, concept(folder), kept, resolution="48") == (0, 0)
    assert work(encoder, concept(folder), kept, resolution="64") == (0, 0)
    assert work(encoder, concept(folder), kept, resolution="32") == (6, 0)
    assert len(sizes) == 3


def test_a_run_never_loses_what_it_uses(folder, encoder, tmp_path):
    data = prepare(concept(folder), encoder, tmp_path / "cache", cache_limit=1e-9)
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 2
    other = prepare(concept(folder), encoder, tmp_path / "cache", "32", cache_limit=1e-9)
    assert next(Batches(data, 2, 1)).latents.shape[-1] == 8  # its shard is gone, its map is not
    assert next(Batches(other, 2, 1)).latents.shape[-1] == 4
    assert work(encoder, concept(folder), tmp_path / "cache", cache_limit=1e-9) == (6, 0)


def test_usage_counts(folder, encoder, tmp_path):
    prepare(concept(folder), encoder, tmp_path / "cache")
    image, text = usage(tmp_path / "cache")
    assert (image.name[:6], image.shards, image.rows) == ("image-", 1, 6)
    assert (text.name[:5], text.shards, text.rows) == ("text-", 1, 6)
    assert image.size > 6 * 3 * 8 * 8 * 4


def test_a_cache_travels_as_one_file(folder, encoder, tmp_path):
    prepare(concept(folder), encoder, tmp_path / "cache")
    assert export(tmp_path / "cache", tmp_path / "cache.zip") == 2
    assert take_in(tmp_path / "cache.zip", tmp_path / "there") == 2
    assert take_in(tmp_path / "cache.zip", tmp_path / "there") == 0
    assert contents(tmp_path / "there") == contents(tmp_path / "cache")
    assert work(encoder, concept(folder), tmp_path / "there") == (0, 0)


def test_a_zip_of_anything_else_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../../outside.safetensors", b"")
    with pytest.raises(ValueError, match="no part of a cache"):
        take_in(tmp_path / "bad.zip", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    (tmp_path / "no.zip").write_text("no")
    with pytest.raises(ValueError, match="no zip file"):
        take_in(tmp_path / "no.zip", tmp_path / "there")


def test_many_small_shards_become_few(tmp_path):
    space = Space(tmp_path / "image-x")
    rows = {bytes([i]) * 16: torch.full((1, 3), float(i)) for i in range(40)}
    with space.writing(lambda: False):
        for key, row in rows.items():
            space.write([key], {"latents": row})
        assert len(list(space.folder.glob("*.safetensors"))) == 40
    assert len(list(space.folder.glob("*.safetensors"))) == 1
    for current in (space, Space(space.folder)):
        shards = current.load([0])
        for key, row in rows.items():
            shard, index = current[key]
            assert torch.equal(shards[shard]["latents"][index], row[0])


def test_rows_of_other_shapes_come_into_other_shards(tmp_path):
    space = Space(tmp_path / "image-x")
    shelf = Shelf(space)
    for size in (3, 5, 3, 5):
        shelf.add([os.urandom(16)], {"latents": torch.zeros(1, size)})
    shelf.flush()
    assert len(shelf.written) == 2


def test_shards_have_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_BYTES", 4000)
    shelf = Shelf(Space(tmp_path / "image-x"))
    for _ in range(100):
        shelf.add([os.urandom(16)], {"latents": torch.zeros(1, 25)})
    shelf.flush()
    assert [len(keys_of(path)) for path in shelf.written] == [40, 40, 20]


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
