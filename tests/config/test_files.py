"""Configs, presets, concepts and samples from files and back, whoever wrote them."""

import json
import os
from pathlib import Path

import pytest

from modules.config import ConfigError, TrainConfig, TrainOptimizerConfig, settings
from modules.config.files import load_concepts, load_samples

FILES = Path(__file__).parent / "files"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """No file of the developer's own folder takes part."""
    monkeypatch.chdir(tmp_path)


def write(path, data):
    Path(path).write_text(json.dumps(data), encoding="utf-8")
    return path


def load_error(source):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(source)
    return str(caught.value)


def test_an_empty_dict_is_the_default_config():
    assert TrainConfig.load({}) == (TrainConfig(), [])


def test_a_saved_config_is_plain_onetrainer_json():
    TrainConfig().update(**{"optimizer.optimizer": "PRODIGY"}).save("a.json")
    data = json.loads(Path("a.json").read_text())
    assert next(iter(data)) == "__version"
    assert (data["__version"], data["unet"]["__version"]) == (11, 0)
    assert data["optimizer"]["growth_rate"] == "inf"
    assert data["train_dtype"] == "FLOAT_16"
    assert "secrets" not in data


def test_a_part_that_is_given_in_part_keeps_its_own_defaults():
    config, _ = TrainConfig.load({"text_encoder": {"train": False}, "unet": {"train": True}})
    assert config.text_encoder.stop_training_after == 30
    assert config.unet.stop_training_after == 0
    assert config.unconditional_transformer.train is False


@pytest.mark.parametrize("name", ["#my preset.json", "my preset.json"])
def test_a_preset_loads_with_and_without_its_sign(name):
    data = {"model_type": "STABLE_DIFFUSION_15", "prior": {}, "output_model_format": "SAFETENSORS"}
    config, warnings = TrainConfig.load(write(name, {**data, "__description": "Mine"}))
    assert config.output_model_format.value == "SAFETENSORS"  # no migration ran
    assert warnings == []
    assert "__description" not in config.to_dict()


def test_a_label_without_its_filter_gets_the_filter():
    preset = {"training_method": "LORA", "layer_filter_preset": "attn-mlp"}
    config, warnings = TrainConfig.load(preset)
    assert (config.layer_filter, warnings) == ("attentions", [])


def test_a_filter_that_is_written_out_wins_over_its_label_and_is_reported():
    data = {"layer_filter_preset": "attn-mlp", "layer_filter": "down_blocks"}
    config, (warning,) = TrainConfig.load(data)
    assert (config.layer_filter, config.layer_filter_preset) == ("down_blocks", "custom")
    assert "layer_filter is 'down_blocks', which is not what layer_filter_preset 'attn-mlp'" in str(
        warning
    )


def test_a_filter_read_otherwise_than_its_label_says_is_ones_own():
    data = {"layer_filter_preset": "attn-mlp", "layer_filter": "attentions"}
    assert TrainConfig.load(data)[0].layer_filter_preset == "attn-mlp"
    config, _ = TrainConfig.load({**data, "layer_filter_regex": True})
    assert (config.layer_filter_preset, config.layer_filter_regex) == ("custom", True)
    z_image = {"model_type": "Z_IMAGE", "layer_filter_preset": "attn-only"}
    config, _ = TrainConfig.load(z_image)
    again, _ = TrainConfig.load({**z_image, "layer_filter": config.layer_filter})
    assert again.layer_filter_regex  # as its label says, where the file does not


def test_an_optimizer_in_a_preset_is_completed_from_its_remembered_and_usual_values():
    data = {
        "optimizer": {"optimizer": "ADAFACTOR", "clip_threshold": None, "decay_rate": -0.7},
        "optimizer_defaults": {
            "ADAFACTOR": {"fused_back_pass": True, "decay_rate": -0.5, "eps2": 0.5}
        },
    }
    data["optimizer"]["eps2"] = None
    optimizer = TrainConfig.load(data)[0].optimizer
    assert optimizer.fused_back_pass  # remembered
    assert optimizer.clip_threshold == 1.0  # usual
    assert optimizer.decay_rate == -0.7  # stated
    assert optimizer.eps2 == 0.5  # remembered, as null states nothing
    assert optimizer == TrainOptimizerConfig(
        optimizer="ADAFACTOR", fused_back_pass=True, decay_rate=-0.7, eps2=0.5
    )


