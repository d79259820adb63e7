"""The inference service on the embedded model, held to diffusers' own pipeline."""

import copy
import gc
import io
import json
import struct
import threading
import time
import weakref
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

import ot_notebook as ot
from modules.adapters.files import save_tensors, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.adapters.stack import AdapterError
from modules.config import ConfigError, ModelFormat, ModelType
from modules.families import family_for
from ot_notebook.services.inference_recipe import Recipe, from_web_ui, read_recipe
from ot_notebook.services.inference_service import Cancelled, InferenceService, NoModelError

SETTINGS = {"seed": 7, "steps": 4, "cfg_scale": 3.0, "scheduler": "DDIM"}
torch.set_num_threads(1)


def pixels(image):
    return np.asarray(image.convert("RGB"), dtype=int)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return InferenceService(tmp_path_factory.mktemp("gallery")).load(ot.assets.model())


@pytest.fixture
def service(loaded):
    yield loaded
    loaded.set_loras([])


@pytest.fixture(scope="module")
def pipeline():
    """The same model in diffusers alone."""
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline.from_pretrained(ot.assets.model(), safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


def plain(pipeline, prompt="a fox", **changes):
    arguments = {
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "width": 64,
        "height": 64,
        "generator": torch.Generator().manual_seed(7),
        **changes,
    }
    return pixels(pipeline(prompt, **arguments).images[0])


@pytest.fixture(scope="module")
def loras(tmp_path_factory, pipeline):
    """Two adapter files of unlike layers and layouts that change pictures visibly."""
    folder = tmp_path_factory.mktemp("loras")
    family = family_for(ModelType.STABLE_DIFFUSION_15)
    files = []
    for seed, (chosen, model_format) in enumerate(
        [("attentions", ModelFormat.KOHYA_LORA), ("", ModelFormat.DIFFUSERS_LORA)]
    ):
        network = copy.deepcopy(pipeline.unet)
        add_lora(
            network, matching_layers(network, chosen, False), rank=4, alpha=2, dropout=0, seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        layers = list(lora_layers({"unet": network}))
        with torch.no_grad():
            for layer in layers:
                layer.up.copy_(torch.randn(layer.up.shape, generator=generator) * 0.05)
        files.append(folder / f"style{seed}.safetensors")
        save_tensors(to_format(layers, family, model_format), files[-1], torch.float32)
    return files


# pictures ---------------------------------------------------------------------------------------


def test_a_picture_is_the_one_that_diffusers_draws(service, pipeline):
    for guidance in (3.0, 1.0):
        drawn = service.generate("a fox", **{**SETTINGS, "cfg_scale": guidance}).image
        expected = plain(pipeline, guidance_scale=guidance)
        assert np.array_equal(pixels(drawn), expected)
    negative = service.generate("a fox", negative_prompt="red", **SETTINGS).image
    assert np.array_equal(pixels(negative), plain(pipeline, negative_prompt="red"))


def test_several_loras_and_their_strengths_are_those_of_diffusers(service, pipeline, loras):
    before = service.generate("a fox", **SETTINGS).image
    names = ["one", "two"]
    try:
        for path, name in zip(loras, names, strict=True):
            pipeline.load_lora_weights(path, adapter_name=name)
        for strengths in ([1.0, 1.0], [0.3, -0.5], [0.0, 2.0]):
            pipeline.set_adapters(names, strengths)
            service.set_loras(list(zip(loras, strengths, strict=True)))
            drawn = pixels(service.generate("a fox", **SETTINGS).image)
            assert abs(drawn - plain(pipeline)).max() <= 2
            assert abs(drawn - pixels(before)).mean() > 1
    finally:
        pipeline.unload_lora_weights()
    service.set_loras([])
    assert np.array_equal(pixels(service.generate("a fox", **SETTINGS).image), pixels(before))


def test_changing_strengths_reads_and_copies_nothing(service, loras):
    service.set_loras([(path, 1.0) for path in loras])
    begun = time.monotonic()
    for strength in range(20):
        service.set_loras([(path, strength / 20) for path in loras])
    assert (time.monotonic() - begun) / 20 < 0.05


def test_a_lora_file_that_is_written_anew_is_read_anew(service, loras, tmp_path):
    file = tmp_path / "changing.safetensors"
    tensors = load_file(loras[0])
    save_file(tensors, file)
    first = service.generate("a fox", loras=[(file, 1.0)], **SETTINGS).image
    save_file({key: tensor * 0 for key, tensor in tensors.items()}, file)
    second = service.generate("a fox", loras=[(file, 1.0)], **SETTINGS).image
    assert np.array_equal(pixels(second), pixels(service.generate("a fox", **SETTINGS).image))
    assert not np.array_equal(pixels(first), pixels(second))


def test_a_seed_that_is_not_given_is_another_each_time_and_is_told(service):
    one, two = (service.generate("a fox", steps=1) for _ in range(2))
    assert one.recipe.seed != two.recipe.seed
    again = service.generate("a fox", steps=1, seed=one.recipe.seed)
    assert np.array_equal(pixels(again.image), pixels(one.image))


# requests ---------------------------------------------------------------------------------------


def test_cancel_ends_a_picture_within_one_step(service):
    steps = []

    def watch():
        if service.status.state == "drawing" and service.status.done:
            steps.append(service.status.done)
            service.cancel()

    stop = service.subscribe(watch)
    try:
        with pytest.raises(Cancelled, match="cancelled"):
            service.generate("a fox", seed=1, steps=50)
    finally:
        stop()
    assert steps == [1]
    assert service.status.state == "ready"
    service.generate("a fox", seed=1, steps=1)


def test_requests_from_two_threads_are_served_one_after_the_other(service):
    order, results = [], {}
    stop = service.subscribe(lambda: order.append((service.status.total, service.status.done)))

    def draw(steps):
        results[steps] = service.generate("a fox", seed=1, steps=steps).recipe.steps

    threads = [threading.Thread(target=draw, args=(steps,)) for steps in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stop()
    assert results == {3: 3, 5: 5}
    totals = [total for total, done in order if done]
    assert totals == sorted(totals) or totals == sorted(totals, reverse=True)


def test_observers_that_raise_are_reported_and_end_neither_picture_nor_grid(service):
    def broken_follower(result):
        raise KeyError("follower")

    def broken_listener():
        raise KeyError("listener")

    kept = []
    ends = [
        service.subscribe(broken_listener),
        *map(service.follow, (broken_follower, kept.append)),
    ]
    try:
        with pytest.warns(RuntimeWarning) as warned:
            shown = service.grid("a fox", x={"cfg_scale": [1, 2]}, steps=1)
        alone = service.generate("a fox", seed=1, steps=2)
    finally:
        for end in ends:
            end()
    assert shown.complete
    assert [one.path for one in kept] == [one.path for one in (*shown.results, alone)]
    assert service.status.state == "ready"
    log = [line.text for line in service._held.trainer.history.log if line.level == "warning"]
    for told in ([str(one.message) for one in warned], log):
        for name in ("broken_follower", "broken_listener"):
            (about,) = (text for text in told if name in text)  # once, however often it raised
            assert "raised KeyError" in about
            assert "test_inference.py, line" in about


def test_unload_gives_the_networks_back(tmp_path):
    service = InferenceService(tmp_path).load(ot.assets.model())
    network = weakref.ref(service._held.model._owner[1].denoiser)
    service.generate("a fox", steps=1)
    service.unload()
    gc.collect()
    assert network() is None
    assert service.status.state == "empty"


# what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0}, r"width is 0, .* multiples of 4 px.*The nearest is 4"),
        ({"width": 7}, r"width is 7, .*The nearest is 8"),
        ({"height": 67}, r"height is 67, .*The nearest is 68"),
        ({"width": 100_000}, r"width is 100000.*The nearest is 16384"),
        ({"width": 64.5}, "width is 64.5"),
        ({"cfg_scale": float("nan")}, "cfg_scale is nan, but must be a finite number"),
        ({"steps": 0}, "steps is 0, but must be at least 1"),
        ({"scheduler": "fastest"}, "scheduler is 'fastest', but must be one of DDIM"),
        ({"prompt": "x" * 100_000}, "prompt has 100,000 characters, but at most 20,000"),
        ({"seed": 2**70}, "seed is 1180591620717411303424, but must lie within 64 bits"),
        ({"strength": 0.5}, "A strength is given without a picture"),
        ({"colour": "red"}, "colour is no setting. Use one of negative_prompt, seed"),
        ({"loras": [("a.safetensors", float("nan"))]}, "strength of a.safetensors is nan"),
        ({"loras": ["a.safetensors"]}, r"Each is a pair: \(path, strength\)"),
    ],
    ids=str,
)
def test_what_no_picture_can_have_is_refused_and_the_next_one_is_drawn(service, settings, words):
    with pytest.raises(ConfigError, match=words):
        service.generate(**{"prompt": "a fox", **settings})
    assert service.status.state == "ready"
    service.generate("a fox", steps=1)


def test_without_a_model_it_says_how_to_load_one(tmp_path):
    service = InferenceService(tmp_path)
    for action in (service.generate, lambda: service.set_loras([]), lambda: service.defaults):
        with pytest.raises(NoModelError, match=r"No model is loaded. .*ot.assets.model"):
            action()


def test_what_is_no_model_is_refused_by_what_it_is(tmp_path, loras):
    service = InferenceService(tmp_path / "gallery")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("not a model")
    cases = [
        (tmp_path / "gone", "gone does not exist"),
        (tmp_path / "empty", "has no model_index.json"),
        (tmp_path / "text.safetensors", "is no safetensors file"),
        (loras[0], "is a LoRA, not a model"),
        ("", "No model is named"),
    ]
    for source, words in cases:
        with pytest.raises(ConfigError, match=words):
            service.load(source)
        assert service.status.state == "empty"
    for how, words in [
        ({"dtype": "INT_7"}, "dtype is 'INT_7'. Use one of FLOAT_32, BFLOAT_16, FLOAT_16"),
        ({"device": "toaster"}, r"device is 'toaster', which is not there \("),
        ({"embeddings": "cat.safetensors"}, "Give a list of files"),
    ]:
        with pytest.raises(ConfigError, match=words):
            service.load(ot.assets.model(), **how)
        assert service.status.state == "empty"
    with pytest.raises(TypeError, match="load\\(\\) was given a list"):
        service.load([1])
    with pytest.raises(ot.CommandRefused, match="no run has been started"):
        service.load("live")
    service.load(ot.assets.model(), loras=[(loras[0], 0.5)])
    for source in (tmp_path / "gone", "live"):
        with pytest.raises((ConfigError, ot.CommandRefused)):
            service.load(source)
        assert (service.status.state, service.status.loaded) == ("ready", 1)  # what was there stays
    assert service.loras == ((loras[0], 0.5),)
    assert service.generate("a fox", steps=1).recipe.loras == ((str(loras[0]), 0.5),)


def test_a_lora_that_does_not_fit_is_refused_and_the_others_stay(service, loras, tmp_path):
    service.set_loras([(loras[0], 0.5)])
    flux = tmp_path / "flux.safetensors"
    down, up = torch.zeros(4, 64), torch.zeros(64, 4)
    stem = "transformer.single_transformer_blocks.0.attn.to_q"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, flux)
    sdxl = tmp_path / "sdxl.safetensors"
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    narrow = {f"{stem}.lora_down.weight": torch.zeros(4, 2048), f"{stem}.lora_up.weight": up}
    save_file(narrow, sdxl)
    other = tmp_path / "picture.safetensors"
    save_file({"pixels": down}, other)
    cases = [
        (flux, "adapter for flux, but the model is stable-diffusion-v1: 2 of 2 keys do not fit"),
        (sdxl, "adapter for stable-diffusion-xl, but the model is stable-diffusion-v1"),
        (other, "holds no adapter: its keys are such as pixels"),
        (tmp_path / "gone.safetensors", "gone.safetensors does not exist"),
    ]
    for path, words in cases:
        with pytest.raises(AdapterError, match=words):
            service.set_loras([(path, 1.0)])
        assert service.loras == ((loras[0], 0.5),)
    service.generate("a fox", steps=1)


