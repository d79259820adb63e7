"""Without a cache: every batch is read and encoded when it comes, and equals what a cache holds."""

from itertools import islice

import pytest
import torch
from pictures import PoolingEncoder, concept, picture, prepare

from modules.config import ConfigError
from modules.data import Batches

COLOURFUL = {
    "image.enable_random_flip": True,
    "image.enable_random_hue": True,
    "image.random_hue_max_strength": 0.3,
    "image.enable_random_rotate": True,
    "image.random_rotate_max_angle": 20.0,
}


@pytest.fixture
def mixed(folder):
    """Six images of two shapes, one with a mask."""
    picture(7, 128, 64).save(folder / "2.png")
    picture(9, mode="L").save(folder / "1-masklabel.png")
    return folder


def live(path, hint="none", **settings):
    concepts = concept(path, **settings.pop("concept", {}))
    return prepare(concepts, PoolingEncoder(text=None, hint=hint), None, **settings)


@pytest.mark.parametrize("hint", ["none", "inpainting"])
@pytest.mark.parametrize("shrinks", [False, True])
def test_a_batch_equals_that_of_a_cache(mixed, tmp_path, hint, shrinks):
    settings = {
        **COLOURFUL,
        "image.enable_random_mask_rotate_crop": shrinks,
        "image.enable_random_circular_mask_shrink": shrinks,
    }
    encoder = PoolingEncoder(text=None, hint=hint)
    held = prepare(concept(mixed, **settings), encoder, tmp_path / "cache", masks=True)
    fresh = live(mixed, hint, concept=settings, masks=True)
    count = Batches(held, 2, 3).batches_in(0)
    assert count == 4
    for one, other in islice(zip(Batches(held, 2, 3), Batches(fresh, 2, 3), strict=True), count):
        assert one.items == other.items
        assert one.captions == other.captions
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.size, other.size)
        assert (one.hints is None) == (hint == "none")
        assert all(torch.equal(one.hints[name], other.hints[name]) for name in one.hints or {})


def test_conditioning_images_are_read_anew_too(folder):
    for index in range(6):
        picture(100 + index).save(folder / f"{index}-condlabel.png")
    batch = next(Batches(live(folder, "inpainting", conditioning=True), 6, 1))
    assert len({float(kept.sum()) for kept in batch.hints["kept"]}) == 6


def test_every_look_is_drawn_afresh(folder):
    """A cache of one variation repeats itself; without one no look is like the last."""
    batches = Batches(live(folder, concept=COLOURFUL), 6, 1)
    looks = []
    for _ in range(5):
        batch = next(batches)
        looks.append(batch.latents[batch.items.index(0)])
    assert all(not torch.equal(a, b) for i, a in enumerate(looks) for b in looks[:i])


def test_it_goes_on_exactly_from_a_position(mixed):
    straight = list(islice(Batches(live(mixed, concept=COLOURFUL), 2, 1), 11))
    begun = Batches(live(mixed, concept=COLOURFUL), 2, 1)
    for _ in range(5):
        next(begun)
    resumed = Batches(live(mixed, concept=COLOURFUL), 2, 1)
    assert resumed.load_state_dict(begun.state_dict()) == ""
    for one, other in zip(straight[5:], resumed, strict=False):
        assert one.items == other.items
        assert torch.equal(one.latents, other.latents)


def test_what_vanishes_or_changes_is_left_out_and_said_once(folder):
    said = []
    batches = Batches(live(folder, warn=said.append), 3, 1)
    (folder / "3.png").unlink()
    picture(70).save(folder / "4.png")
    seen = [item for batch in islice(batches, 6) for item in batch.items]
    assert sorted(set(seen)) == [0, 1, 2, 5]
    words = sorted(map(str, said))
    assert len(words) == 2
    assert "3.png: cannot be decoded (No such file or directory)" in words[0]
    assert "4.png: changed while it was read, and is left out." in words[1]


def test_a_set_of_which_nothing_is_left_ends_the_run(folder):
    batches = Batches(live(folder), 2, 1)
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(ConfigError, match="None of the images can be read any more"):
        next(batches)
