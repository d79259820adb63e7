"""What the editor says of a cache is what a run with the same settings would have to encode."""

import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import ot_notebook as ot
from modules.config.paths import resolve
from modules.families import family_for
from modules.training.encoder import fill_cache
from modules.training.events import TaskProgress
from modules.training.method import method_for
from ot_notebook.services.concept_run import RunFacts
from ot_notebook.services.concept_store import ConceptStore


@pytest.fixture
def encode():
    """Fills the cache with the networks that settings name, and says how much there was to do."""
    loaded = {}

    def networks(config):
        family = family_for(config.model_type)
        parts = family.load(config)
        return family, parts, method_for(config, family, parts)

    def encode(config):
        text = config.text_encoder_layer_skip, config.text_encoder.train
        key = config.vae.model_name, config.force_circular_padding, *text
        if key not in loaded:
            loaded[key] = networks(config)
        said = []
        fill_cache(config, *loaded[key], said.append, lambda: False)
        return max((one.total for one in said if isinstance(one, TaskProgress)), default=0)

    return encode


@pytest.fixture
def other_vae(tmp_path, small):
    """The model's VAE, trained on a little."""
    folder = tmp_path / "other vae"
    shutil.copytree(f"{resolve(small.base_model_name)}/vae", folder)
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, weights)
    return str(folder)


@pytest.fixture
def judge(small, tmp_path):
    """Says how many images a cache has not, or not as they are, for a run."""
    store = ConceptStore(journal=tmp_path / "edits.db")

    def judge(config):
        store.follow_run(RunFacts.of(config))
        store.follow(config.concepts)
        store.rescan()
        store.look_into_cache()
        return [store.cache_state(row) for row in store.rows].count("stale")

    judge.store = store
    return judge


def changes(other_vae):
    concept = {"image.enable_fixed_flip": True}
    return {
        "learning rate": ({"learning_rate": 3e-4, "lora_rank": 4, "batch_size": 1}, {}, 0),
        "VAE": ({"vae.model_name": other_vae}, {}, 4),
        "pictures that tile": ({"force_circular_padding": True}, {}, 4),
        "layer skip": ({"text_encoder_layer_skip": 1}, {}, 4),
        "flip": ({}, concept, 4),
        "resolution": ({"resolution": "32"}, {}, 4),
        "masks": ({"masked_training": True}, {}, 1),
        "captions that a text encoder trains on": ({"text_encoder.train": True}, {}, 0),
    }


def test_the_badge_says_what_a_run_would_encode(small, judge, encode, other_vae):
    store = judge.store
    first = sorted(ot.assets.dataset("line art").glob("*.png"))[0].stem
    folder = resolve(small.concepts[0].path)
    Image.new("L", (64, 64), 255).save(f"{folder}/{first}-masklabel.png")
    assert (judge(small), store.stats()["cache"]) == (0, {})
    assert encode(small) == 8
    wrong = {}
    for name, (settings, concept, expected) in changes(other_vae).items():
        config = small.update(concepts=[small.concepts[0].update(**concept)], **settings)
        told = judge(config)
        again = encode(config)
        if (told, told > 0, judge(config)) != (expected, again > 0, 0):
            wrong[name] = (told, again, judge(config))
    assert wrong == {}
    assert judge(small) == 0  # what was there first is fresh still


def test_an_edit_of_a_file_shows_at_once(small, judge, encode):
    config = small.update(masked_training=True)
    encode(config)
    store = judge.store
    assert judge(config) == 0
    name = store.rows[0].name
    store.write_caption(0, "another caption")
    assert store.stats()["cache"] == {"stale": 1, "fresh": 3}
    store.undo()
    assert store.stats()["cache"] == {"fresh": 4}
    buffer = Image.new("L", (8, 8), 200)
    path = store.rows[0].mask_path.with_name("painted.dat")
    buffer.save(path, "PNG")
    store.write_mask(0, path.read_bytes())
    assert store.stats()["cache"] == {"stale": 1, "fresh": 3}
    assert store.items("").query("cache == 'stale'")["name"].tolist() == [name]
    encode(config)
    assert judge(config) == 0
    store.write_mask(0, None)
    assert judge(config) == 0  # nothing to encode where there is no mask
    store.rows[1].path.rename(store.rows[1].path.with_name("renamed.png"))
    store.rows[1].caption_path.rename(store.rows[1].path.with_name("renamed.txt"))
    assert judge(config) == 0
    Image.new("RGB", (64, 64), "red").save(store.rows[2].path)
    assert judge(config) == 1


def test_without_notes_the_encoders_that_came_last_count(small, judge, encode):
    encode(small)
    shutil.rmtree(f"{small.cache_dir}/encoders")
    assert judge(small.update(text_encoder_layer_skip=1)) == 0  # nothing says otherwise
    assert judge.store.stats()["cache"] == {"fresh": 4}


def test_a_run_without_a_cache_has_no_states(small, judge, encode):
    encode(small)
    judge(small.update(latent_caching=False))
    assert judge.store.stats()["cache"] == {}