def test_unknown_keys_are_kept_and_reported_with_the_nearest_name():
    data = {"learning_rat": 1, "unet": {"lerning_rate": 2}, "from_the_future": {"a": [1, {"b": 2}]}}
    config, warnings = TrainConfig.load({**data, "concepts": [{"path": "a", "pth": "b"}]})
    assert [str(warning) for warning in warnings] == [
        "learning_rat: learning_rat is no setting. It is kept. Did you mean learning_rate?",
        "from_the_future: from_the_future is no setting. It is kept. "
        "See docs/options.md for the names.",
        "concepts.0.pth: concepts.0.pth is no setting. It is kept. Did you mean path?",
        "unet.lerning_rate: unet.lerning_rate is no setting. It is kept. "
        "Did you mean unet.learning_rate?",
    ]
    config.update(epochs=3).save("kept.json")
    kept = json.loads(Path("kept.json").read_text())
    assert kept["from_the_future"] == {"a": [1, {"b": 2}]}
    assert kept["unet"]["lerning_rate"] == 2
    assert kept["concepts"][0]["pth"] == "b"
    assert kept["epochs"] == 3


def test_an_update_beside_unknown_keys_still_refuses_misspelt_names():
    config, _ = TrainConfig.load({"unet": {"mystery": 1}})
    assert config.update(**{"unet.train": False}).unet.model_extra == {"mystery": 1}
    with pytest.raises(ConfigError, match=r"unet\.trian is no setting"):
        config.update(**{"unet.trian": False})


def test_concepts_and_samples_come_from_the_files_that_the_config_names():
    write("mine.json", [{"path": "cats", "repeats": 3}])
    write("drawn.json", [{"prompt": "a cat"}])
    data = {
        "model_type": "STABLE_DIFFUSION_XL_10_BASE",
        "concept_file_name": "mine.json",
        "sample_definition_file_name": "drawn.json",
    }
    config, warnings = TrainConfig.load(data)
    assert warnings == []
    assert (config.concepts[0].path, config.concepts[0].balancing) == ("cats", 3)
    assert (config.samples[0].prompt, config.samples[0].width) == ("a cat", 1024)


def test_such_files_are_found_beside_the_config_too():
    Path("deep").mkdir()
    write("deep/mine.json", [{"path": "cats"}])
    write("deep/config.json", {"concept_file_name": "mine.json"})
    assert TrainConfig.load("deep/config.json")[0].concepts[0].path == "cats"


def test_embedded_concepts_win_over_the_file_and_an_empty_list_is_embedded():
    write("mine.json", [{"path": "cats"}])
    config, _ = TrainConfig.load({"concept_file_name": "mine.json", "concepts": [], "samples": []})
    assert (config.concepts, config.samples) == ((), ())


def test_a_bad_value_in_a_concepts_file_is_named_by_its_place():
    write("mine.json", [{"path": "a"}, {"path": "b", "balancing": "often"}])
    assert load_error({"concept_file_name": "mine.json"}) == (
        "concepts.1.balancing: balancing is 'often', but must be a number. Give a number."
    )


def test_a_list_given_as_a_config_is_explained():
    path = write("concepts.json", [{"path": "a"}])
    assert "holds a list, as files of concepts or samples do, not a config" in load_error(path)


def test_an_object_given_as_concepts_is_explained():
    write("mine.json", {"path": "a"})
    assert "mine.json holds no list of concepts" in load_error({"concept_file_name": "mine.json"})


def test_a_missing_file_is_an_error_that_names_it():
    assert load_error("nowhere.json") == "nowhere.json does not exist. Check the path."
    assert "cannot be read: Is a directory" in load_error(os.curdir)


def test_files_of_concepts_and_samples_load_alone():
    concepts, _ = load_concepts(FILES / "concepts_v0.json")
    samples, _ = load_samples(FILES / "samples.json", {"width": 640})
    assert [concept.seed for concept in concepts] == [11, 12, 13]
    assert [(s.width, s.prompt) for s in samples] == [(512, "a red apple"), (640, "a cat")]


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    TrainConfig().save("a.json")
    before = Path("a.json").read_text()
    broken, _ = TrainConfig.load({"note": {"not", "json"}})
    with pytest.raises(TypeError):
        broken.save("a.json")
    assert Path("a.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_our_own_section_is_saved_beside_onetrainers():
    config, _ = TrainConfig.load({"ot": {"seed": 7}})
    assert config.ot.seed == 7
    assert config.to_dict()["ot"]["seed"] == 7


def test_the_same_embedding_has_the_same_id_each_time():
    data = {"additional_embeddings": [{"placeholder": "<a>"}, {"placeholder": "<b>"}]}
    first, second = (TrainConfig.load(data)[0].additional_embeddings for _ in range(2))
    assert first == second
    assert first[0].uuid != first[1].uuid


def test_every_setting_of_the_default_config_is_at_its_default():
    config = TrainConfig()
    for setting in settings(TrainConfig, collections=True):
        assert config.get(setting.path) == setting.default, setting.path
