"""Words that prompts hold: loaded from files, with LoRAs and from runs, drawn as diffusers does."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modules import GenericTrainer, TrainCallbacks, TrainConfig
from modules.adapters.files import AdapterError, save_tensors, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.config import ConfigError, ModelFormat, ModelType
from modules.families import family_for
from ot_notebook.services.inference_code import diffusers_code
from ot_notebook.services.inference_recipe import read_recipe
from ot_notebook.services.inference_service import InferenceService

torch.set_num_threads(1)
SETTINGS = {"seed": 7, "steps": 3, "cfg_scale": 2.0, "scheduler": "DDIM", "width": 64, "height": 64}


def pixels(image):
    return np.asarray(image.convert("RGB"), dtype=int)


def rows(seed, *widths):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, width, generator=generator) for width in widths]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Toy models of two architectures."""
    found = {}
    for kind in (ModelType.STABLE_DIFFUSION_15, ModelType.STABLE_DIFFUSION_XL_10_BASE):
        found[kind] = tmp_path_factory.mktemp("model")
        family_for(kind).tiny().pipeline.save_pretrained(found[kind])
    return found


@pytest.fixture
def service(tmp_path):
    return InferenceService(tmp_path / "gallery")


@pytest.mark.parametrize("kind", ["STABLE_DIFFUSION_15", "STABLE_DIFFUSION_XL_10_BASE"])
def test_the_code_of_a_picture_draws_it_again_in_diffusers(
    folders, service, tmp_path, monkeypatch, kind
):
    file = tmp_path / "cat.safetensors"
    if kind == "STABLE_DIFFUSION_15":
        save_file({"emp_params": rows(1, 32)[0]}, file)
    else:
        save_file(dict(zip(("clip_l", "clip_g"), rows(1, 32, 48), strict=True)), file)
    service.load(folders[ModelType[kind]], embeddings=[("<cat>", file)], device="cpu")
    plain = service.generate("a dog", **SETTINGS)
    result = service.generate("a <cat>", **SETTINGS)
    assert np.abs(pixels(plain.image) - pixels(result.image)).mean() > 0.5
    recipe = read_recipe(result.path)
    assert recipe.embeddings == (("<cat>", str(file)),)
    assert '"a embedding:cat"' in service.as_comfy(recipe)
    monkeypatch.chdir(tmp_path)
    exec(compile(diffusers_code(recipe), "picture.py", "exec"), {})
    assert np.abs(pixels(Image.open("picture.png")) - pixels(result.image)).max() <= 1


def test_a_file_is_called_by_its_name_and_goes_with_the_model(folders, service, tmp_path):
    save_file({"emp_params": rows(2, 32)[0]}, tmp_path / "ohwx.safetensors")
    model = folders[ModelType.STABLE_DIFFUSION_15]
    service.load(model, embeddings=[tmp_path / "ohwx.safetensors"], device="cpu")
    taught = pixels(service.generate("ohwx", **SETTINGS).image)
    assert np.abs(taught - pixels(service.generate("ohw", **SETTINGS).image)).mean() > 0.5
    service.load(model, device="cpu")
    bare = pixels(service.generate("ohwx", **SETTINGS).image)
    assert np.abs(taught - bare).mean() > 0.5


def test_a_lora_brings_the_words_that_trained_with_it(folders, service, tmp_path):
    family = family_for(ModelType.STABLE_DIFFUSION_15)
    network = copy.deepcopy(family.tiny().pipeline.unet)
    layers = matching_layers(network, "attn2", False)
    add_lora(network, layers, rank=4, alpha=4, dropout=0, seed=0)
    tensors = to_format(lora_layers({"unet": network}), family, ModelFormat.KOHYA_LORA)
    words = {"bundle_emb.<cat>.emp_params": rows(1, 32)[0]}
    save_tensors({**tensors, **words}, tmp_path / "both.safetensors", torch.float32)
    save_file({"emp_params": rows(1, 32)[0]}, tmp_path / "cat.safetensors")
    model = folders[ModelType.STABLE_DIFFUSION_15]

    lora = [(tmp_path / "both.safetensors", 1.0)]  # changes no layer yet, but has the word
    service.load(model, embeddings=[("<cat>", tmp_path / "cat.safetensors")], device="cpu")
    expected = pixels(service.generate("a <cat>", **SETTINGS).image)
    service.load(model, device="cpu")
    without = pixels(service.generate("a <cat>", **SETTINGS).image)
    drawn = service.generate("a <cat>", loras=lora, **SETTINGS)
    assert drawn.notes == ()
    assert np.abs(pixels(drawn.image) - expected).max() <= 1
    assert np.abs(expected - without).mean() > 0.5
    again = pixels(service.generate("a <cat>", **SETTINGS).image)  # and takes it along
    assert np.array_equal(again, without)


def test_a_backup_of_a_run_knows_the_word_that_it_learns(folders, service, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a <cat>")
    config, _ = TrainConfig.load(
        {
            "training_method": "EMBEDDING",
            "base_model_name": str(folders[ModelType.STABLE_DIFFUSION_15]),
            "output_model_format": "SAFETENSORS",
            "output_model_destination": str(tmp_path / "out" / "cat.safetensors"),
            "workspace_dir": str(tmp_path / "run"),
            "cache_dir": str(tmp_path / "cache"),
            "embedding": {"placeholder": "<cat>"},
            "train_device": "cpu",
            "train_dtype": "FLOAT_32",
            "resolution": "64",
            "concepts": [{"path": str(tmp_path)}],
            "epochs": 3,
            "learning_rate": 0.5,
            "learning_rate_warmup_steps": 0,
            "sample_after_unit": "NEVER",
            "tensorboard": False,
        }
    )
    made = []
    GenericTrainer(config, TrainCallbacks(on_event=made.append)).run()
    backup = next((tmp_path / "run" / "backup").iterdir())
    service.load(backup, device="cpu")
    from_backup = pixels(service.generate("a <cat>", **SETTINGS).image)
    service.load(
        folders[ModelType.STABLE_DIFFUSION_15],
        embeddings=[("<cat>", tmp_path / "out" / "cat.safetensors")],
        device="cpu",
    )
    assert np.array_equal(from_backup, pixels(service.generate("a <cat>", **SETTINGS).image))


def test_what_cannot_be_read_is_refused_and_named(folders, service, tmp_path):
    model = folders[ModelType.STABLE_DIFFUSION_15]
    save_file({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 48)}, tmp_path / "xl.pt")
    save_file({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 48)},
              tmp_path / "xl.safetensors")  # fmt: skip
    with pytest.raises(AdapterError, match=r"xl.safetensors is no embedding for stable-diffusion"):
        service.load(model, embeddings=[tmp_path / "xl.safetensors"], device="cpu")
    with pytest.raises(AdapterError, match=r"gone.safetensors does not exist"):
        service.load(model, embeddings=[tmp_path / "gone.safetensors"], device="cpu")
    with pytest.raises(AdapterError, match=r"xl.pt cannot be read as an embedding"):
        service.load(model, embeddings=[tmp_path / "xl.pt"], device="cpu")
    with pytest.raises(ConfigError, match=r"The word of .* is ' '. Use one such as"):
        service.load(model, embeddings=[(" ", tmp_path / "xl.pt")], device="cpu")
    with pytest.raises(ConfigError, match=r"embeddings holds 3. Each is a file, or a pair"):
        service.load(model, embeddings=[3], device="cpu")
