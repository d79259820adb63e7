"""The cache: shards, its cap, and what a person does with it."""

import os
import shutil
import time
import tracemalloc
import zipfile

import pytest
import torch
from cached import contents, work
from pictures import PoolingEncoder, concept, prepare

from modules.config import TrainConfig
from modules.data import Batches, cache, scan
from modules.data.cache import Shelf, Space, keys_of, prune, space_name
from modules.data.encoder_notes import Settings, note
from modules.data.freshness import Freshness
from modules.data.plan import Framing
from modules.data.upkeep import export, take_in, usage, verify


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


def test_hints_travel_too(folder, tmp_path):
    prepare(concept(folder), PoolingEncoder(hint="inpainting"), tmp_path / "cache")
    assert any(use.name.startswith("hint-") for use in usage(tmp_path / "cache"))
    export(tmp_path / "cache", tmp_path / "cache.zip")
    take_in(tmp_path / "cache.zip", tmp_path / "there")
    assert contents(tmp_path / "there") == contents(tmp_path / "cache")


def test_a_cache_that_travelled_is_judged_as_where_it_came_from(folder, encoder, tmp_path):
    here, there = tmp_path / "cache", tmp_path / "there"
    other = PoolingEncoder("other vae", "other clip")
    (tmp_path / "few").mkdir()
    for path in (path for path in folder.iterdir() if path.stem not in "01"):
        shutil.copy(path, tmp_path / "few")
    ours, theirs, nobodys = (
        Settings.of(TrainConfig().update(base_model_name=f"{name}/model"))
        for name in ("us", "them", "nobody")
    )
    runs = [(encoder, folder, ours), (other, tmp_path / "few", theirs)]
    for made_by, trained, settings in runs:
        prepare(concept(trained), made_by, here)
        image = space_name("image", made_by.image_identity)
        text = space_name("text", made_by.text_identity)
        note(here, settings, {"image": image, "text": text})
    export(here, tmp_path / "cache.zip")
    take_in(tmp_path / "cache.zip", there)
    export(there, tmp_path / "again.zip")
    take_in(tmp_path / "again.zip", tmp_path / "last")

    def states(kept, settings):
        framing = Framing.for_hint("none", "64", 8, True, masks=False, conditioning=False)
        told = Freshness([concept(folder)], framing, kept, settings)
        return sorted(told.state(item) for item in scan([concept(folder)], kept).items)

    for kept in (here, there, tmp_path / "last"):
        assert states(kept, ours) == ["fresh"] * 6
        assert states(kept, theirs) == ["fresh"] * 4 + ["stale"] * 2
    assert states(here, nobodys) == ["stale"] * 6
    # here the same model may have another address: a run would tell
    assert states(there, nobodys) == states(there, None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("../../outside.safetensors", ""),
        ("encoders/../../text-0123456789abcdef.txt", ""),
        ("encoders/text-0123456789abcdef.txt", "../../elsewhere"),
        ("text-0123456789abcdef.txt", ""),
    ],
)
def test_a_zip_of_anything_else_is_refused(tmp_path, name, content):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("encoders/text-0000000000000000.txt", "")
        archive.writestr(name, content)
    with pytest.raises(ValueError, match="no part of a cache"):
        take_in(tmp_path / "bad.zip", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    (tmp_path / "no.zip").write_text("no")
    with pytest.raises(ValueError, match="no zip file"):
        take_in(tmp_path / "no.zip", tmp_path / "there")


@pytest.mark.parametrize(
    "name",
    ["films/long.mp4", "encoders/long.mp4", "encoders/text-0123456789abcdef.txt"],
)
def test_a_zip_of_anything_else_is_not_unpacked(tmp_path, name):
    size = 32 << 20
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(size))
    tracemalloc.start()
    with pytest.raises(ValueError, match="no part of a cache"):
        take_in(tmp_path / "bad.zip", tmp_path / "there")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 10


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
