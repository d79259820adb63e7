"""Every old layout loads: a stored file of each version, and what it means today.

The expected values were read off OneTrainer's own migrations, apart from those marked "better".
"""

import json
from pathlib import Path

import pytest

from modules.config import ConfigError, TrainConfig, load_concepts
from modules.config.migrations import MIGRATIONS, VERSION

FILES = Path(__file__).parent / "files"

EXPECTED = {
    0: {
        "optimizer.optimizer": "DADAPT_ADAM",  # better: the old spelling is known
        "optimizer.beta1": 0.8,
        "optimizer.weight_decay": 0.02,
        "optimizer.growth_rate": float("inf"),
        "optimizer_defaults.DADAPT_ADAM.beta1": 0.8,
        "unet.stop_training_after": 7,
        "unet.stop_training_after_unit": "EPOCH",
        "unet.learning_rate": 0.0001,
        "text_encoder.train": False,
        "vae.model_name": "models/vae.safetensors",
        "vae.weight_dtype": "FLOAT_16",
        "attention_mechanism": "SDP",
        "output_model_format": "LEGACY_LORA",  # better: a .ckpt is no longer written
        "loss_weight_fn": "MIN_SNR_GAMMA",
        "loss_weight_strength": 5.0,
        "timestep_distribution": "UNIFORM",
        "unet.gradient_checkpointing": True,
        "save_every": 2,
        "save_every_unit": "EPOCH",
    },
    1: {
        "optimizer.optimizer": "ADAFACTOR",
        "prior.model_name": "warp/prior",
        "prior.learning_rate": 0.00002,
        "unet.weight_dtype": "BFLOAT_16",
        "decoder_vqgan.weight_dtype": "BFLOAT_16",
        "embedding.token_count": 3,  # better: OneTrainer loses the embedding
        "embedding.initial_embedding_text": "blue cat",
        "embedding.model_name": "old/cat.pt",
        "output_model_format": "SAFETENSORS",
        "timestep_distribution": "SIGMOID",
        "noising_weight": 1.0,
        "noising_bias": 0.25,
        "unet.gradient_checkpointing": False,
    },
    2: {
        "loss_weight_fn": "P2",
        "loss_weight_strength": 1.0,
        "prior.weight_dtype": "BFLOAT_16",
        "transformer.weight_dtype": "FLOAT_32",  # a cascade's prior stays a prior
        "text_encoder.weight_dtype": "FLOAT_16",
    },
    3: {
        "loss_weight_strength": 4.0,
        "timestep_distribution": "SIGMOID",
        "noising_weight": 2.0,
        "noising_bias": -0.25,
    },
    4: {
        "timestep_distribution": "SIGMOID",
        "noising_bias": 0.1,
        "unet.gradient_checkpointing": False,
        "text_encoder.gradient_checkpointing": False,
        "vae.gradient_checkpointing": False,  # better: a part that the file lacks keeps the wish
    },
    5: {
        "unet.gradient_checkpointing": True,
        "unet.activation_offloading": True,
        "unet.offload_fraction": 0.4,
        "async_offloading": False,
        "save_every": 250,
        "save_every_unit": "STEP",
    },
    6: {
        "layer_filter_preset": "full",
        "transformer.weight_dtype": "NFLOAT_4",
        "transformer.attention_mask": True,
        "save_every": 3,
    },
    7: {"layer_filter": "attn", "layer_filter_preset": "attn-only"},
    8: {
        "layer_filter": "single_transformer",
        "layer_filter_preset": "custom",
        "transformer.guidance_scale": 2.0,
        "transformer.weight_dtype": "FLOAT_8",
    },
    9: {
        "transformer.weight_dtype": "BFLOAT_16",
        "text_encoder.weight_dtype": "FLOAT_8",
        "output_model_format": "LEGACY_SAFETENSORS",
    },
    10: {
        "output_model_format": "LEGACY_LORA",
        "unet.gradient_checkpointing": False,
        "unet.offload_fraction": 0.0,
        "async_offloading": True,
    },
    11: {
        "output_model_format": "KOHYA_LORA",
        "unet.offload_fraction": 0.25,
        "unet.stop_training_after": 0,
        "optimizer.d_coef": 0.5,
        "optimizer.slice_p": 11,
        "concepts.0.name": "cats",
        "concepts.0.text.prompt_source": "filename",
        "samples.0.cfg_scale": 7.5,
        "cloud.name": "mine",
    },
}


def at(config, path):
    value = config.to_dict()
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return float("inf") if value == "inf" else value


@pytest.mark.parametrize("version", range(VERSION + 1))
def test_a_file_of_each_version_loads(version):
    config, _ = TrainConfig.load(FILES / f"v{version}.json")
    assert {path: at(config, path) for path in EXPECTED[version]} == EXPECTED[version]
    assert config.base_model_name == "models/old.safetensors"
    assert (config.batch_size, config.epochs) == (2, 12)


@pytest.mark.parametrize("version", range(VERSION + 1))
def test_what_was_loaded_once_loads_again_as_it_is(version, tmp_path):
    config, _ = TrainConfig.load(FILES / f"v{version}.json")
    config.save(tmp_path / "again.json")
    again, warnings = TrainConfig.load(tmp_path / "again.json")
    assert again == config
    assert all("old versions" in str(warning) for warning in warnings)
    assert json.loads((tmp_path / "again.json").read_text())["__version"] == VERSION


@pytest.mark.parametrize("version", range(VERSION))
def test_a_migration_changes_nothing_of_what_it_is_given(version):
    data = json.loads((FILES / f"v{version}.json").read_text())
    before = json.dumps(data)
    MIGRATIONS[version](data)
    assert json.dumps(data) == before


@pytest.mark.parametrize("version", range(VERSION))
def test_a_migration_needs_no_key(version):
    config, _ = TrainConfig.load({"__version": version, "epochs": 3})
    assert config.epochs == 3


def test_words_that_were_given_up_are_reported():
    _, warnings = TrainConfig.load(FILES / "v0.json")
    text = "\n".join(map(str, warnings))
    assert "attention_mechanism is XFORMERS, which was given up. SDP takes its place." in text
    assert "optimizer is DAdaptAdam, which was given up. DADAPT_ADAM takes its place." in text


def test_a_newer_version_loads_with_a_warning():
    config, warnings = TrainConfig.load({"__version": 12, "epochs": 3})
    assert config.epochs == 3
    assert "The file is of version 12, newer than the 11 known here." in str(warnings[0])


@pytest.mark.parametrize("version", ["2", True, None, [], 1.5])
def test_a_version_that_is_no_number_is_an_error(version):
    if version is None:  # a file without a version is today's
        assert TrainConfig.load({"__version": None})[0] == TrainConfig()
        return
    with pytest.raises(ConfigError, match=r"__version is .*, but must be a number"):
        TrainConfig.load({"__version": version})


def test_old_concepts_load():
    concepts, warnings = load_concepts(FILES / "concepts_v0.json")
    assert warnings == []
    assert [concept.balancing for concept in concepts] == [4.0, 2.0, 1.0]
    assert [c.type.value for c in concepts] == ["STANDARD", "VALIDATION", "PRIOR_PREDICTION"]
