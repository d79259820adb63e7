"""Fine-tuning of the VAE: the decoder learns, all else stays, and the whole model is written."""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from modules.config import TrainConfig
from modules.families import family_for
from modules.training import events as e
from ot_notebook import preset_files

VAE = {
    "training_method": "FINE_TUNE_VAE",
    "output_model_format": "DIFFUSERS",
    "layer_filter": "",
    "vae": {"gradient_checkpointing": False},
}


@pytest.fixture
def config_of(make_config):
    def make(**changes):
        config = make_config(**{**VAE, **changes})
        if config.output_model_format.value == "DIFFUSERS":
            config = config.update(output_model_destination=f"{config.workspace_dir}/model")
        return config

    return make


def pixels_of(image):
    array = np.asarray(image.convert("RGB")).copy()
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1


def errors_of(pipeline, folder):
    """What each picture's error is, by the library's own VAE."""
    vae, found = pipeline.vae.eval(), {}
    for path in sorted(folder.glob("*.png")):
        pixels = pixels_of(Image.open(path))
        with torch.no_grad():
            again = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        found[path.stem] = F.mse_loss(again, pixels).item()
    return found


def test_a_vae_of_another_factor_trains(config_of, train, pictures):
    """The embedded model's latents stand for 4 pixels along each edge, not 8."""
    embedded, _ = TrainConfig.load(preset_files.find("emoji LoRA"))
    config = config_of(base_model_name=embedded.base_model_name, epochs=8, learning_rate=1e-4)
    pipeline = family_for(config.model_type).load(config).pipeline
    errors = errors_of(pipeline, pictures)
    run = train(config)
    assert min(errors.values()) <= run.losses[1] <= max(errors.values())
    trained = diffusers.AutoencoderKL.from_pretrained(
        run.of(e.ModelSaved)[-1].path, subfolder="vae"
    )
    after = errors_of(SimpleNamespace(vae=trained), pictures)
    assert sum(after.values()) < sum(errors.values())


def test_the_decoder_learns_from_the_pictures(config_of, train, model_folder, pictures):
    run = train(config_of(epochs=8, learning_rate=1e-2))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model_folder)
    errors = errors_of(pipeline, pictures)
    low, high = min(errors.values()), max(errors.values())
    assert low <= run.losses[1] <= high
    assert sum(list(run.losses.values())[-3:]) < 0.8 * sum(list(run.losses.values())[:3])

    trained = diffusers.StableDiffusionPipeline.from_pretrained(run.of(e.ModelSaved)[-1].path)
    after = errors_of(trained, pictures)
    assert sum(after.values()) < 0.8 * sum(errors.values())
    for name in ("unet", "text_encoder", "vae"):
        before = getattr(pipeline, name).state_dict()
        for key, tensor in getattr(trained, name).state_dict().items():
            learns = name == "vae" and key.startswith("decoder.")
            assert learns or torch.equal(tensor, before[key]), f"{name}.{key}"


def test_the_first_loss_is_that_of_the_library_under_a_mask(
    config_of, train, model_folder, tmp_path
):
    """Half of a picture counts in full, the other a tenth."""
    folder = tmp_path / "one"
    folder.mkdir()
    image = Image.new("RGB", (64, 64), "red")
    image.paste("white", (8, 8, 40, 40))
    image.save(folder / "a.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "a-masklabel.png")
    settings = {"concepts": [{"path": str(folder)}], "batch_size": 1, "epochs": 1}
    run = train(config_of(masked_training=True, unmasked_probability=0.0, **settings))

    vae = diffusers.AutoencoderKL.from_pretrained(model_folder, subfolder="vae")
    pixels = pixels_of(image)
    with torch.no_grad():
        error = (vae.decode(vae.encode(pixels).latent_dist.mode()).sample - pixels).square()
    weight = torch.where(torch.arange(64) < 32, 1.0, 0.1)
    assert run.losses[1] == pytest.approx((error * weight).mean().item(), rel=1e-5)


@pytest.mark.slow
def test_without_a_cache_it_learns_the_same(config_of, train):
    cached, live = (train(config_of(latent_caching=keeps)).losses for keeps in (True, False))
    assert live == pytest.approx(cached, rel=1e-5)  # encoded in other batches


@pytest.mark.slow
def test_it_goes_on_exactly_and_writes_one_file(config_of, train, tmp_path):
    settings = {
        "output_model_format": "ORIGINAL_SINGLE_FILE",
        "vae": {"gradient_checkpointing": True},
        "samples": [],
    }
    straight = train(config_of(**settings))
    config = config_of(workspace_dir=tmp_path / "halves", backup_before_save=True, **settings)

    def stop(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 4:
            commands.stop()

    train(config, stop)
    resumed = train(config.update(continue_last_backup=True))
    assert resumed.losses == {s: loss for s, loss in straight.losses.items() if s > 4}
    one, two = (load_file(run.of(e.ModelSaved)[-1].path) for run in (straight, resumed))
    assert one.keys() == two.keys()
    assert any(key.startswith("first_stage_model.decoder.") for key in one)
    assert all(torch.equal(one[key], two[key]) for key in one)
