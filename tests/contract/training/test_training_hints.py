"""What inpainting and depth models are shown while they train, read off the UNet's own input."""

import inspect
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from modules.config import ConfigError, ModelType
from modules.families import family_for
from modules.training import events as e

INPAINTING, DEPTH = ModelType.STABLE_DIFFUSION_15_INPAINTING, ModelType.STABLE_DIFFUSION_20_DEPTH


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A toy model's folder by its type."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind.value)
            pipeline = family_for(kind).tiny().pipeline
            pipeline.set_progress_bar_config(disable=True)
            pipeline.save_pretrained(made[kind])
        return made[kind]

    return make


@pytest.fixture
def cards(pictures, tmp_path):
    """Six cards; the red one has a mask of its right half."""
    folder = tmp_path / "cards"
    shutil.copytree(pictures, folder)
    half = Image.new("L", (64, 64))
    half.paste(255, (32, 0, 64, 64))
    half.save(folder / "red-masklabel.png")
    return folder


@pytest.fixture
def config_for(make_config, folders, cards, tmp_path):
    def make(kind, **changes):
        return make_config(
            model_type=kind.value,
            base_model_name=str(folders(kind)),
            **{
                "cache_dir": str(tmp_path / "cache"),
                "concepts": [{"path": str(cards)}],
                "batch_size": 1,
                "epochs": 1,
                **changes,
            },
        )

    return make


@pytest.fixture
def shown(make_run, config_for):
    """Train an epoch; what the UNet was shown beside the latents, [B, further, H, W] each."""

    def go(kind=INPAINTING, **changes):
        inputs = []

        def see(_unet, args):
            inputs.append(args[0][:, 4:].detach().clone())

        def react(event, _commands):
            if isinstance(event, e.TrainingState) and event.state == "training" and not inputs:
                run.trainer.model.unet.register_forward_pre_hook(see)

        run = make_run(config_for(kind, **changes), react)
        run.go()
        assert run.warnings == []
        return inputs

    return go


def latents(kind, picture, mask=None):
    """The VAE's mean for a picture, by its own methods; grey where a mask is white."""
    vae = family_for(kind).tiny().vae
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]
    pixels = pixels / 127.5 - 1
    if mask is not None:
        pixels[:, :, np.array(mask) > 127] = 0
    with torch.no_grad():
        return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor


GREY, WHITE = Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255)


def near(one, other):
    return torch.allclose(one, other, atol=1e-4)


def test_an_inpainting_model_is_shown_the_mask_and_what_it_leaves(shown, cards):
    inputs = shown(unmasked_probability=0.0)
    assert len(inputs) == 6
    (half,) = [each for each in inputs if not each[:, 0].all()]
    assert half[0, 0].tolist() == [[0.0] * 4 + [1.0] * 4] * 8
    red = Image.open(cards / "red.png"), Image.open(cards / "red-masklabel.png")
    assert near(half[:, 1:], latents(INPAINTING, *red))
    assert not near(half[:, 1:], latents(INPAINTING, red[0]))
    blank = latents(INPAINTING, GREY, WHITE)
    assert sum(near(each[:, 1:], blank) for each in inputs) == 5


def test_the_chance_of_no_mask_hides_the_whole_picture(shown):
    blank = latents(INPAINTING, GREY, WHITE)
    for each in shown(unmasked_probability=1.0):
        assert each[:, 0].all()
        assert near(each[:, 1:], blank)


def test_a_conditioning_image_is_shown_whole(shown, cards):
    for path in cards.glob("*.txt"):
        Image.new("RGB", (64, 64), "navy").save(cards / f"{path.stem}-condlabel.png")
    inputs = shown(custom_conditioning_image=True, unmasked_probability=0.0)
    navy = latents(INPAINTING, Image.new("RGB", (64, 64), "navy"))
    assert all(near(each[:, 1:], navy) for each in inputs)
    assert sum(bool(each[:, 0].all()) for each in inputs) == 5


