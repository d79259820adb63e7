"""A whole run of every architecture: load its folder, cache, train, sample, back up, save."""

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from toys import cards, config_for

from modules import GenericTrainer, TrainCallbacks, TrainConfig
from modules.config import MODELS, ModelType, TrainingMethod
from modules.config.supported import HONOURED
from modules.families import family_for
from modules.training import events as e

torch.set_num_threads(1)
SLOW = pytest.mark.slow
QUICK = {ModelType.FLUX_DEV_1, ModelType.Z_IMAGE}
TYPES = [
    pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow, id=kind.value)
    for kind in HONOURED["model_type"]
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return cards(tmp_path_factory.mktemp("pictures"))


def run(kind, pictures, tmp_path, changes=None):
    """Train a toy of the architecture for two epochs: the events of the run."""
    edge = max(64, MODELS[kind].pixel_multiple)
    definition = {
        "prompt": "a card", "width": edge, "height": edge, "diffusion_steps": 2, "seed": 1,
    }  # fmt: skip
    sampled = {"samples": [definition], "sample_after": 1, "sample_after_unit": "EPOCH"}
    config = config_for(kind, pictures, tmp_path, **{**sampled, **(changes or {})})
    seen = []
    GenericTrainer(config, TrainCallbacks(on_event=seen.append)).run()
    losses = [event.loss for event in seen if isinstance(event, e.LossUpdate)]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    assert not [event.text for event in seen if isinstance(event, e.Warned)]
    return seen


@pytest.mark.parametrize("kind", TYPES)
def test_a_run_of_each_architecture_trains_and_leaves_its_files(kind, pictures, tmp_path):
    seen = run(kind, pictures, tmp_path)
    drawn = [event.path for event in seen if isinstance(event, e.SampleImage)]
    edge = max(64, MODELS[kind].pixel_multiple)
    assert Image.open(drawn[-1]).size == (edge, edge)
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        assert file.metadata()["modelspec.architecture"] == f"{family_for(kind).architecture}/lora"
        ups = [key for key in file.keys() if key.endswith("lora_B.weight")]  # noqa: SIM118
        assert any(file.get_tensor(key).any() for key in ups)


@pytest.mark.parametrize("dtype", ["NFLOAT_4", "INT_W8A8"])
def test_an_adapter_trains_on_a_base_of_few_bits(dtype, pictures, tmp_path):
    small = {f"{part}.weight_dtype": dtype for part in ("transformer", "text_encoder_2")}
    run(ModelType.FLUX_DEV_1, pictures, tmp_path, {**small, "train_dtype": "BFLOAT_16"})


@pytest.mark.parametrize("out", ["text_encoder_3", pytest.param("text_encoder", marks=SLOW)])
def test_a_run_can_do_without_a_text_encoder(out, pictures, tmp_path):
    run(ModelType.STABLE_DIFFUSION_3, pictures, tmp_path, {f"{out}.include": False})


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow, id=kind.value)
        for kind in HONOURED["model_type"]
        if TrainingMethod.EMBEDDING in MODELS[kind].methods
    ],
)
def test_a_word_of_each_architecture_trains_and_leaves_its_file(kind, pictures, tmp_path):
    changes = {
        "training_method": "EMBEDDING",
        "output_model_format": "SAFETENSORS",
        "embedding.placeholder": "card",
        "embedding.initial_embedding_text": "a",
        "preserve_embedding_norm": True,
    }
    run(kind, pictures, tmp_path, changes)
    family = family_for(kind)
    parts = family.tiny()
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        assert file.metadata()["modelspec.architecture"] == f"{family.architecture}/embedding"
        for name, place in family.words.items():
            rows, table = file.get_tensor(place.key), parts.module(name).get_input_embeddings()
            assert rows.shape == (1, table.weight.shape[1])
            assert rows.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ModelType.STABLE_DIFFUSION_3, ModelType.Z_IMAGE], ids=str)
def test_a_whole_model_trains_and_loads_again(kind, pictures, tmp_path):
    changes = {
        "training_method": "FINE_TUNE",
        "output_model_format": "DIFFUSERS",
        "output_model_destination": str(tmp_path / "tuned"),
        "learning_rate": 1e-4,
    }
    run(kind, pictures, tmp_path, changes)
    config, _ = TrainConfig.load(
        {"model_type": kind.value, "base_model_name": str(tmp_path / "tuned")}
    )
    family = family_for(kind)
    tuned = family.load(config).denoiser.state_dict()
    before = family.tiny().denoiser.state_dict()
    assert any(not torch.equal(tuned[key].float(), before[key]) for key in before)
