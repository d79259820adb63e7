"""The shipped presets: each means what OneTrainer's of that kind means, and comes back whole."""

import importlib
import json
from pathlib import Path

import pytest

from modules.config import DataType, TrainConfig, TrainingMethod, TrainOptimizerConfig, validate
from modules.config.hardware import Hardware
from modules.config.models import MODELS
from modules.config.section import plain
from modules.families import FAMILIES

ROOT = Path(__file__).parents[2] / "presets"
PRESETS = {path.stem: path for path in sorted(ROOT.glob("*/*.json"))}
REFERENCE = json.loads((Path(__file__).parent / "files" / "reference_presets.json").read_text())
"""By the name of our preset: what OneTrainer's own code resolves its counterpart to, on its screen,
where that differs from OneTrainer's defaults."""
DEFAULT = TrainConfig()
WHOLE = (DataType.FLOAT_32, DataType.FLOAT_16, DataType.BFLOAT_16)
H100 = Hardware("cuda", "NVIDIA H100", memory_gib=80)
T4 = Hardware("cuda", "Tesla T4", bfloat16=False, memory_gib=15)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(name):
    config, warnings = TrainConfig.load(PRESETS[name])
    assert warnings == []
    return config


def test_every_preset_of_onetrainer_has_its_counterpart():
    assert len(REFERENCE) == 60
    assert REFERENCE.keys() <= PRESETS.keys()


def test_names_are_unique_over_all_folders():
    assert len(PRESETS) == len(list(ROOT.glob("*/*.json")))


def bare(path):
    """A setting's default before an optimizer was chosen: what REFERENCE leaves out."""
    if path.startswith("optimizer."):
        field = TrainOptimizerConfig.model_fields[path.partition(".")[2]]
        return plain(field.get_default(call_default_factory=True))
    return plain(DEFAULT.get(path))


@pytest.mark.parametrize("name", REFERENCE)
def test_a_preset_resolves_to_the_values_of_onetrainer(name):
    config = load(name)
    expected = {path: REFERENCE[name].get(path, bare(path)) for path in TrainConfig.names()}
    # better: written out, where OneTrainer's command line would train all layers
    preset = MODELS[config.model_type].filters[config.layer_filter_preset]
    expected["layer_filter"] = preset.layer_filter
    assert {path: plain(config.get(path)) for path in TrainConfig.names()} == expected


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_the_round_trip(name, tmp_path):
    config = load(name)
    config.save(tmp_path / "again.json")
    again, warnings = TrainConfig.load(tmp_path / "again.json")
    assert (again, warnings) == (config, [])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_breaks_no_rule_but_for_what_the_engine_cannot_do(name):
    config = load(name).update(train_device="cuda")
    for problem in validate(config, T4 if "T4" in name else H100):
        beyond = "cannot do." in problem.message or "cannot honour." in problem.message
        no_data = problem.field.startswith("concept")
        assert problem.severity == "warning" or beyond or no_data, str(problem)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_describes_itself_in_a_line(name):
    data = json.loads(PRESETS[name].read_text())
    assert 10 < len(data["__description"]) <= 110
    assert {"model_type", "training_method", "base_model_name"} <= data.keys()


@pytest.mark.parametrize("name", [name for name in PRESETS if "T4" in name])
def test_a_preset_for_the_t4_uses_no_bfloat16(name):
    """Models that overflow in float16 compute in float32, on weights of few bits."""
    config = load(name)
    assert config.train_dtype in (DataType.FLOAT_16, DataType.FLOAT_32)
    small = config.get(MODELS[config.model_type].denoiser).weight_dtype not in WHOLE
    assert config.train_dtype is DataType.FLOAT_16 or small
    assert config.fallback_train_dtype is DataType.FLOAT_32
    parts = MODELS[config.model_type].parts
    assert all(config.get(part).weight_dtype is not DataType.BFLOAT_16 for part in parts)


def test_presets_for_less_memory_keep_the_effective_batch():
    for small, usual in [
        ("SD 1.5 LoRA 6GB", "SD 1.5 LoRA"),
        ("SDXL LoRA 8GB", "SDXL LoRA"),
        ("SDXL LoRA T4 16GB", "SDXL LoRA"),
        ("SD 3 LoRA T4 16GB", "SD 3 LoRA"),
        ("Flux.1 LoRA 16GB", "Flux.1 LoRA"),
        ("Flux.1 LoRA 8GB", "Flux.1 LoRA"),
        ("Lumina 2 LoRA 16GB", "Lumina 2 LoRA"),
        ("AuraFlow LoRA 16GB", "AuraFlow LoRA"),
        ("AuraFlow LoRA T4 16GB", "AuraFlow LoRA"),
        ("Lumina 2 LoRA T4 16GB", "Lumina 2 LoRA"),
        ("Flux.1 LoRA T4 16GB", "Flux.1 LoRA"),
        ("Chroma LoRA T4 16GB", "Chroma LoRA 16GB"),
        ("Sana LoRA T4 16GB", "Sana LoRA"),
        ("PixArt sigma LoRA T4 16GB", "PixArt sigma LoRA"),
        ("Z-Image LoRA T4 16GB", "Z-Image LoRA 16GB"),
        ("Anima LoRA T4 16GB", "Anima LoRA"),
    ]:
        a, b = load(small), load(usual)
        assert a.batch_size * a.gradient_accumulation_steps == b.batch_size, small
        assert a.learning_rate == b.learning_rate


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_has_a_preset(family):
    module = importlib.import_module(f"modules.families.{family}")
    kinds = {kind for variant in module.VARIANTS for kind in variant.model_types}
    assert kinds & {load(name).model_type for name in PRESETS}


def test_every_training_method_and_twenty_model_types_have_a_preset():
    configs = [load(name) for name in PRESETS]
    assert {config.training_method for config in configs} >= {
        TrainingMethod.LORA,
        TrainingMethod.FINE_TUNE,
        TrainingMethod.EMBEDDING,
    }
    assert len({config.model_type for config in configs}) >= 20
