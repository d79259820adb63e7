"""Merging adapters into models, against live networks with the adapter on them."""

import json
import shutil

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_models import FLUX, SD, SD3, SDXL

from modules.adapters.converting import convert
from modules.adapters.files import AdapterError, save_tensors, to_format
from modules.adapters.merging import merge
from modules.config import ModelFormat


def live(folder, model):
    """Every adapted weight of a written folder against peft's own sum."""
    pipeline = getattr(diffusers, model.family.pipeline).from_pretrained(
        folder, local_files_only=True, safety_checker=None
    )
    for (part, path), expected in model.merged_weights().items():
        weight = getattr(pipeline, part).get_submodule(path).weight
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-4, msg=f"{part}.{path}")
    return pipeline


@pytest.mark.parametrize(
    "kind",
    [FLUX, pytest.param(SDXL, marks=pytest.mark.slow)],
    ids=lambda kind: kind.value,
)
def test_a_merged_folder_is_the_live_model(model, kind, tmp_path):
    its = model(kind)
    steps = []
    merge(its.folder, tmp_path / "new", {its.lora: 1.0}, progress=lambda *at: steps.append(at))
    live(tmp_path / "new", its)
    assert steps[0][0] == 1
    assert all(done <= total for done, total in steps)
    untouched = sorted(its.folder.glob("vae/*"))
    assert untouched
    for file in untouched:
        copy = tmp_path / "new" / file.relative_to(its.folder)
        assert copy.read_bytes() == file.read_bytes()


def test_strengths_of_several_adapters_add_up(model, tmp_path):
    its = model(SD)
    its.write(tmp_path / "again.safetensors", ModelFormat.DIFFUSERS_LORA)
    both = {its.lora: 0.25, tmp_path / "again.safetensors": 0.75}
    merge(its.folder, tmp_path / "new", both)
    live(tmp_path / "new", its)


@pytest.mark.parametrize(
    "kind",
    [SD, SD3, pytest.param(SDXL, marks=pytest.mark.slow)],
    ids=lambda kind: kind.value,
)
def test_a_merged_single_file_is_the_live_model(model, kind, tmp_path):
    its = model(kind)
    merge(its.file, tmp_path / "new.safetensors", {its.lora: 1.0}, model_type=kind)
    merge(its.folder, tmp_path / "folder", {its.lora: 1.0})
    convert(
        tmp_path / "folder", tmp_path / "b.safetensors", "ORIGINAL_SINGLE_FILE", model_type=kind
    )
    found, expected = load_file(tmp_path / "new.safetensors"), load_file(tmp_path / "b.safetensors")
    assert any(not torch.equal(found[key], t) for key, t in load_file(its.file).items())
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-4, msg=key)
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        assert file.metadata()["modelspec.merged_from"] == (
            "model.safetensors, lora.safetensors (1)"
        )


def test_a_bare_transformer_takes_an_adapter(model, tmp_path):
    its = model(FLUX)
    names = {"img_attn.qkv", "linear1", "final_layer.adaLN_modulation.1"}
    convert(its.folder, tmp_path / "t.safetensors", "ORIGINAL_TRANSFORMER")
    shutil.copytree(its.folder, tmp_path / "f")
    convert_only = [layer for layer in its.layers if layer.part == "transformer"]
    save_tensors(
        to_format(convert_only, its.family, ModelFormat.COMFY_LORA), tmp_path / "l", torch.float32
    )
    merge(tmp_path / "t.safetensors", tmp_path / "new.safetensors", {tmp_path / "l": 1.0})
    merge(its.folder, tmp_path / "g", {tmp_path / "l": 1.0})
    convert(tmp_path / "g", tmp_path / "h.safetensors", "ORIGINAL_TRANSFORMER")
    found, expected = (load_file(tmp_path / n) for n in ("new.safetensors", "h.safetensors"))
    assert all(any(name in key for key in found) for name in names)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-4, msg=key)


def test_an_adapter_that_does_not_fit_is_refused(model, tmp_path):
    flux, sd = model(FLUX), model(SD)
    with pytest.raises(AdapterError, match="The model is stable-diffusion-v1"):
        merge(sd.folder, tmp_path / "new", {flux.lora: 1.0}, model_type=SD)
    with pytest.raises(AdapterError, match="is the model itself"):
        merge(sd.folder, sd.folder, {sd.lora: 1.0})
    wide = {
        key: tensor[:, :5] if "lora_down" in key else tensor
        for key, tensor in load_file(sd.lora).items()
    }
    save_file({k: t.contiguous() for k, t in wide.items()}, tmp_path / "wide")
    with pytest.raises(AdapterError, match="which an adapter does not fit"):
        merge(sd.folder, tmp_path / "new", {tmp_path / "wide": 1.0}, model_type=SD)
    assert not (tmp_path / "new").exists()
    with pytest.raises(AdapterError, match="does not exist"):
        merge(sd.folder, tmp_path / "new", {tmp_path / "gone": 1.0})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        merge(tmp_path / "gone.safetensors", tmp_path / "new", {sd.lora: 1.0})


@pytest.mark.parametrize(
    ("dtype", "word"),
    [(torch.float16, "float16"), (torch.float8_e4m3fn, "float8_e4m3fn")],
    ids=["float16", "float8"],
)
def test_sums_that_the_models_type_cannot_hold_are_refused(model, dtype, word, tmp_path):
    its = model(FLUX)
    convert(its.folder, tmp_path / "m.safetensors", "ORIGINAL_TRANSFORMER", dtype=dtype)
    weights = to_format(
        [each for each in its.layers if each.part == "transformer"],
        its.family,
        ModelFormat.COMFY_LORA,
    )
    save_tensors(weights, tmp_path / "l", torch.float32)
    target = tmp_path / "new.safetensors"
    merge(tmp_path / "m.safetensors", target, {tmp_path / "l": 1.0})
    before = target.read_bytes()
    with pytest.raises(
        ValueError, match=rf"weight holds numbers up to \d+, too large for {word}; "
    ):
        merge(tmp_path / "m.safetensors", target, {tmp_path / "l": 1e7})
    lost = {key: tensor * float("nan") for key, tensor in weights.items() if "lora_A" in key}
    save_file({**weights, **lost}, tmp_path / "lost")
    with pytest.raises(
        ValueError, match=r"not finite; nothing was written\. Leave out the adapter"
    ):
        merge(tmp_path / "m.safetensors", target, {tmp_path / "lost": 1.0})
    assert target.read_bytes() == before


def test_a_merge_of_a_folder_keeps_its_index_true(model, tmp_path):
    its = model(SD)
    copy = tmp_path / "sharded"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(its.folder, safety_checker=None)
    pipeline.save_pretrained(copy, max_shard_size="1MB")
    assert len(list((copy / "unet").glob("*.safetensors"))) > 1
    merge(copy, tmp_path / "new", {its.lora: 1.0})
    live(tmp_path / "new", its)
    index = json.loads(next((tmp_path / "new" / "unet").glob("*.index.json")).read_text())
    for key, file in index["weight_map"].items():
        with safe_open(tmp_path / "new" / "unet" / file, "pt") as opened:
            assert key in opened.keys()  # noqa: SIM118