def test_a_depth_model_is_shown_the_depth_that_its_pipeline_estimates(shown, tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    for seed in range(3):  # a toy estimator sees no depth in plain cards
        noise(seed).save(folder / f"{seed}.png")
    inputs = shown(DEPTH, concepts=[{"path": str(folder), "text": {"prompt_source": "filename"}}])
    parts, seen = family_for(DEPTH).tiny(), []
    parts.pipeline.set_progress_bar_config(disable=True)
    parts.denoiser.register_forward_pre_hook(lambda _unet, args: seen.append(args[0][:, 4:]))
    for seed in range(3):
        few = {"strength": 1.0, "num_inference_steps": 1, "guidance_scale": 1.0}
        parts.pipeline("a", noise(seed), **few)
    assert len(inputs) == len(seen) == 3
    for theirs in seen:
        assert sum(near(each, theirs) for each in inputs) == 1


def noise(seed, width=64, height=64):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", [INPAINTING, DEPTH])
def test_a_sample_is_drawn_into_a_picture_as_the_plain_pipeline_draws_it(
    train, config_for, tmp_path, kind
):
    base, mask = tmp_path / "base.png", tmp_path / "mask.png"
    wide = noise(7, 128)
    wide.save(base)
    right = Image.new("L", (128, 64))
    right.paste(255, (64, 0, 128, 64))
    right.save(mask)
    paths = {"base_image_path": str(base)}
    if kind is INPAINTING:
        paths["mask_image_path"] = str(mask)
    definition = {
        "prompt": "a red card", "width": 64, "height": 64, "diffusion_steps": 2, "seed": 3,
        "cfg_scale": 2.0, "noise_scheduler": "DDIM", "sample_inpainting": True, **paths,
    }  # fmt: skip
    changes = {"samples": [definition], "sample_after": 1, "sample_after_unit": "EPOCH"}
    run = train(config_for(kind, learning_rate=1e-30, **changes))
    assert run.warnings == []
    drawn = Image.open(run.of(e.SampleImage)[0].path)

    pipeline = family_for(kind).tiny().pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    box = (32, 0, 96, 64)
    given = {"image": wide.crop(box), "mask_image": right.crop(box), "height": 64, "width": 64}
    accepted = inspect.signature(type(pipeline).__call__).parameters
    plain = pipeline(
        "a red card",
        **{name: value for name, value in given.items() if name in accepted},
        strength=1.0,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(plain).astype(int))
    assert difference.max() <= 1


def test_a_picture_that_is_not_there_is_said_before_the_run(train, config_for):
    definition = {"sample_inpainting": True, "base_image_path": "no.png", "mask_image_path": "x"}
    with pytest.raises(ConfigError, match=r"base_image_path is no\.png, but no file is there"):
        train(config_for(INPAINTING, samples=[definition]))


def test_a_file_that_is_no_picture_is_said_when_it_is_drawn_into(train, config_for, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    definition = {
        "width": 64, "height": 64, "diffusion_steps": 1, "sample_inpainting": True,
        "base_image_path": str(broken), "mask_image_path": str(broken),
    }  # fmt: skip
    changes = {"samples": [definition], "sample_after": 1, "sample_after_unit": "EPOCH"}
    run = train(config_for(INPAINTING, **changes))
    assert list(run.losses) == [1, 2, 3, 4, 5, 6]
    assert any(f"base_image_path is {broken}, which cannot be read" in w for w in run.warnings)


@pytest.mark.parametrize("kind", [INPAINTING, pytest.param(DEPTH, marks=pytest.mark.slow)])
def test_without_a_cache_a_run_loses_the_same(train, config_for, cards, tmp_path, kind):
    """Latents, hints, masks and captions that are encoded as they are needed, in full precision."""
    one = tmp_path / "one"
    one.mkdir()
    for name in ("red.png", "red.txt", "red-masklabel.png"):
        shutil.copy(cards / name, one / name)
    settings = {
        "masked_training": True, "unmasked_probability": 0.3, "batch_size": 2, "epochs": 2,
        "text_encoder.dropout_probability": 0.3, "validation": True, "validate_after": 1,
        "concepts": [
            {"path": str(cards)},
            {"name": "again", "path": str(one), "type": "VALIDATION"},
        ],
    }  # fmt: skip
    kept = train(config_for(kind, **settings))
    folder = tmp_path / "unused"
    fresh = train(config_for(kind, latent_caching=False, cache_dir=str(folder), **settings))
    assert fresh.warnings == kept.warnings
    assert len(fresh.losses) == 6
    assert fresh.losses == pytest.approx(kept.losses, rel=1e-5)
    measured = [event.loss for event in kept.of(e.ValidationLoss)]
    assert len(measured) == 3
    assert [event.loss for event in fresh.of(e.ValidationLoss)] == pytest.approx(measured, rel=1e-5)
    assert not list(folder.rglob("*.safetensors"))