def test_a_lora_that_vanishes_is_missed_by_name(service, loras, tmp_path):
    file = tmp_path / "here.safetensors"
    save_file(load_file(loras[0]), file)
    service.set_loras([(file, 1.0)])
    file.unlink()
    with pytest.raises(AdapterError, match=r"here.safetensors does not exist"):
        service.generate("a fox", steps=1)


def test_a_prompt_that_is_cut_off_is_told(service):
    assert service.generate("a fox", steps=1).notes == ()
    (note,) = service.generate("a fox " * 40, steps=1).notes
    assert "the model has read the first 24" in note


# files ------------------------------------------------------------------------------------------


def test_a_png_gives_its_settings_back_and_draws_itself_again(service, loras):
    prompt = 'a "fox": naïve, 狐\nNegative prompt: no'
    service.set_loras([(loras[1], 0.7)])
    result = service.generate(prompt, negative_prompt="blue, red", **SETTINGS)
    recipe = read_recipe(result.path)
    assert recipe == result.recipe
    again = service.generate(**recipe.settings(), loras=recipe.loras)
    assert np.array_equal(pixels(again.image), pixels(Image.open(result.path)))


def test_the_text_chunk_is_what_web_uis_write():
    recipe = Recipe(
        "a fox", "blue", 7, 64, 32, 20, 3.5, "DPMPP_KARRAS", "/m/emoji.safetensors", "",
        (("/l/style.safetensors", 0.7),),
    )  # fmt: skip
    assert recipe.as_web_ui() == (
        "a fox <lora:style:0.7>\n"
        "Negative prompt: blue\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.5, Seed: 7, "
        "Size: 64x32, Model: emoji, Version: ot_notebook"
    )
    read = from_web_ui(recipe.as_web_ui())
    assert (read.prompt, read.loras) == ("a fox", (("style", 0.7),))
    assert (read.scheduler, read.steps, read.width, read.height) == ("DPMPP_KARRAS", 20, 64, 32)


