"""The embedded model draws what it is asked for, in the tools that people load it with."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from ot_notebook import assets
from scripts.pretrain_emoji.evaluate import draw, score, thumbnails

REFERENCES = Path(__file__).with_name("emoji_16px.png")


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(assets.model(), local_files_only=True)


@pytest.fixture(scope="module")
def references():
    """The 400 pictures that the model was taught, [N, 16, 16, 3]."""
    grid = np.asarray(Image.open(REFERENCES)).reshape(20, 16, 20, 16, 3)
    return grid.swapaxes(1, 2).reshape(400, 16, 16, 3)


def score_of(pipeline, references, count):
    names = list(json.loads((assets.model() / "classes.json").read_text("utf-8")).values())
    chosen = random.Random(0).sample(range(len(names)), count)
    drawn = draw(pipeline, [f"a {names[index]}" for index in chosen])
    return score(thumbnails(drawn), chosen, references)


def test_draws_the_right_emoji(pipeline, references):
    result = score_of(pipeline, references, count=16)
    assert result.top_1 >= 0.8, result


@pytest.mark.slow
def test_draws_nearly_all_of_128_emoji_right(pipeline, references):
    result = score_of(pipeline, references, count=128)
    print(result)  # noqa: T201
    assert result.top_1 >= 0.90, result
    assert result.top_5 >= 0.96, result


def test_folder_is_small():
    assert sum(path.stat().st_size for path in assets.model().rglob("*")) <= 16e6


def test_every_part_loads_in_single_precision_without_being_asked(pipeline):
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {str(part.dtype) for part in parts} == {"torch.float32"}


def test_files_name_no_place_of_their_making():
    for path in assets.model().rglob("*.json"):
        keys = json.loads(path.read_text("utf-8")).keys()
        assert not {"_name_or_path", "is_local"} & keys, path


def test_text_encoder_has_the_key_names_that_every_tool_reads():
    with safe_open(assets.model() / "text_encoder" / "model.safetensors", "np") as weights:
        assert all(key.startswith("text_model.") for key in weights.keys())  # noqa: SIM118


def test_tokenizer_is_the_same_from_its_old_files_and_its_new_one(pipeline, tmp_path):
    from transformers import CLIPTokenizer

    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((assets.model() / "tokenizer" / name).read_bytes())
    old = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("a fox, line art", "Hot-air  BALLOON 8", "Ünïcode ☃", ""):
        assert old(text).input_ids == pipeline.tokenizer(text).input_ids


def test_score_counts_nearer_emoji_and_forgives_mirror_images():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    mirrored = references[:, :, ::-1]
    right = score(mirrored, range(10), references)
    assert (right.top_1, right.top_5) == (1, 1)
    wrong = score(references[:2], [1, 1], references)
    assert wrong.ranks[0] >= 1
    assert wrong.ranks[1] == 0
    assert wrong.top_1 == 0.5


def test_thumbnails_are_means_of_cells():
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    picture[0, :2, :4] = 200  # the upper half of the first 4 x 4 cell
    small = thumbnails(picture)
    assert small[0, 0, 0].tolist() == [100, 100, 100]
    assert small.sum() == 300
    with pytest.raises(ValueError, match="60 x 60"):
        thumbnails(np.zeros((1, 60, 60, 3), np.uint8))
