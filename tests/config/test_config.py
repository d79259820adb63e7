"""What a person who holds a config sees: names, values, updates, errors."""

import copy
import pickle
import subprocess
import sys

import pytest

from modules.config import (
    ConceptConfig,
    ConfigError,
    DataType,
    Optimizer,
    Problem,
    SampleConfig,
    TrainConfig,
    TrainOptimizerConfig,
)


def message_of(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def test_the_config_loads_no_torch_and_no_widgets():
    code = (
        "import sys, modules.config; print({'torch','diffusers','ipywidgets'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_update_gives_a_new_config_and_leaves_the_old_one():
    old = TrainConfig()
    new = old.update(**{"unet.learning_rate": 1e-4, "epochs": 3, "train_dtype": "BFLOAT_16"})
    assert (new.unet.learning_rate, new.epochs) == (1e-4, 3)
    assert new.train_dtype is DataType.BFLOAT_16
    assert (old.unet.learning_rate, old.epochs) == (None, 100)
    assert new.get("unet.learning_rate") == 1e-4


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().epochs = 3


def test_a_dict_for_a_section_keeps_the_rest_of_it():
    config = TrainConfig().update(text_encoder={"train": False})
    assert config.text_encoder.stop_training_after == 30
    assert not config.text_encoder.train


def test_an_item_of_a_list_can_be_updated():
    config = TrainConfig().update(concepts=[{"path": "a"}, {"path": "b"}])
    changed = config.update(**{"concepts.1.text.tag_delimiter": ";"})
    assert changed.concepts[1].path == "b"
    assert changed.concepts[1].text.tag_delimiter == ";"
    assert changed.get("concepts.0.path") == "a"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epohcs": 3}, "epohcs: epohcs is no setting. Did you mean epochs?"),
        (
            {"unet.learning_rat": 1},
            "unet.learning_rat is no setting. Did you mean unet.learning_rate?",
        ),
        ({"xyzzy": 1}, "xyzzy is no setting. See docs/options.md for the names."),
        ({"epochs": 0}, "epochs: epochs is 0, but must be at least 1. Use a value at least 1."),
        (
            {"epochs": 1.5},
            "epochs is 1.5, but must be a whole number. Give a number without a fraction.",
        ),
        ({"epochs": True}, "epochs is true, but must be a number. Give a number."),
        ({"epochs": None}, "epochs is null, but must be a whole number."),
        ({"ema_decay": 2}, "ema_decay is 2, but must be at most 1. Use a value at most 1."),
        ({"huber_delta": 0}, "huber_delta is 0, but must be above 0. Use a value above 0."),
        ({"learning_rate": float("nan")}, "learning_rate is nan, but must be a finite number."),
        (
            {"learning_rate": "fast"},
            "learning_rate is 'fast', but must be a number. Give a number.",
        ),
        ({"compile": "perhaps"}, "compile is 'perhaps', but must be true or false."),
        (
            {"workspace_dir": ["a"]},
            "workspace_dir is a list, but must be text. Give text in quotes.",
        ),
        ({"train_dtype": "FLOAT16"}, "train_dtype is 'FLOAT16', but must be one of NONE, FLOAT_8,"),
        ({"train_dtype": "FLOAT16"}, "Did you mean FLOAT_16?"),
        ({"concepts": {"path": "a"}}, "concepts is an object, but must be a list."),
        ({"unet": 3}, "unet is 3, but must be an object of names and values."),
        ({"samples": [{"promt": "a cat"}]}, "promt is no setting. Did you mean prompt?"),
        ({"concepts.7.path": "x"}, "concepts.7.path is no setting."),
        ({"ot.seed": -1}, "ot.seed is -1, but must be at least 0."),
    ],
)
def test_errors_say_the_value_the_rule_and_the_fix(changes, expected):
    assert expected in message_of(lambda: TrainConfig().update(**changes))


def test_one_error_names_every_bad_value_on_a_line_of_its_own():
    with pytest.raises(ConfigError) as caught:
        TrainConfig().update(epochs=0, batch_size=0)
    assert [problem.field for problem in caught.value.problems] == ["batch_size", "epochs"] or [
        problem.field for problem in caught.value.problems
    ] == ["epochs", "batch_size"]
    assert len(str(caught.value).splitlines()) == 2
    assert isinstance(caught.value, ValueError)


def test_a_misspelt_name_is_an_error_in_the_constructor_too():
    with pytest.raises(ValueError, match=r"epohcs is no setting\. Did you mean epochs"):
        TrainConfig(epohcs=3)
    with pytest.raises(ConfigError, match="promt is no setting"):
        SampleConfig().update(promt="a cat")
    assert ConceptConfig().update(**{"image.enable_random_flip": True}).image.enable_random_flip


