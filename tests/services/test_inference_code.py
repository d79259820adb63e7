"""The code of a picture, executed: plain diffusers draws the very same, whatever decided it."""

import copy
import importlib.util
import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

import ot_notebook as ot
from modules.adapters.files import save_tensors, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.config import ConfigError, ModelFormat, ModelType, TrainConfig
from modules.families import all_families, family_for
from ot_notebook.preset_files import find
from ot_notebook.services.inference_code import STAGES, diffusers_code
from ot_notebook.services.inference_gallery import InferenceGallery
from ot_notebook.services.inference_recipe import Recipe, plain_options, read_recipe
from ot_notebook.services.inference_service import InferenceService

torch.set_num_threads(1)
SETTINGS = {"seed": 7, "steps": 3, "cfg_scale": 3.0}


def pixels(image):
    return np.asarray(image.convert("RGB"), dtype=int)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return InferenceService(tmp_path_factory.mktemp("gallery")).load(ot.assets.model())


@pytest.fixture(scope="module")
def lora(service, tmp_path_factory):
    """An adapter of UNet and text encoder, as kohya's scripts write it."""
    family, parts = service._held.model._owner
    networks = {
        "unet": copy.deepcopy(parts.denoiser),
        "text_encoder": copy.deepcopy(parts.pipeline.text_encoder),
    }
    for name, network in networks.items():
        chosen = matching_layers(network, "attn", False)
        add_lora(network, chosen, rank=4, alpha=2, dropout=0, seed=len(name))
    layers = list(lora_layers(networks))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers:
            layer.up.copy_(torch.randn(layer.up.shape, generator=noise) * 0.05)
    file = tmp_path_factory.mktemp("loras") / "style.safetensors"
    save_tensors(to_format(layers, family, ModelFormat.KOHYA_LORA), file, torch.float32)
    return file


@pytest.fixture(scope="module")
def word(service, tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "ohwx.safetensors"
    width = service._held.model._owner[1].pipeline.text_encoder.config.hidden_size
    noise = torch.Generator().manual_seed(1)
    save_file({"emp_params": torch.randn(2, width, generator=noise)}, file)
    return file


@pytest.fixture(scope="module")
def start():
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((32, 0, 64, 64), fill=255)
    return {"image": Image.fromarray(noise).resize((64, 64)), "mask": mask}


def executed(recipe, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(diffusers_code(recipe), "picture.py", "exec"), {})
    return pixels(Image.open("picture.png"))


WAYS = {
    "lora": ["none", "one", "weak"],
    "word": [False, True],
    "prompt": ["plain", "weighted", "skip"],
    "begin": ["text", "image", "mask"],
    "scheduler": ["DDIM", "EULER_A", "DPMPP_SDE_KARRAS", "UNIPC"],
}


def pairs_of(ways):
    """Combinations in which any two values of different settings come together."""
    names = list(ways)
    missing = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(ways[a], ways[b])
    }
    found = []
    while missing:
        every = (
            dict(zip(names, values, strict=True)) for values in itertools.product(*ways.values())
        )
        best = max(every, key=lambda case: sum(case[a] == x and case[b] == y
                                               for a, x, b, y in missing))  # fmt: skip
        found.append(best)
        missing = {one for one in missing if best[one[0]] != one[1] or best[one[2]] != one[3]}
    return found


@pytest.mark.parametrize("case", pairs_of(WAYS), ids=lambda case: "-".join(map(str, case.values())))
def test_every_two_settings_together_draw_the_same(
    service, lora, word, start, case, tmp_path, monkeypatch
):
    stack = {"none": [], "one": [(lora, 1.0)], "weak": [(lora, -0.4)]}
    service.set_loras(stack[case["lora"]])
    service.set_embeddings([("<ohwx>", word)] if case["word"] else [])
    subject = "<ohwx>" if case["word"] else "fox"
    prompt = f"a ({subject}:1.4)" if case["prompt"] == "weighted" else f"a {subject}"
    begin = {"text": [], "image": ["image"], "mask": ["image", "mask"]}[case["begin"]]
    settings = {
        **SETTINGS,
        **{name: start[name] for name in begin},
        **({"strength": 0.7, "steps": 4} if begin else {}),
        **({"clip_skip": 1} if case["prompt"] == "skip" else {}),
    }
    result = service.generate(
        prompt, negative_prompt="blue", scheduler=case["scheduler"], **settings
    )
    recipe = read_recipe(result.path)
    assert recipe == result.recipe
    drawn = executed(recipe, tmp_path, monkeypatch)
    assert abs(drawn - pixels(result.image)).max() <= 2


# other architectures ----------------------------------------------------------------------------


def drawn_twice(kind, folder, monkeypatch, load=None, **settings):
    """A picture of a toy model by the service, and by the code that it gives."""
    family_for(kind).tiny().pipeline.save_pretrained(folder / "model")
    service = InferenceService(folder / "gallery")
    service.load(folder / "model", kind, device="cpu", **(load or {}))
    asked = {"prompt": "a fox", "seed": 7, "steps": 2, "width": 64, "height": 64, **settings}
    result = service.generate(**asked)
    code = executed(result.recipe, folder, monkeypatch)
    return pixels(result.image), code


