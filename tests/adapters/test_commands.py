"""`ot-notebook convert|merge|extract|resize`, once around: what they write, and what they say."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from modules.adapters.files import save_tensors, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.cli import build_app
from modules.config import ModelFormat, ModelType
from modules.families import family_for
from modules.families.saving import save_model

FAILED = 1


def run(*arguments):
    return CliRunner().invoke(build_app(), [str(each) for each in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and a LoRA for it."""
    folder = tmp_path_factory.mktemp("files")
    family = family_for(ModelType.FLUX_DEV_1)
    parts = family.tiny()
    save_model(family, parts, folder / "model", ModelFormat.DIFFUSERS, torch.float32)
    network = parts.denoiser
    add_lora(network, matching_layers(network, "attn", False), rank=2, alpha=2, dropout=0, seed=1)
    layers = list(lora_layers({"transformer": network}))
    for layer in layers:
        layer.up.data.normal_(std=0.1)
    tensors = to_format(layers, family, ModelFormat.DIFFUSERS_LORA)
    notes = {"modelspec.architecture": "Flux.1-dev/lora"}
    save_tensors(tensors, folder / "lora.safetensors", torch.float32, notes)
    return folder


def test_once_around(place):
    lora, kohya = place / "lora.safetensors", place / "kohya.safetensors"
    done = run("convert", lora, kohya, "--format", "KOHYA_LORA")
    assert done.exit_code == 0, done.output
    assert any(key.startswith("lora_unet_double_blocks_0_img_attn_qkv") for key in load_file(kohya))
    done = run("merge", place / "model", place / "merged", "--lora", f"{kohya}=0.5")
    assert done.exit_code == 0, done.output
    back = place / "back.safetensors"
    done = run(
        "extract", place / "model", place / "merged", back, "--rank", 2, "--dtype", "FLOAT_32"
    )
    assert done.exit_code == 0, done.output
    old, new = load_file(lora), load_file(back)
    assert old.keys() == new.keys()
    for key in old:
        if key.endswith("lora_A.weight"):
            up = key.replace("lora_A", "lora_B")
            expected = 0.5 * old[up] @ old[key]
            torch.testing.assert_close(new[up] @ new[key], expected, atol=1e-4, rtol=1e-3)
    done = run("resize", back, place / "small.safetensors", "--rank", 1)
    assert done.exit_code == 0, done.output
    assert "layers, of rank 1.0 on average." in done.output


def test_what_cannot_be_is_a_line_and_an_exit_code(place):
    model, lora = place / "model", place / "lora.safetensors"
    done = run("merge", model, place / "new", "--lora", f"{lora}=much")
    assert done.exit_code == FAILED
    assert "'much' is no number. Write FILE=STRENGTH." in done.output.replace("\n", " ")
    done = run("resize", place / "gone.safetensors", place / "new", "--rank", 1)
    assert done.exit_code == FAILED
    assert "does not exist" in done.output
    odd = {**load_file(lora), "nowhere.lora_A.weight": torch.zeros(2, 2)}
    save_file(odd, place / "odd.safetensors")
    arguments = ("convert", place / "odd.safetensors", place / "new.safetensors")
    kind = ("--format", "COMFY_LORA", "--model-type", "FLUX_DEV_1")
    assert run(*arguments, *kind).exit_code == FAILED
    done = run(*arguments, *kind, "--skip")
    assert done.exit_code == 0
    assert "Left out: nowhere.lora_A.weight" in done.output


def test_the_tools_are_public_names_that_load_no_torch_before_use():
    import ot_notebook as ot

    assert {"convert", "merge", "extract", "resize"} <= set(dir(ot))
    assert ot.resize.__module__ == "modules.adapters.low_rank"
