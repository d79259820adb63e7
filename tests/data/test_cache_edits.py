"""The cache: what is encoded again after which change."""

import json
import os
import shutil
from itertools import islice

import pytest
import torch
from cached import work
from pictures import PoolingEncoder, concept, picture, prepare

from modules.data import Batches


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


def test_the_remains_of_a_kill_are_swept_from_the_memo(folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.data.memo.SETTLED", 0)
    prepare(concept(folder), encoder, tmp_path / "cache")
    (tmp_path / "cache" / "files" / ".abc.json.part").write_text("half of")
    prepare(concept(folder), encoder, tmp_path / "cache")
    assert list((tmp_path / "cache" / "files").glob(".*.part")) == []


def test_a_spoilt_memo_only_costs_time(folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.data.memo.SETTLED", 0)
    prepare(concept(folder), encoder, tmp_path / "cache")
    (memo,) = (tmp_path / "cache" / "files").glob("*.json")
    for content in ("", "[]", '{"version": 1}', '{"version": 1, "root": 3, "files": 7}'):
        memo.write_text(content)
        assert work(encoder, concept(folder), tmp_path / "cache") == (0, 0)