@pytest.mark.parametrize(
    ("kind", "load", "settings"),
    [
        (ModelType.STABLE_DIFFUSION_XL_10_BASE, {"dtype": "BFLOAT_16"}, {"clip_skip": 1}),
        (ModelType.STABLE_DIFFUSION_15_INPAINTING, {}, {"clip_skip": 1}),
        (ModelType.STABLE_DIFFUSION_35, {}, {"clip_skip": 1, "negative_prompt": "red"}),
        (ModelType.CHROMA_1, {}, {"negative_prompt": "red"}),
    ],
)
def test_other_architectures_draw_the_same(kind, load, settings, tmp_path, monkeypatch):
    ours, code = drawn_twice(kind, tmp_path, monkeypatch, load, **settings)
    assert abs(ours - code).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [family.model_types[0] for family in all_families() if family.pipeline not in STAGES],
    ids=lambda kind: kind.value,
)
def test_every_architecture_draws_the_same(kind, tmp_path, monkeypatch):
    ours, code = drawn_twice(kind, tmp_path, monkeypatch)
    assert abs(ours - code).max() <= 2


def test_a_film_has_all_its_frames_a_file_and_its_code(tmp_path, monkeypatch):
    family = family_for(ModelType.WAN_2)
    family.tiny().pipeline.save_pretrained(tmp_path / "model")
    service = InferenceService(tmp_path / "gallery").load(tmp_path / "model", device="cpu")
    assert service.defaults["frames"] == 1
    asked = {"seed": 7, "steps": 2, "width": 64, "height": 32, "frames": 5, "cfg_scale": 2.0}
    *previews, result = service.stream("a fox", **asked)
    assert [shown.image.size for shown in previews] == [(8, 4)] * 2
    assert [frame.size for frame in result.frames] == [(64, 32)] * 5
    assert not np.array_equal(pixels(result.frames[0]), pixels(result.frames[4]))
    assert np.array_equal(pixels(result.image), pixels(result.frames[0]))
    recipe = read_recipe(result.path)
    assert (recipe.frames, recipe.as_sample().frames) == (5, 5)
    assert result.film == result.path.with_suffix(".mp4")
    assert b"ftyp" in result.film.read_bytes()[:12]
    assert "<video" in result._repr_html_()
    monkeypatch.chdir(tmp_path)
    exec(compile(diffusers_code(recipe), "film.py", "exec"), {})
    for number, frame in enumerate(result.frames):
        code = pixels(Image.open(f"frame-{number:04}.png"))
        assert abs(code - pixels(frame)).max() <= 2
    grid = service.grid("a fox", x={"seed": [7, 8]}, **{**asked, "seed": None})
    assert [one.film.suffix for one in grid.results] == [".mp4", ".mp4"]
    for frames, words in [(6, "nearest is 5"), (0, "nearest is 1"), (10**6, "nearest is 1025")]:
        with pytest.raises(ConfigError, match=f"1 above a multiple of 4.*{words}"):
            service.generate("a fox", frames=frames)


def test_without_an_encoder_a_film_is_a_folder_of_frames(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    gallery = InferenceGallery(tmp_path)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    film = gallery.keep_film(tmp_path / "one.png", frames, 16)
    assert sorted(path.name for path in film.iterdir()) == ["00000.png", "00001.png"]


def test_a_model_of_pictures_draws_no_film(service):
    with pytest.raises(ConfigError, match=r"frames is 5, but .* draws single pictures"):
        service.generate("a fox", frames=5)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ('{"_class_name": "UNet2DConditionModel"}', "diffusers.UNet2DConditionModel"),
        ('{"architectures": ["CLIPTextModel"]}', "transformers.CLIPTextModel"),
        ('{"_class_name": "X(); import os; os.remove"}', None),
        ('{"architectures": ["class"]}', None),
        ('{"architectures": []}', None),
        ('{"architectures": "CLIPTextModel"}', None),
        ('{"hidden_size": 4}', None),
        ("[1]", None),
    ],
)
def test_a_backup_names_classes_and_nothing_else(tmp_path, told, kind):
    config = TrainConfig.load(find("emoji LoRA"))[0].update(training_method="FINE_TUNE")
    for name in ("onetrainer_config", "unet"):
        (tmp_path / name).mkdir()
    (tmp_path / "onetrainer_config" / "args.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "unet" / "config.json").write_text(told)
    asked = {"seed": 7, "width": 64, "height": 64, "steps": 3, "cfg_scale": 3.0}
    given = {"prompt": "a fox", "model": str(tmp_path), "model_type": "STABLE_DIFFUSION_15"}
    recipe = Recipe.from_dict({**given, **asked})
    if kind is None:
        with pytest.raises(ValueError, match="does not name the class of its network"):
            diffusers_code(recipe)
        return
    assert f"unet={kind}.from_pretrained({str(tmp_path / 'unet')!r})" in diffusers_code(recipe)


def test_options_of_a_strangers_picture_are_names_and_numbers_that_code_can_hold():
    told = {"guidance_scale": 3.0, "class": 1, "a b": 2, "eta": math.nan, "cfg": math.inf, 3: 4}
    assert plain_options({str(k): v for k, v in told.items()}) == (("guidance_scale", 3.0),)
