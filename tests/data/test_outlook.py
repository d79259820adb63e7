"""What is foreseen of an epoch is what happens; what the cache is said to have, it has."""

import os

import pytest
from pictures import concept, picture, prepare

from modules.config.enums import Leftovers
from modules.data import Batches, scan
from modules.data.freshness import Freshness
from modules.data.outlook import outlook
from modules.data.plan import Framing

FRAMING = Framing("64", 8, True)


@pytest.fixture
def mixed(folder):
    for index, size in enumerate([(128, 64), (130, 64), (64, 200), (30, 60)]):
        picture(70 + index, *size).save(folder / f"mixed{index}.png")
    return folder


@pytest.mark.parametrize("leftovers", list(Leftovers))
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_the_outlook_is_what_an_epoch_does(mixed, encoder, tmp_path, leftovers, batch_size):
    other = tmp_path / "other"
    other.mkdir()
    for index in range(3):
        picture(90 + index, 64, 128).save(other / f"{index}.png")
    concepts = [concept(mixed, balancing=1.5), concept(other, balancing=2.0, seed=4)]
    foreseen = outlook(scan(concepts), FRAMING, batch_size, 42, leftovers)
    data = prepare(concepts, encoder, tmp_path / "cache")
    assert [one.plan for one in foreseen] == Batches(data, batch_size, 42, leftovers).buckets(0)
    assert [one.bucket for one in foreseen] == list(data.sizes)
    assert sum(one.images for one in foreseen) == len(data) == 13
    assert foreseen[0].plan.images > 0


def test_the_outlook_says_what_crops_keep(mixed):
    by_size = {
        str(one.bucket): one for one in outlook(scan([concept(mixed)]), FRAMING, 1, 0, "PAD")
    }
    square, lying = by_size["64x64"], by_size["88x48"]
    assert (square.images, square.smaller, square.kept) == (6, 0, 1.0)
    # 128 x 64 covers 88 x 48 at 3/4: 96 x 48, of which 88 stay; 130 x 64 a little less
    assert lying.images == 2
    assert lying.kept == pytest.approx((88 / 96 + 88 / 97.5) / 2)
    assert by_size["48x88"].smaller == 1


def test_an_empty_set_has_no_outlook(tmp_path):
    (tmp_path / "none").mkdir()
    assert outlook(scan([concept(tmp_path / "none")]), FRAMING, 1, 0, Leftovers.PAD) == []


def states(folder, kept, **settings):
    concepts = [concept(folder, **settings)]
    found = scan(concepts, kept)
    look = Freshness(concepts, FRAMING, kept)
    told = {item.name: look.state(item) for item in found.items}
    look.save()
    return told


def test_states_follow_what_the_cache_holds(folder, encoder, tmp_path):
    kept = tmp_path / "cache"
    assert set(states(folder, kept).values()) == {"new"}
    prepare(concept(folder), encoder, kept)
    assert set(states(folder, kept).values()) == {"fresh"}
    (folder / "0.txt").write_text("another caption")
    picture(77).save(folder / "1.png")
    picture(78).save(folder / "new.png")
    (folder / "new.txt").write_text("a new one")
    told = states(folder, kept)
    assert (told["0.png"], told["1.png"], told["new.png"]) == ("stale", "stale", "new")
    assert {told[f"{number}.png"] for number in range(2, 6)} == {"fresh"}
    assert set(states(folder, kept, **{"image.enable_fixed_flip": True}).values()) == {
        "stale",
        "new",
    }
    prepare(concept(folder), encoder, kept)
    assert set(states(folder, kept).values()) == {"fresh"}


def test_the_encoder_that_was_used_last_counts(folder, encoder, tmp_path):
    kept = tmp_path / "cache"
    prepare(concept(folder), encoder, kept)
    for path in kept.glob("*/*.safetensors"):
        os.utime(path, (1e9, 1e9))
    encoder.image_identity = "another vae"
    (folder / "5.png").unlink()
    prepare(concept(folder), encoder, kept)
    picture(5).save(folder / "5.png")  # which the first encoder has seen
    assert states(folder, kept)["5.png"] == "stale"
    assert states(folder, kept)["4.png"] == "fresh"


def test_a_file_that_is_gone_is_an_error(folder, encoder, tmp_path):
    kept = tmp_path / "cache"
    prepare(concept(folder), encoder, kept)
    found = scan([concept(folder)], kept)
    (folder / "2.png").unlink()
    look = Freshness([concept(folder)], FRAMING, kept)
    assert look.state(found.items[2]) == "error"