@pytest.mark.parametrize(
    ("chunk", "text", "words"),
    [
        ("ot_notebook", "{", "Expecting property name"),
        ("ot_notebook", "[" * 100_000, "nested without end|no settings of a picture"),
        ("ot_notebook", "[1, 2]", "no settings of a picture"),
        ("ot_notebook", '{"prompt": 1}', "no settings of a picture"),
        ("ot_notebook", '{"prompt": "a", "seed": 1, "width": 1e9, "height": 8, "steps": 1, '
         '"cfg_scale": 1}', "width is 1000000000"),
        ("ot_notebook", "x" * 2_000_000, "too many"),
        ("parameters", "a fox\nSteps: many, Seed: 1", "is '', but must be a number"),
        ("parameters", "a fox", "no Steps"),
        ("comment", "hello", "holds no settings"),
        ("ot_notebook", '{"prompt": "a", "seed": 1, "width": 8, "height": 8, "steps": 1, '
         '"cfg_scale": 1, "dtype": "EVIL"}', "'EVIL' is not a valid DataType"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_hostile_chunk_is_refused_in_words(tmp_path, chunk, text, words):
    info = PngInfo()
    info.add_text(chunk, text)
    Image.new("RGB", (8, 8)).save(tmp_path / "odd.png", pnginfo=info)
    with pytest.raises(ValueError, match=words):
        read_recipe(tmp_path / "odd.png")


def test_a_stranger_s_names_never_reach_the_code():
    given = {"prompt": "a", "seed": 1, "width": 8, "height": 8, "steps": 1, "cfg_scale": 1}
    odd = {"x=1); evil(": 1, "guidance_scale": 2.0, "prompt": "b", "eta": [1]}
    recipe = Recipe.from_dict({**given, "model_type": "STABLE_DIFFUSION_15", "options": odd})
    assert recipe.options == (("guidance_scale", 2.0),)
    code = InferenceService.as_python(None, recipe)
    assert "evil" not in code
    assert "guidance_scale=2.0" in code


def test_a_picture_of_absurd_size_is_refused_before_it_is_opened(tmp_path):
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "PNG")
    header = b"IHDR" + struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    raw = plain.getvalue()
    odd = raw[:12] + header + struct.pack(">I", zlib.crc32(header)) + raw[33:]
    with pytest.raises(ValueError, match=r"The picture is too large \(Image size"):
        read_recipe(io.BytesIO(odd), "The picture")


def test_the_gallery_lists_what_is_there_even_without_its_index(tmp_path):
    service = InferenceService(tmp_path / "gallery").load(ot.assets.model())
    first = service.generate("a fox", seed=1, steps=1)
    second = service.generate("a cat", seed=2, steps=1)
    index = tmp_path / "gallery" / "index.jsonl"
    assert [json.loads(line)["seed"] for line in index.read_text().splitlines()] == [1, 2]
    expected = [first.path, second.path]
    assert sorted(service.gallery.table()["path"]) == sorted(expected)
    index.write_text(index.read_text()[:-30])  # a torn line
    assert sorted(p.recipe.prompt for p in service.gallery.pictures()) == ["a cat", "a fox"]
    index.unlink()
    first.path.unlink()
    assert [picture.recipe for picture in service.gallery.pictures()] == [second.recipe]


# grids ------------------------------------------------------------------------------------------


def test_a_grid_draws_every_combination_and_labels_it(service, loras):
    service.set_loras([(loras[0], 1.0), (loras[1], 0.0)])
    shown = service.grid(
        "a fox", x={"lora:style1": [0.0, 1.0]}, y={"seed": [7, 8, 9]}, steps=2, scheduler="DDIM"
    )
    assert shown.complete
    assert list(shown.table["seed"]) == [7, 7, 8, 8, 9, 9]
    assert list(shown.table["lora:style1"]) == [0.0, 1.0] * 3
    alone = service.generate(
        "a fox", seed=8, steps=2, scheduler="DDIM", loras=[(loras[0], 1.0), (loras[1], 1.0)]
    )
    assert abs(pixels(shown.results[3].image) - pixels(alone.image)).max() <= 1
    assert shown.image.width > 2 * 64
    assert shown.image.height > 3 * 64
    assert Image.open(shown.path).size == shown.image.size
    # the labels are the only black on white above the first picture
    assert pixels(shown.image)[:22].min() < 80


def test_a_grid_whose_values_are_bad_is_refused_before_anything_is_drawn(service):
    count = len(service.gallery.pictures())
    for axes, words in [
        ({"x": {"seed": [1], "steps": [1]}}, "Write x="),
        ({"x": {"colour": [1]}}, "'colour' is no setting. Use one of prompt, negative_prompt"),
        ({"x": {"lora": [1]}}, "Load a LoRA"),
        ({"x": {"seed": []}}, "seed has no values"),
        ({"x": {"seed": 5}}, r"seed is 5, which is no list. Write \[5\]"),
        ({"x": {"seed": [1]}, "y": {"seed": [2]}}, "x and y are both seed"),
        ({"x": {"width": [64, 65]}}, "width is 65"),
        ({"x": {"seed": list(range(401))}}, "401 pictures"),
    ]:
        with pytest.raises(ConfigError, match=words):
            service.grid("a fox", **axes)
    assert len(service.gallery.pictures()) == count


def test_a_cancelled_grid_keeps_what_was_drawn(service):
    def watch():
        if service.status.words.startswith("Picture 2"):
            service.cancel()

    stop = service.subscribe(watch)
    try:
        shown = service.grid("a fox", x={"cfg_scale": [1, 2, 3]}, steps=2)
    finally:
        stop()
    assert not shown.complete
    assert list(shown.table["cfg_scale"]) == [1]


def test_pictures_of_a_grid_that_differ_in_their_seed_alone_are_drawn_side_by_side(service):
    seen = []
    stop = service.subscribe(lambda: seen.append(service.status.words))
    try:
        seeds, scales = [3, 9, 4, 8, 1], [1.0, 2.0]
        shown = service.grid("a fox", x={"seed": seeds}, y={"cfg_scale": scales}, steps=2)
    finally:
        stop()
    assert [words for words in dict.fromkeys(seen) if words.startswith("Picture")] == [
        "Pictures 1 to 4 of 10",
        "Picture 5 of 10",
        "Pictures 6 to 9 of 10",
        "Picture 10 of 10",
    ]
    assert list(shown.table["seed"]) == seeds * 2
    for result in shown.results[1::4]:
        alone = service.generate(**result.recipe.settings())
        assert abs(pixels(result.image) - pixels(alone.image)).max() <= 1


def test_a_grid_ends_at_the_first_picture_that_cannot_be_kept(service, monkeypatch):
    def full(*_given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(service.gallery, "keep", full)
    seen = set()
    stop = service.subscribe(lambda: seen.add(service.status.words))
    try:
        with pytest.raises(OSError, match="No space left"):
            service.grid("a fox", x={"cfg_scale": list(range(1, 9))}, steps=2)
    finally:
        stop()
    assert "Picture 1 of 8" in seen
    assert "Picture 5 of 8" not in seen
    assert service.status.state == "ready"


def test_a_single_file_draws_as_its_folder_does(tmp_path):
    from modules.families.saving import save_model

    family = family_for(ModelType.STABLE_DIFFUSION_15)
    parts = family.tiny()
    folder, file = tmp_path / "tiny", tmp_path / "tiny.safetensors"
    parts.pipeline.save_pretrained(folder)  # beside the file: its settings
    save_model(family, parts, file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float32, {})
    drawn = []
    for source in (folder, file):
        service = InferenceService(tmp_path / "gallery").load(source)
        assert (service.status.model, service.status.model_type.value) == (
            "tiny",
            "STABLE_DIFFUSION_15",
        )
        drawn.append(pixels(service.generate("a fox", **SETTINGS).image))
    assert abs(drawn[0] - drawn[1]).max() <= 1
