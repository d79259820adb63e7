"""One prompt over all that a run has kept, grids of three axes, and settings for other programs."""

import gc
import json
import shutil
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import ot_notebook as ot
from modules.config import ConfigError, NoiseScheduler, SampleConfig
from ot_notebook.services.inference_model import InferenceModel
from ot_notebook.services.inference_recipe import Recipe, read_recipe
from ot_notebook.services.inference_service import InferenceService
from ot_notebook.services.trainer_service import TrainerService

torch.set_num_threads(1)
SETTINGS = {"seed": 7, "steps": 2, "cfg_scale": 3.0, "scheduler": "DDIM"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saves")


@pytest.fixture(scope="module")
def run(folder):
    """The quickstart on two pictures for six steps: a save at every second, a backup at the end."""
    return trained(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same as a whole model, with a backup at every third step."""
    return trained(
        tmp_path_factory.mktemp("whole"),
        training_method="FINE_TUNE",
        output_model_format="DIFFUSERS",
        output_model_destination=str(tmp_path_factory.mktemp("final") / "model"),
        learning_rate=1e-4,
        backup_after=3,
        backup_after_unit="STEP",
    )


def trained(folder, **changes):
    from modules.config import TrainConfig
    from ot_notebook.preset_files import find

    pictures = folder / "pictures"
    pictures.mkdir()
    for picture in sorted(ot.assets.dataset("line art").glob("*.png"))[:2]:
        shutil.copy(picture, pictures)
        shutil.copy(picture.with_suffix(".txt"), pictures)
    config, _ = TrainConfig.load(find("emoji LoRA"))
    service = TrainerService()
    config = config.update(
        workspace_dir=str(folder / "workspace"),
        cache_dir=str(folder / "cache"),
        output_model_destination=str(folder / "final.safetensors"),
        concepts=[{"name": "pictures", "path": str(pictures), "image_variations": 1}],
        samples=[],
        sample_after_unit="NEVER",
        batch_size=1,
        epochs=3,
        learning_rate=0.01,
        learning_rate_warmup_steps=1,
        save_every=2,
        save_every_unit="STEP",
        backup_before_save=False,
        tensorboard=False,
    )
    try:
        return service.start(config.update(**changes)).wait(120)
    finally:
        service.close()


@pytest.fixture(scope="module")
def service(folder):
    return InferenceService(folder / "gallery").load(ot.assets.model())


def pixels(result):
    return np.asarray(result.image, dtype=int)


def test_one_seed_is_drawn_with_every_save_of_a_run(service, run):
    saves = service.saves(run)
    assert [save.step for save in saves] == sorted({2, 4, 6} & {save.step for save in saves})
    assert len(saves) >= 2
    shown = service.grid("a fox", x={"save": saves}, **SETTINGS)
    assert list(shown.table["save"]) == [str(save) for save in saves]
    for save, result in zip(saves, shown.results, strict=True):
        alone = service.generate("a fox", loras=[(save.path, 1.0)], **SETTINGS)
        assert np.array_equal(pixels(result), pixels(alone))
    first, *_, last = shown.results
    assert not np.array_equal(pixels(first), pixels(last))
    by_id, by_folder = service.saves(run.workspace), service.saves(str(run.workspace))
    assert saves == by_id == by_folder


def test_a_save_takes_the_place_of_the_loaded_one_and_keeps_its_strength(service, run):
    saves = service.saves(run)
    service.set_loras([(saves[-1].path, 0.5)])
    try:
        shown = service.grid("a fox", x={"lora": [0.5, 1.0]}, y={"save": saves[:1]}, **SETTINGS)
    finally:
        service.set_loras([])
    assert [result.recipe.loras for result in shown.results] == [
        ((str(saves[0].path), 0.5),),
        ((str(saves[0].path), 1.0),),
    ]


def test_whole_models_are_drawn_one_at_a_time_and_the_loaded_one_comes_back(
    whole, tmp_path, monkeypatch
):
    networks = []
    kept = InferenceModel.__init__

    def counted(self, source, name, config, owner, *others):
        gc.collect()
        assert [one() for one in networks if one() is not None] == [], "two models at once"
        networks.append(weakref.ref(owner[1].denoiser))
        kept(self, source, name, config, owner, *others)

    service = InferenceService(tmp_path)
    saves = service.saves(whole)
    assert len(saves) >= 3
    assert all(save.whole is not None for save in saves)
    monkeypatch.setattr(InferenceModel, "__init__", counted)
    service.load(ot.assets.model())
    shown = service.grid("a fox", x={"seed": [7, 8]}, y={"save": saves}, **_without_seed())
    assert len(networks) == 1 + len(saves) + 1
    assert list(shown.table["save"]) == [str(save) for save in saves for _ in range(2)]
    assert service.status.model == "emoji"
    before = service.generate("a fox", **SETTINGS)
    pictures = [pixels(result) for result in shown.results[::2]]
    assert not np.array_equal(pictures[0], pictures[-1])
    assert not np.array_equal(pictures[-1], pixels(before))
    drawn = {one.path: result for one, result in zip(saves, shown.results[::2], strict=True)}
    one_of_each = {path.parent.name: path for path in drawn}
    assert "backup" in one_of_each
    assert len(one_of_each) > 1, "both saves and backups"
    for path in one_of_each.values():
        result = drawn[path]
        recipe = read_recipe(result.path)
        assert recipe.model == str(path)
        monkeypatch.chdir(tmp_path)
        exec(compile(service.as_python(recipe), "code", "exec"), {})
        assert abs(pixels(result) - np.asarray(Image.open("picture.png"), dtype=int)).max() <= 2
    service.load(saves[0].path)
    assert abs(pixels(service.generate("a fox", **SETTINGS)) - pictures[0]).max() <= 1


def test_saves_of_a_whole_run_need_no_model_to_be_loaded(whole, tmp_path):
    service = InferenceService(tmp_path)
    shown = service.grid("a fox", x={"save": service.saves(whole)[:1]}, steps=1)
    assert len(shown.results) == 1
    assert service.status.state == "empty"
    with pytest.raises(ConfigError, match="width is 67"):
        service.grid("a fox", x={"save": service.saves(whole)[:1]}, width=67)


def _without_seed():
    return {name: value for name, value in SETTINGS.items() if name != "seed"}


def test_runs_that_are_not_there_are_refused(service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="There is no run nothing"):
        service.saves("nothing")
    with pytest.raises(ConfigError, match="There is no run here yet"):
        service.saves()


def test_a_third_axis_makes_sheets_below_one_another(service):
    shown = service.grid(
        "a fox", x={"seed": [1, 2]}, y={"cfg_scale": [1.0, 3.0]}, z={"steps": [1, 2]},
        scheduler="DDIM",
    )  # fmt: skip
    assert len(shown.results) == 8
    assert list(shown.table["steps"]) == [1] * 4 + [2] * 4
    flat = service.grid("a fox", x={"seed": [1, 2]}, y={"cfg_scale": [1.0, 3.0]}, steps=1)
    assert shown.image.height > 2 * flat.image.height
    assert shown.image.width == flat.image.width
    kept = pd.read_csv(shown.path.with_suffix(".csv"))
    assert list(kept["cfg_scale"]) == list(shown.table["cfg_scale"])
    with pytest.raises(ConfigError, match="z is given without y"):
        service.grid("a fox", x={"seed": [1]}, z={"steps": [1]})
    with pytest.raises(ConfigError, match="x and z are both seed"):
        service.grid("a fox", x={"seed": [1]}, y={"steps": [1]}, z={"seed": [1]})


RECIPE = Recipe(
    "a fox", "blue", 7, 64, 32, 20, 3.5, "DPMPP_KARRAS", "/m/emoji.safetensors",
    "STABLE_DIFFUSION_15", (("/l/style.safetensors", 0.7),), clip_skip=1,
)  # fmt: skip


def test_a_comfy_workflow_leads_from_the_checkpoint_to_the_picture():
    nodes = json.loads(InferenceService.as_comfy(None, RECIPE))
    kinds = {node["class_type"]: node["inputs"] for node in nodes.values()}
    sampler = kinds["KSampler"]
    assert (sampler["sampler_name"], sampler["scheduler"]) == ("dpmpp_2m", "karras")
    assert (sampler["seed"], sampler["steps"], sampler["cfg"]) == (7, 20, 3.5)
    assert kinds["LoraLoader"]["lora_name"] == "style.safetensors"
    assert kinds["CLIPSetLastLayer"]["stop_at_clip_layer"] == -2
    assert (kinds["EmptyLatentImage"]["width"], kinds["EmptyLatentImage"]["height"]) == (64, 32)
    texts = [nodes[sampler[side][0]]["inputs"]["text"] for side in ("positive", "negative")]
    assert texts == ["a fox", "blue"]
    for node in nodes.values():
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in nodes
    flux = Recipe("a fox", "", 7, 64, 64, 20, 3.5, "", "flux", "FLUX_DEV_1")
    with pytest.raises(ValueError, match=r"not for FLUX_DEV_1. Copy it as Python"):
        InferenceService.as_comfy(None, flux)


def test_a_recipe_as_a_sample_definition_draws_the_same_during_training():
    sample = RECIPE.as_sample()
    assert isinstance(sample, SampleConfig)
    assert (sample.prompt, sample.negative_prompt, sample.seed) == ("a fox", "blue", 7)
    assert (sample.width, sample.height, sample.diffusion_steps) == (64, 32, 20)
    assert (sample.cfg_scale, sample.noise_scheduler.value) == (3.5, "DPMPP_KARRAS")


@pytest.mark.parametrize(
    ("axis", "words"),
    [({"cfg_scale": [3.0]}, "guidance 3"), ({"clip_skip": [1]}, "clip skip 1"),
     ({"scheduler": [NoiseScheduler.DDIM]}, "scheduler DDIM"), ({"prompt": ["a fox"]}, "a fox")],
)  # fmt: skip
def test_labels_of_a_grid_are_the_page_s_words_and_its_table_keeps_the_names(service, axis, words):
    shown = service.grid("" if "prompt" in axis else "an owl", x=axis, steps=1)
    written = Image.new("RGB", (shown.image.width, 22), "white")
    font = ImageFont.load_default(14)
    ImageDraw.Draw(written).text(
        (written.width / 2, 13), words, fill="black", font=font, anchor="mm"
    )
    assert shown.image.crop((0, 0, *written.size)).tobytes() == written.tobytes()
    assert shown.table.columns[0] == next(iter(axis))


def test_the_labelled_image_of_a_grid_is_a_picture_file(service):
    shown = service.grid("a fox", x={"seed": [1, 2]}, steps=1)
    assert Image.open(shown.path).size == shown.image.size
