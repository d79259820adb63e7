"""Pictures from pictures, several at once, weights in prompts, and what is seen on the way."""

import importlib.util
import signal
import threading

import compel
import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, StableDiffusionPipeline
from PIL import Image, ImageDraw

import ot_notebook as ot
from modules.config import ConfigError, ModelType, SampleConfig
from modules.families import family_for
from modules.sampling.sampler import sample_batch
from modules.sampling.start import Start
from ot_notebook.services.inference_recipe import from_web_ui, read_recipe
from ot_notebook.services.inference_service import Cancelled, InferenceService, Result

torch.set_num_threads(1)
SETTINGS = {"seed": 7, "steps": 6, "cfg_scale": 3.0, "scheduler": "DDIM"}


def pixels(image):
    return np.asarray(image.convert("RGB"), dtype=int)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return InferenceService(tmp_path_factory.mktemp("gallery")).load(ot.assets.model())


@pytest.fixture(scope="module")
def pipeline():
    made = StableDiffusionPipeline.from_pretrained(ot.assets.model(), safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def apple(service):
    return service.generate("a red apple", **SETTINGS)


@pytest.fixture(scope="module")
def half():
    """A mask over the right half."""
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((32, 0, 64, 64), fill=255)
    return mask


def plain(pipeline, **given):
    pipeline.set_progress_bar_config(disable=True)
    return pixels(
        pipeline(
            num_inference_steps=6,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(7),
            **given,
        ).images[0]
    )


# pictures from pictures -------------------------------------------------------------------------


def test_a_picture_from_a_picture_is_the_one_that_diffusers_draws(service, pipeline, apple):
    drawn = service.generate("a green apple", image=apple, strength=0.5, **SETTINGS)
    other = AutoPipelineForImage2Image.from_pipe(pipeline)
    expected = plain(other, prompt="a green apple", image=apple.image, strength=0.5)
    assert abs(pixels(drawn.image) - expected).max() <= 1
    little = service.generate("a green apple", image=apple, strength=0.2, **SETTINGS)
    far, near = (abs(pixels(one.image) - pixels(apple.image)).mean() for one in (drawn, little))
    assert near < far


def test_painting_into_a_mask_is_that_of_diffusers_and_leaves_the_rest(
    service, pipeline, apple, half
):
    drawn = service.generate("an owl", image=apple, mask=half, strength=1.0, **SETTINGS)
    other = AutoPipelineForInpainting.from_pipe(pipeline)
    expected = plain(
        other, prompt="an owl", image=apple.image, mask_image=half, strength=1.0, width=64,
        height=64,
    )  # fmt: skip
    assert abs(pixels(drawn.image) - expected).max() <= 1
    change = abs(pixels(drawn.image) - pixels(apple.image)).mean(axis=(0, 2))
    assert change[:28].mean() < change[36:].mean() / 3


def test_a_picture_draws_itself_again_when_its_source_is_gone(service, apple, half, tmp_path):
    source = tmp_path / "wide.png"
    apple.image.resize((128, 64)).save(source)
    drawn = service.generate("an owl", image=source, mask=half, strength=0.8, **SETTINGS)
    source.unlink()
    recipe = read_recipe(drawn.path)
    assert (recipe, recipe.strength) == (drawn.recipe, 0.8)
    again = service.generate(**recipe.settings())
    assert np.array_equal(pixels(again.image), pixels(drawn.image))
    assert "Denoising strength: 0.8" in recipe.as_web_ui()


@pytest.mark.parametrize(
    "kind",
    [
        ModelType.STABLE_DIFFUSION_XL_10_BASE,
        ModelType.STABLE_DIFFUSION_15_INPAINTING,
        ModelType.STABLE_DIFFUSION_35,
        ModelType.FLUX_DEV_1,
        ModelType.QWEN,
        ModelType.Z_IMAGE,
    ],
)
def test_other_architectures_begin_with_pictures_on_their_own_networks(kind, half):
    family = family_for(kind)
    parts = family.tiny()
    weights = [weight.clone() for weight in parts.vae.parameters()]
    own = parts.pipeline
    definition = SampleConfig.for_model(kind, prompt="a fox", width=64, height=64)
    definition = definition.update(diffusion_steps=2, seed=3)
    source = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for mask in (None, half):
        (drawn,) = sample_batch(
            family, parts, definition, [3], start=Start(source, mask, strength=0.5)
        )
        assert drawn.size == (64, 64)
    assert parts.pipeline is own
    assert all(torch.equal(*pair) for pair in zip(weights, parts.vae.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image": "gone.png"}, r"gone.png does not exist. Check its path"),
        ({"image": __file__}, "no picture that can be read"),
        ({"image": 7}, "image is a int. Give a file, a picture or a result"),
        ({"mask": Image.new("L", (8, 8))}, "A mask is given without a picture"),
        ({"image": "?", "strength": 0.0}, "strength is 0.0, but must lie above 0"),
        ({"image": "?", "strength": float("nan")}, "strength is nan, but must lie"),
        ({"image": "?", "strength": "much"}, "strength is 'much', but must be a number"),
        ({"image": "?", "strength": 0.1, "steps": 4}, "of 4 steps less than one.*nearest is 0.25"),
        ({"clip_skip": 99}, "clip_skip is 99, but .* reads at least one of .*The nearest is"),
        ({"clip_skip": -1}, "clip_skip is -1, but must be a count of layers"),
        ({"n": 0}, "n is 0, but must lie between 1 and 64"),
    ],
)
def test_a_start_that_cannot_be_is_refused_in_words(service, apple, settings, words):
    if settings.get("image") == "?":
        settings = {**settings, "image": apple}
    with pytest.raises(ConfigError, match=words):
        service.batch("a fox", **{"n": 1, **settings})
    assert service.status.state == "ready"


def test_a_family_that_draws_from_text_alone_names_those_that_do_not(tmp_path, half):
    folder = tmp_path / "pixart"
    family_for(ModelType.PIXART_ALPHA).tiny().pipeline.save_pretrained(folder)
    service = InferenceService(tmp_path / "gallery").load(folder)
    with pytest.raises(ConfigError, match=r"image is given, but PixArt.* draws from text alone"):
        service.generate("a fox", image=half)
    with pytest.raises(ConfigError, match=r"mask .*or load one of .*Stable Diffusion"):
        service.generate("a fox", image=half, mask=half)
    with pytest.raises(ConfigError, match=r"clip_skip is 1, .*reads every layer .*nearest is 0"):
        service.generate("a fox", clip_skip=1)


# several, and on the way ------------------------------------------------------------------------


def test_a_batch_draws_what_single_pictures_are(service):
    several = service.batch("a fox", 3, **SETTINGS)
    assert [one.recipe.seed for one in several] == [7, 8, 9]
    for one in several:
        alone = service.generate("a fox", **{**SETTINGS, "seed": one.recipe.seed})
        assert abs(pixels(one.image) - pixels(alone.image)).max() <= 2
        assert read_recipe(one.path) == one.recipe


def test_previews_come_with_each_step_and_look_like_what_comes(service):
    *previews, result = service.stream("a red apple", **SETTINGS)
    assert [(shown.step, shown.total) for shown in previews] == [(n, 6) for n in range(1, 7)]
    assert isinstance(result, Result)
    last = pixels(previews[-1].image.resize((64, 64), Image.Resampling.BILINEAR))
    assert abs(last - pixels(result.image)).mean() < 40
    assert np.corrcoef(last.ravel(), pixels(result.image).ravel())[0, 1] > 0.85
    assert np.array_equal(
        pixels(service.generate("a red apple", **SETTINGS).image), pixels(result.image)
    )
    sparse = list(service.stream("a red apple", every=4, **SETTINGS))
    assert [type(shown).__name__ for shown in sparse] == ["Preview", "Result"]


def test_leaving_a_stream_cancels_within_a_step(service):
    steps = []
    stop = service.subscribe(lambda: steps.append(service.status.done))
    for shown in service.stream("a fox", **{**SETTINGS, "steps": 200}):
        if shown.step == 2:
            break
    stop()
    assert max(steps) <= 4
    assert service.status.state == "ready"
    for settings, words in [({"steps": 0}, "steps is 0"), ({"every": 0}, "every is 0")]:
        with pytest.raises(ConfigError, match=words):
            list(service.stream("a fox", **settings))


def test_an_interrupt_while_a_stream_waits_in_line_ends_no_other_picture(service):
    other, begun = [], threading.Event()
    drawing = threading.Thread(
        target=lambda: other.append(
            service.generate("a fox", preview=lambda _: begun.set(), **{**SETTINGS, "steps": 60})
        )
    )
    drawing.start()
    assert begun.wait(60)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(service.stream("an owl", **{**SETTINGS, "steps": 500}))
    finally:
        signal.signal(signal.SIGALRM, before)
    drawing.join(60)
    assert len(other) == 1
    assert service.generate("a fox", **SETTINGS).recipe.steps == 6, "the owl ended by itself"


def test_cancelling_a_picture_from_a_picture_ends_it_within_a_step(service, apple):
    seen = []

    def watch(preview):
        seen.append(preview.step)
        service.cancel()

    with pytest.raises(Cancelled):
        service.generate("a fox", image=apple, strength=0.9, preview=watch, steps=50)
    assert seen == [1]


# prompts ----------------------------------------------------------------------------------------


def test_weights_are_those_of_compel_and_weight_one_changes_nothing(service, pipeline):
    bare = service.generate("a red apple", **SETTINGS).image
    one = service.generate("a (red:1.0) apple", **SETTINGS).image
    more = service.generate("a (red:1.6) apple", **SETTINGS)
    assert abs(pixels(one) - pixels(bare)).max() <= 2
    found = compel.CompelForSD(pipeline)("a (red)1.6 apple", negative_prompt="")
    expected = plain(
        pipeline,
        prompt_embeds=found.embeds,
        negative_prompt_embeds=found.negative_embeds,
        width=64,
        height=64,
    )
    assert abs(pixels(more.image) - expected).max() <= 1
    assert abs(pixels(more.image) - pixels(bare)).max() > 20
    assert more.notes == ()


def test_weights_without_their_library_or_beside_skipped_layers_are_refused(service, monkeypatch):
    with pytest.raises(ConfigError, match="clip_skip is 1, which does not go with weights"):
        service.generate("a (red:1.3) apple", clip_skip=1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"weights such as .*Run pip install compel"):
        service.generate("a (red:1.3) apple")
    service.generate(r"a fox \(animal:1\)", steps=1)


def test_skipped_layers_are_those_of_the_text_encoder(service):
    encoder = service._held.model._owner[1].pipeline.text_encoder
    results = {}
    for skip in (0, 1):
        results[skip] = service.generate("a fox", clip_skip=skip, **SETTINGS)
    assert abs(pixels(results[0].image) - pixels(results[1].image)).mean() > 0.5
    layers, encoder.encoder.layers = encoder.encoder.layers, encoder.encoder.layers[:-1]
    try:
        shorter = service.generate("a fox", **SETTINGS).image
    finally:
        encoder.encoder.layers = layers
    assert np.array_equal(pixels(shorter), pixels(results[1].image))
    text = results[1].recipe.as_web_ui()
    assert "Clip skip: 2" in text
    assert from_web_ui(text).clip_skip == 1