def test_a_number_is_taken_where_text_is_meant():
    assert TrainConfig().update(resolution=512).resolution == "512"


def test_the_text_of_a_config_shows_only_what_is_not_as_usual():
    text = repr(TrainConfig().update(epochs=7))
    assert "epochs=7" in text
    assert "batch_size" not in text


def test_a_config_survives_pickle_and_copy():
    config = TrainConfig().update(concepts=[{"path": "a"}], epochs=7)
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config


def test_an_error_survives_pickle():
    caught = ConfigError([Problem("epochs", "error", "epochs is 0.", "Use 1.")])
    assert pickle.loads(pickle.dumps(caught)).problems == caught.problems
    assert str(caught) == "epochs: epochs is 0. Use 1."


# ---------------------------------------------------------------- what follows from a setting


def test_an_optimizer_brings_its_usual_parameters():
    assert TrainConfig().optimizer.fused is True  # ADAMW's, where the bare field says false
    prodigy = TrainConfig().update(**{"optimizer.optimizer": "PRODIGY"}).optimizer
    assert (prodigy.d0, prodigy.beta2, prodigy.slice_p, prodigy.fused) == (1e-6, 0.999, 11, False)
    assert prodigy.growth_rate == float("inf")
    assert TrainOptimizerConfig(optimizer=Optimizer.ADAFACTOR).eps == 1e-30


def test_what_is_said_with_the_optimizer_wins_over_its_usual_parameters():
    config = TrainConfig().update(**{"optimizer.optimizer": "PRODIGY", "optimizer.d_coef": 2})
    assert config.optimizer.d_coef == 2
    config = TrainConfig().update(optimizer={"optimizer": "ADAFACTOR", "relative_step": True})
    assert config.optimizer.relative_step
    assert config.optimizer.eps2 == 1e-3


def test_ones_own_usual_parameters_win_over_the_general_ones():
    own = {"ADAFACTOR": {"optimizer": "ADAFACTOR", "fused_back_pass": True}}
    config = TrainConfig().update(optimizer_defaults=own)
    chosen = config.update(**{"optimizer.optimizer": "ADAFACTOR"}).optimizer
    assert chosen.fused_back_pass
    assert chosen.clip_threshold == 1.0


def test_a_filter_preset_brings_its_filter_and_a_filter_makes_it_custom():
    config = TrainConfig().update(layer_filter_preset="attn-mlp")
    assert config.layer_filter == "attentions"
    own = config.update(layer_filter="down_blocks")
    assert (own.layer_filter, own.layer_filter_preset) == ("down_blocks", "custom")
    assert config.update(layer_filter_preset="full").layer_filter == ""


def test_another_model_type_takes_its_own_filter_of_that_name():
    config = TrainConfig().update(layer_filter_preset="attn-mlp").update(model_type="Z_IMAGE")
    assert config.layer_filter_regex
    assert "feed_forward" in config.layer_filter
    flux2 = config.update(model_type="FLUX_2")  # which has no such preset
    assert (flux2.layer_filter_preset, flux2.layer_filter, flux2.layer_filter_regex) == (
        "full",
        "",
        False,
    )


def test_the_filter_of_the_quantisation_follows_its_preset_too():
    config = TrainConfig().update(
        model_type="CHROMA_1", **{"quantization.layer_filter_preset": "blocks"}
    )
    assert config.quantization.layer_filter == "transformer_block"
    own = config.update(**{"quantization.layer_filter": "x"})
    assert own.quantization.layer_filter_preset == "custom"


def test_a_sample_takes_the_model_types_size_and_steps():
    config = TrainConfig().update(
        model_type="STABLE_DIFFUSION_XL_10_BASE", samples=[{"prompt": "a cat", "width": 768}]
    )
    (sample,) = config.samples
    assert (sample.width, sample.height, sample.cfg_scale) == (768, 1024, 7.5)
    flux = SampleConfig.for_model(config.update(model_type="FLUX_DEV_1").model_type, prompt="x")
    assert (flux.diffusion_steps, flux.cfg_scale) == (30, 3.5)


def test_what_to_dict_gives_is_taken_back_by_update_and_constructor():
    config = TrainConfig().update(concepts=[{"path": "a"}], samples=[{"prompt": "b"}], epochs=7)
    data = config.to_dict()
    assert TrainConfig().update(**{"samples": data["samples"]}).samples == config.samples
    assert TrainConfig.parse(data) == config
