"""The script that makes the embedded model: whole, on a few pictures, and stopped half-way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from ot_notebook import assets
from scripts.pretrain_emoji.__main__ import app
from scripts.pretrain_emoji.captions import captions, train_tokenizer
from scripts.pretrain_emoji.colors import main_hue, recolored
from scripts.pretrain_emoji.denoiser import build_scheduler, min_snr_weight, principal_components
from scripts.pretrain_emoji.pictures import Picture, read_folder, spoken
from scripts.pretrain_emoji.stage import Stage, scale_at
from scripts.pretrain_emoji.vae import CROP, random_crops

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "--emoji=8",
    "--vae-steps=4",
    "--text-steps=4",
    "--pictures=32",
    "--batch-size=8",
    "--save-every=1",
]
TEXT_WEIGHTS = "model/text_encoder/model.safetensors"


def arguments(out):
    return ["train", str(out), "--images", str(assets.dataset("pixel art")), *SETTINGS]


def weights(out):
    files = sorted((out / "model").rglob("*.safetensors"))
    assert len(files) == 3
    return {
        f"{file.parent.name}.{key}": value
        for file in files
        for key, value in load_file(file).items()
    }


def test_makes_a_model_that_diffusers_loads_and_judges_it(tmp_path):
    from diffusers import StableDiffusionPipeline

    runner = CliRunner()
    made = runner.invoke(app, arguments(tmp_path), catch_exceptions=False)
    assert made.exit_code == 0, made.output
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a bug", num_inference_steps=1).images[0]
    assert image.size == (64, 64)
    assert list(json.loads((tmp_path / "model" / "classes.json").read_text("utf-8"))) == [
        path.stem for path in sorted(assets.dataset("pixel art").glob("*.png"))[:8]
    ]
    assert all(key.startswith("text_model") for key in load_file(tmp_path / TEXT_WEIGHTS))

    sheet = tmp_path / "sheet.png"
    images = ["--images", str(assets.dataset("pixel art"))]
    judged = runner.invoke(
        app, ["judge", str(tmp_path), *images, "--samples=2", f"--picture={sheet}"]
    )
    assert "top-1" in judged.output
    assert "of 2 samples" in judged.output
    assert Image.open(sheet).size == (20 * 64, 64)

    other = runner.invoke(app, [*arguments(tmp_path), "--seed=1"])
    assert other.exit_code != 0
    assert "seed was 0" in " ".join(other.output.split())


@pytest.mark.slow
def test_killed_and_started_again_it_makes_the_same_model(tmp_path):
    def start(out):
        command = [sys.executable, "-m", "scripts.pretrain_emoji", *arguments(out)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    for stage in ("vae", "denoiser"):  # killed twice, in different stages
        process = start(tmp_path / "killed")
        while not (tmp_path / "killed" / f"{stage}.checkpoint").exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "model").exists()
    assert start(tmp_path / "killed").wait() == 0
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_the_tokenizer_is_the_same_each_time(tmp_path):
    pictures = read_folder(assets.dataset("pixel art"), 64)
    made = []
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        train_tokenizer(pictures, folder)
        made.append([(folder / name).read_bytes() for name in ("vocab.json", "merges.txt")])
    assert made.count(made[0]) == len(made)


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("last", [0, 3, 4, 9])
def test_stage_ends_with_the_same_weights_wherever_it_was_cut(tmp_path, last):
    def run(folder, cut=None):
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        stage = Stage(
            "line",
            {"line": network},
            {"line": 0.1},
            steps=10,
            warmup=3,
            ema_decay=0.9,
            folder=folder,
            seed=1,
        )

        def loss_of(generator):
            if stage.step == cut:
                raise PowerCutError
            inputs = torch.randn(5, 3, generator=generator)
            return (network(inputs) - inputs[:, :2]).square().mean()

        stage.train(loss_of, save_every=4)
        return network.weight

    whole = run(tmp_path / "whole")
    with pytest.raises(PowerCutError):
        run(tmp_path / "cut", cut=last)
    assert torch.equal(run(tmp_path / "cut"), whole)
    assert torch.equal(run(tmp_path / "cut"), whole)  # a finished stage stays as it is


def test_learning_rate_rises_then_falls_to_three_percent():
    rates = [scale_at(step, 1000, 100) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert max(rates) == rates[99] > 0.97
    assert rates[1000] == pytest.approx(0.03)


def test_weight_equals_that_of_the_noise_loss_with_its_ratio_capped():
    alpha = build_scheduler().alphas_cumprod[[10, 500, 990]]
    ratio = alpha / (1 - alpha)
    # error of v = error of noise / alpha, and min-SNR weights the noise's by min(ratio, 5) / ratio
    expected = torch.minimum(ratio, torch.tensor(5.0)) / ratio * alpha
    torch.testing.assert_close(min_snr_weight(alpha), expected)


def test_principal_components_are_uncorrelated_and_fall_in_size():
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(6, 0, -1)
    found = principal_components(rows)
    covariance = found.T @ found / len(found)
    assert covariance.diagonal()[0] == pytest.approx(1, rel=1e-4)
    assert (covariance.diagonal().diff() < 0).all()
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-4


def test_crops_lie_in_range_and_repeat_with_their_seed():
    pixels = torch.full((2, 64, 64, 4), 255, dtype=torch.uint8)
    pixels[0, ..., :3] = 0
    draw = [
        random_crops(pixels, torch.tensor([1.0, 0.0]), 7, torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert draw[0].shape == (7, 3, CROP, CROP)
    assert torch.equal(*draw)
    assert (draw[0] == -1).all()  # the black picture only: the other has no weight


def solid(name, color):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6] = (*color, 255)
    return Picture(name, name, group="", keywords=("word",), pixels=pixels)


def test_colour_words_say_what_is_seen():
    copies = {copy.name: copy for copy in recolored([solid("ball", (220, 30, 30))])}
    green, blue = copies["green ball"].pixels[4, 4], copies["ball on a blue background"].pixels
    assert green[1] > 2 * max(green[0], green[2])
    assert blue[0, 0].tolist() == [84, 144, 232, 255]
    assert blue[4, 4].tolist() == [220, 30, 30, 255]
    assert sum(copy.weight for copy in copies.values()) == pytest.approx(1)


def test_grey_picture_gets_backgrounds_but_no_colour_words():
    grey = solid("stone", (120, 120, 120))
    assert main_hue(grey.pixels) is None
    assert all("background" in copy.name for copy in recolored([grey]))


def test_pictures_of_a_folder_are_named_by_caption_or_file(tmp_path):
    Image.new("RGB", (30, 30), "red").save(tmp_path / "hot-dog.png")
    Image.new("RGB", (30, 30), "red").save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("Big Bird, line art")
    (tmp_path / "c.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2">'
        '<rect width="1" height="2"/></svg>'
    )
    first, second, third = read_folder(tmp_path, 64)
    assert [first.name, second.name, third.name] == ["big bird", "c", "hot dog"]
    assert second.pixels[32, 10].tolist() == [0, 0, 0, 255]
    assert second.pixels[32, 50, 3] == 0
    assert third.pixels.shape == (64, 64, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.png"):
        read_folder(tmp_path / "empty", 64)


def test_captions_all_name_the_emoji():
    picture = Picture("fox", "fox", "", ("red", "animal", "sly"), np.zeros((1, 1, 4), np.uint8))
    written = captions(picture, random.Random(0))
    assert len(written) == 24
    assert all("fox" in caption for caption in written)
    assert spoken("Bird: “Black_Bird”  ") == "bird black bird"
