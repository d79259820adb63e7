"""What training sees: which images, how often, in which order, with what beside them."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from pictures import PoolingEncoder, concept, picture, prepare
from PIL import Image

from modules.config import ConfigError, Leftovers
from modules.config.enums import ConceptType
from modules.data import Batches


@pytest.fixture
def shapes(tmp_path):
    """Five square, three wide and one tall image."""
    path = tmp_path / "shapes"
    path.mkdir()
    sizes = [(64, 64)] * 5 + [(128, 64)] * 3 + [(32, 128)]
    for index, (width, height) in enumerate(sizes):
        picture(index, width, height).save(path / f"{index}.png")
        (path / f"{index}.txt").write_text(f"picture {index}")
    return path


def epoch_of(batches, epoch=None):
    """All batches of the epoch that comes next."""
    epoch = batches.epoch if epoch is None else epoch
    return list(islice(batches, batches.batches_in(epoch)))


def shown(found):
    return Counter(item for batch in found for item in batch.items)


def test_an_epoch_shows_every_image_in_batches_of_one_size(shapes, encoder, tmp_path):
    data = prepare(concept(shapes), encoder, tmp_path / "cache")
    batches = Batches(data, 2, 42)
    for _ in range(3):
        found = epoch_of(batches)
        assert set(shown(found)) == set(range(9))
        assert all(len(batch.items) == 2 for batch in found)
        assert batches.position == 0
        for batch in found:
            rows = {(data.items[i].height, data.items[i].width) for i in batch.items}
            assert len(rows) == 1
            assert batch.captions == [data.items[i].captions[0] for i in batch.items]
    assert batches.epoch == 3


def test_latents_and_text_are_those_of_the_image(shapes, encoder, tmp_path):
    data = prepare(concept(shapes), encoder, tmp_path / "cache")
    for batch in epoch_of(Batches(data, 2, 42)):
        expected = encoder.encode_text(batch.captions)["hidden"]
        assert torch.equal(batch.condition["hidden"], expected)
        for latents, index, size in zip(batch.latents, batch.items, batch.size, strict=True):
            height, width = size[4:].tolist()
            item = data.items[index]
            assert latents.shape == (3, height // 8, width // 8)
            assert size[:2].tolist() == [item.height, item.width]
            if (item.height, item.width) == (height, width):
                content = np.asarray(picture(index, width, height)).astype(np.float32)
                pixels = torch.from_numpy(content).permute(2, 0, 1)[None] / 127.5 - 1
                assert torch.allclose(latents, encoder.encode_images(pixels)[0], atol=1e-5)


def test_pad_fills_with_others_of_the_size_before_repeating(shapes, encoder, tmp_path):
    batches = Batches(prepare(concept(shapes), encoder, tmp_path / "cache"), 4, 42)
    assert [(p.images, p.batches, p.again) for p in batches.buckets()] == [
        (3, 1, 1),
        (5, 2, 3),
        (1, 1, 3),
    ]
    extra = Counter()
    for _ in range(10):
        counts = shown(epoch_of(batches))
        assert all(counts[i] in (1, 2) for i in range(5))
        extra.update({i: counts[i] - 1 for i in range(5)})
    assert max(extra.values()) - min(extra.values()) <= 3  # each in its turn


def test_rotate_shows_each_image_equally_often_in_the_end(shapes, encoder, tmp_path):
    data = prepare(concept(shapes), encoder, tmp_path / "cache")
    batches = Batches(data, 4, 42, Leftovers.ROTATE)
    total = sum(batches.batches_in(epoch) for epoch in range(16))
    counts = shown(islice(batches, total))
    assert sum(counts.values()) == total * 4
    for bucket in (range(5), range(5, 8), range(8, 9)):
        seen = [counts[i] for i in bucket]
        assert max(seen) - min(seen) <= 1
        assert max(seen) == pytest.approx(16, abs=4)
    assert [plan.waiting for plan in batches.buckets(0)] == [3, 1, 1]


def test_rotate_resumes_as_if_never_interrupted(shapes, encoder, tmp_path):
    data = prepare(concept(shapes), encoder, tmp_path / "cache")
    whole = [b.items for b in islice(Batches(data, 4, 1, Leftovers.ROTATE), 20)]
    for start in (1, 4, 11):
        first, second = (Batches(data, 4, 1, Leftovers.ROTATE) for _ in range(2))
        list(islice(first, start))
        second.load_state_dict(first.state_dict())
        assert [b.items for b in islice(second, 20 - start)] == whole[start:]


def test_drop_leaves_out_what_fills_no_batch(shapes, encoder, tmp_path):
    data = prepare(concept(shapes), encoder, tmp_path / "cache")
    batches = Batches(data, 4, 42, Leftovers.DROP)
    assert sum(shown(epoch_of(batches)).values()) == 4
    assert [plan.dropped for plan in batches.buckets()] == [3, 1, 1]
    with pytest.raises(ConfigError, match=r"Set it to 5 or less, or ot\.leftovers to PAD"):
        Batches(data, 6, 42, Leftovers.DROP)


@pytest.mark.parametrize("leftovers", [Leftovers.PAD, Leftovers.ROTATE])
def test_one_image_is_a_training_set(tmp_path, encoder, leftovers):
    picture(0).save(tmp_path / "0.png")
    batches = Batches(prepare(concept(tmp_path), encoder, tmp_path / "c"), 4, 1, leftovers)
    assert next(batches).items == (0, 0, 0, 0)


def test_the_seed_decides_the_order_and_every_epoch_has_another(folder, encoder, tmp_path):
    data = prepare(concept(folder), encoder, tmp_path / "cache")

    def order(seed):
        return [batch.items for batch in islice(Batches(data, 1, seed), 30)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    epochs = [tuple(order(1)[i : i + 6]) for i in range(0, 30, 6)]
    assert len(set(epochs)) == 5


def test_threads_and_cache_make_no_difference(folder, encoder, tmp_path):
    settings = {"image.enable_random_flip": True, "image_variations": 3}
    one = prepare(concept(folder, **settings), encoder, tmp_path / "one", threads=1)
    other = prepare(concept(folder, **settings), encoder, tmp_path / "two", threads=7)
    for a, b in islice(zip(Batches(one, 2, 5), Batches(other, 2, 5), strict=True), 20):
        assert a.items == b.items
        assert torch.equal(a.latents, b.latents)


def test_a_position_in_the_middle_of_an_epoch_is_exact(folder, encoder, tmp_path):
    data = prepare(concept(folder, image_variations=2), encoder, tmp_path / "cache")
    first = Batches(data, 2, 42)
    list(islice(first, 4))
    state = first.state_dict()
    assert (state["epoch"], state["position"]) == (1, 1)
    expected = [(b.items, b.latents) for b in islice(first, 7)]
    second = Batches(data, 2, 42)
    list(islice(second, 2))  # whatever it did before
    assert second.load_state_dict(state) == ""
    for (items, latents), batch in zip(expected, second, strict=False):
        assert items == batch.items
        assert torch.equal(latents, batch.latents)


def test_a_position_in_another_training_set_is_said(folder, encoder, tmp_path):
    first = Batches(prepare(concept(folder), encoder, tmp_path / "cache"), 2, 42)
    list(islice(first, 4))
    (folder / "0.png").unlink()
    second = Batches(prepare(concept(folder), encoder, tmp_path / "cache"), 2, 42)
    assert "epoch 2 begins anew" in second.load_state_dict(first.state_dict())
    assert (second.epoch, second.position) == (1, 0)
    assert len(next(second).items) == 2


def test_ranks_share_each_batch_without_overlap(folder, encoder, tmp_path):
    data = prepare(concept(folder), encoder, tmp_path / "cache")
    whole = Batches(data, 4, 7)
    ranks = [Batches(data, 2, 7, rank=rank, ranks=2) for rank in range(2)]
    for _ in range(5):
        assert next(whole).items == next(ranks[0]).items + next(ranks[1]).items


@pytest.mark.parametrize(
    ("settings", "per_epoch"),
    [
        ({"balancing": 2.0}, [12, 12]),
        ({"balancing": 0.5}, [3, 3]),
        ({"balancing": 1.5}, [9, 9]),
        ({"balancing": 4, "balancing_strategy": "SAMPLES"}, [4, 4]),
        ({"balancing": 9, "balancing_strategy": "SAMPLES"}, [9, 9]),
    ],
)
def test_balancing_counts_and_takes_turns(folder, encoder, tmp_path, settings, per_epoch):
    batches = Batches(prepare(concept(folder, **settings), encoder, tmp_path / "c"), 1, 3)
    assert [batches.batches_in(epoch) for epoch in (0, 1)] == per_epoch
    counts = shown(islice(batches, 6 * per_epoch[0]))
    assert set(counts.values()) == {per_epoch[0]}  # six epochs: each image as often


def test_nothing_to_show_is_refused(folder, encoder, tmp_path):
    data = prepare(concept(folder, balancing=0.1), encoder, tmp_path / "cache")
    with pytest.raises(ConfigError, match="Raise the balancing"):
        Batches(data, 1, 3)


def test_repeats_use_the_variations_one_after_the_other(folder, encoder, tmp_path):
    settings = {"image_variations": 3, "image.enable_random_rotate": True}
    settings |= {"image.random_rotate_max_angle": 90, "balancing": 3.0}
    data = prepare(concept(folder, **settings), encoder, tmp_path / "cache")
    seen = {}
    for batch in epoch_of(Batches(data, 1, 3)):
        seen.setdefault(batch.items[0], set()).add(batch.latents.numpy().tobytes())
    assert [len(variants) for variants in seen.values()] == [3] * 6


def test_several_resolutions_share_the_images(folder, encoder, tmp_path):
    settings = {"image_variations": 8}
    data = prepare(concept(folder, **settings), encoder, tmp_path / "c", resolution="32,64")
    assert [size.width for size in data.sizes] == [32, 64]
    batches = Batches(data, 1, 3, Leftovers.ROTATE)
    widths = Counter(batch.latents.shape[-1] for batch in islice(batches, 48))
    assert set(widths) == {4, 8}
    assert min(widths.values()) > 12


def test_a_concept_may_have_a_resolution_of_its_own(folder, encoder, tmp_path):
    own = {"image.enable_resolution_override": True, "image.resolution_override": "96x32"}
    data = prepare([concept(folder), concept(folder, **own)], encoder, tmp_path / "cache")
    assert set(data.sizes) == {(64, 64, 1), (32, 96, 1)}
    bad = own | {"image.resolution_override": "huge"}
    with pytest.raises(ConfigError, match=r"concepts\.1\.image\.resolution_override.*'huge'"):
        prepare([concept(folder), concept(folder, **bad)], encoder, tmp_path / "cache")


def test_weights_and_types_of_concepts(folder, encoder, tmp_path):
    concepts = [
        concept(folder, loss_weight=0.25),
        concept(folder, type=ConceptType.PRIOR_PREDICTION, seed=2),
        concept(folder, type=ConceptType.VALIDATION, seed=3),
    ]
    data = prepare(concepts, encoder, tmp_path / "cache")
    assert len(data) == 12
    for batch in epoch_of(Batches(data, 4, 1)):
        of = [data.items[i].concept for i in batch.items]
        assert batch.loss_weight.tolist() == [(0.25, 1.0)[c] for c in of]
        assert batch.prior.tolist() == [c == 1 for c in of]
    only = prepare(concepts, encoder, tmp_path / "cache", types=[ConceptType.VALIDATION])
    assert {item.concept for item in only.items} == {2}


def test_masks_follow_their_image(folder, encoder, tmp_path):
    mask = picture(0, mode="L").point(lambda level: 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "0-masklabel.png")
    settings = {"image.enable_fixed_flip": True}
    data = prepare(concept(folder, **settings), encoder, tmp_path / "cache", masks=True)
    for batch in epoch_of(Batches(data, 1, 1)):
        assert batch.mask.shape == (1, 1, 8, 8)
        if batch.items == (0,):
            assert (batch.mask[..., 4:] == 1).all()  # it was left, and is flipped
            assert (batch.mask[..., :4] == 0).all()
        else:
            assert (batch.mask == 1).all()
    without = prepare(concept(folder, **settings), encoder, tmp_path / "cache")
    assert next(Batches(without, 1, 1)).mask is None


def pixels_of(image):
    content = np.asarray(image).astype(np.float32)
    return torch.from_numpy(content).permute(2, 0, 1)[None] / 127.5 - 1


def test_an_inpainting_model_is_shown_what_its_mask_leaves(folder, tmp_path):
    encoder = PoolingEncoder(hint="inpainting")
    half = np.zeros((64, 64), np.uint8)
    half[:, 32:] = 200
    Image.fromarray(half).save(folder / "1-masklabel.png")
    settings = {"image.enable_fixed_flip": True}
    data = prepare(concept(folder, **settings), encoder, tmp_path / "cache")
    for batch in epoch_of(Batches(data, 2, 1)):
        for row, item in enumerate(batch.items):
            mask, kept = batch.hints["mask"][row], batch.hints["kept"][row]
            if item == 1:  # the mask turns with its image
                assert mask[0].tolist() == [[1.0] * 4 + [0.0] * 4] * 8
                assert torch.equal(kept[:, :, 4:], batch.latents[row, :, :, 4:])
            assert (kept[:, mask[0] == 1].abs() < 0.01).all()
            assert item == 1 or mask.all()
    plain = prepare(concept(folder), PoolingEncoder(), tmp_path / "cache")
    assert next(Batches(plain, 1, 1)).hints is None


def test_conditioning_images_are_shown_whole(folder, tmp_path):
    encoder = PoolingEncoder(hint="inpainting")
    for index in range(5):
        picture(100 + index).save(folder / f"{index}-condlabel.png")
    picture(5, mode="L").save(folder / "1-masklabel.png")
    colours = {"image.enable_fixed_hue": True, "image.random_hue_max_strength": 0.4}
    data = prepare(concept(folder, **colours), encoder, tmp_path / "cache", conditioning=True)
    assert [item.name for item in data.items] == [f"{i}.png" for i in range(5)]
    (problem,) = data.problems
    assert "5.png" in str(problem)
    assert "-condlabel.png" in str(problem)
    for batch in epoch_of(Batches(data, 1, 1)):
        pixels = pixels_of(picture(100 + batch.items[0]))
        assert torch.allclose(batch.hints["kept"], encoder.encode_images(pixels), atol=1e-5)
        assert batch.hints["mask"].all() == (batch.items[0] != 1)


def test_an_unreadable_mask_leaves_its_image_out(folder, tmp_path):
    (folder / "2-masklabel.png").write_bytes(b"no picture")
    data = prepare(concept(folder), PoolingEncoder(hint="inpainting"), tmp_path / "cache")
    assert [item.name for item in data.items] == [f"{i}.png" for i in (0, 1, 3, 4, 5)]
    assert any("2-masklabel.png" in str(problem) for problem in data.problems)


def test_captions_vary_with_every_epoch_while_a_text_encoder_trains(folder, encoder, tmp_path):
    (folder / "0.txt").write_text("a, b, c, d, e, f, g, h")
    encoder.text_identity = None
    settings = {"text.enable_tag_shuffling": True}
    batches = Batches(prepare(concept(folder, **settings), encoder, tmp_path / "c"), 6, 1)
    texts = set()
    for _ in range(8):
        batch = next(batches)
        assert batch.condition is None
        texts.add(batch.captions[batch.items.index(0)])
    assert len(texts) > 5
    assert encoder.texts == []


def test_cached_captions_repeat_their_variations(folder, encoder, tmp_path):
    (folder / "0.txt").write_text("a, b, c, d, e, f, g, h")
    settings = {"text.enable_tag_shuffling": True, "text_variations": 3}
    batches = Batches(prepare(concept(folder, **settings), encoder, tmp_path / "c"), 6, 1)
    texts = [b.captions[b.items.index(0)] for b in islice(batches, 6)]
    assert texts[:3] == texts[3:]
    assert len(set(texts)) == 3


def test_alternatives_that_a_cache_would_never_use_are_said(folder, encoder, tmp_path):
    (folder / "0.txt").write_text("a fox\nan animal")
    (problem,) = prepare(concept(folder), encoder, tmp_path / "cache").problems
    assert "0.png" in str(problem)
    assert "text_variations" in str(problem)
    assert prepare(concept(folder, text_variations=2), encoder, tmp_path / "c").problems == ()


def test_caption_settings_that_cannot_work_name_their_concept(folder, encoder, tmp_path):
    with pytest.raises(ConfigError, match=r"concepts\.1\.ot\.caption_template"):
        prepare(
            [concept(folder), concept(folder, **{"ot.caption_template": "x"})], encoder, tmp_path
        )
