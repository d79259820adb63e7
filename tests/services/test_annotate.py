"""Captions and masks by a model: modes, progress and stop, and real classes with random weights."""

import json

import numpy as np
import pytest
from PIL import Image

from modules.config import ConceptConfig
from ot_notebook.services import annotate
from ot_notebook.services.concept_store import ConceptStore


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(20):
        colour = "red" if number % 2 else "blue"
        Image.new("RGB", (24, 16), colour).save(folder / f"{number:02}.png")
    (folder / "00.txt").write_text("Blue, square")
    return ConceptStore([ConceptConfig(path=str(folder))], journal=tmp_path / "edits.db")


def colours(images):
    """Names the colour of a picture: simple, but a captioner."""
    return ["red" if image.getpixel((0, 0))[0] > 128 else "blue, flat" for image in images]


def left_half(images):
    masks = []
    for image in images:
        mask = np.zeros((image.height, image.width), np.float32)
        mask[:, : image.width // 2] = 1
        masks.append(mask)
    return masks


@pytest.mark.parametrize(
    ("mode", "first"),
    [("replace", "blue, flat"), ("fill", "Blue, square"), ("add", "Blue, square, flat")],
)
def test_captions_are_joined_as_the_mode_says(store, mode, first):
    told = []
    report = lambda run: told.append((run.done, run.total))  # noqa: E731
    run = annotate.caption(store, colours, mode=mode, report=report).wait()
    assert store.caption(0) == first
    assert store.caption(1) == "red"
    assert told[0] == (0, run.total)
    assert told[-1] == (run.total, run.total) == (20 - (mode == "fill"),) * 2
    store.undo()
    assert (store.caption(0), store.caption(1)) == ("Blue, square", "")


@pytest.mark.parametrize(
    ("mode", "old", "expected"),
    [
        ("replace", [0, 0.5, 1], [1, 1, 0]),
        ("fill", [0, 0.5, 1], [0, 0.5, 1]),
        ("add", [0, 0.5, 1], [1, 1, 1]),
        ("subtract", [0, 0.5, 1], [0, 0, 1]),
        ("blend", [0, 0.5, 1], [0.5, 0.75, 0.5]),
        ("fill", None, [1, 1, 0]),
        ("add", None, [1, 1, 0]),
        ("subtract", None, [0, 0, 1]),
    ],
)
def test_masks_are_combined_as_the_mode_says(mode, old, expected):
    old = None if old is None else np.array([old], np.float32)
    new = np.array([[1, 1, 0]], np.float32)
    assert annotate.combine(old, new, mode).tolist() == [expected]


def test_masks_are_written_and_undone(store):
    annotate.mask(store, left_half, where=[3]).wait()
    row = store.rows[3]
    with Image.open(row.mask_path) as mask:
        assert (mask.getpixel((2, 2)), mask.getpixel((20, 2)), mask.size) == (255, 0, (24, 16))
    annotate.mask(store, left_half, where=[3], mode="subtract").wait()
    assert not np.asarray(Image.open(row.mask_path)).any()
    store.undo()
    store.undo()
    assert not row.mask_path.exists()


def test_a_stopped_run_keeps_what_it_did(store):
    run = annotate.caption(store, colours, report=lambda run: run.done and run.stop()).wait()
    assert run.done == annotate.BATCH
    assert store.stats()["captioned"] == annotate.BATCH + 1


def test_a_failing_model_is_told_and_its_work_kept(store):
    def fails_later(images, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("out of memory")
        return colours(images)

    with pytest.raises(RuntimeError, match="out of memory"):
        annotate.caption(store, fails_later).wait()
    assert store.stats()["captioned"] == annotate.BATCH + 1


def test_a_bad_mode_is_refused(store):
    with pytest.raises(ValueError, match="mode is 'merge', but must be one of replace, fill, add"):
        annotate.caption(store, colours, mode="merge")


# real classes, random weights --------------------------------------------------------------------


def test_blip_captions(tmp_path, store):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "blip"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "fox"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer.from_pretrained(folder, bos_token="[DEC]")
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 5,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16
    )
    model = transformers.BlipForConditionalGeneration(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[words.index("fox")] = 50  # its one idea
    model.save_pretrained(folder)
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(folder)
    captioner = annotate.TransformersCaptioner(str(folder), max_tokens=6)
    annotate.caption(store, captioner, where=[1, 2]).wait()
    assert store.caption(1).startswith("fox fox")
    assert set(store.caption(2).split()) == {"fox"}
    assert store.caption(3) == ""


def test_a_model_that_says_nothing_takes_no_caption_away(store):
    annotate.caption(store, lambda images: [" "] * len(images), mode="replace").wait()
    assert store.caption(0) == "Blue, square"
    assert store.can() == ("", "")


def test_clipseg_masks(tmp_path, store):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "clipseg"
    folder.mkdir()
    letters = [
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"{one}</w>" for one in "abcdefghijklmnopqrstuvwxyz"),
    ]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3}
    text = {**small, "num_attention_heads": 2, "vocab_size": len(words), "eos_token_id": 53}
    vision = {**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=16,
        extract_layers=[1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        conditional_layer=0,
    )
    transformers.CLIPSegForImageSegmentation(config).save_pretrained(folder)
    images = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    transformers.CLIPSegProcessor(images, tokenizer).save_pretrained(folder)
    masker = annotate.ClipSegMasker(str(folder), "a fox", threshold=None)
    annotate.mask(store, masker, where=[0, 1]).wait()
    with Image.open(store.rows[0].mask_path) as mask:
        assert (mask.size, mask.mode) == ((24, 16), "L")
        assert 0 < np.asarray(mask).mean() < 255
    sharp = annotate.ClipSegMasker(str(folder), "a fox")
    annotate.mask(store, sharp, where=[0], mode="replace").wait()
    with Image.open(store.rows[0].mask_path) as mask:
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
