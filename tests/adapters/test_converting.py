"""Converting adapters and models from layout to layout, against the live networks."""

import hashlib
import shutil
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_models import FLUX, LORAS, SD, SD3, SDXL, assert_same

from modules.adapters.converting import convert
from modules.adapters.files import AdapterError, save_tensors, to_format
from modules.adapters.kinds import adapter_layers, add_adapter, in_format
from modules.adapters.lora import matching_layers
from modules.adapters.reading import verify_found
from modules.adapters.recognise import recognise
from modules.config import ConfigError, ModelFormat, ModelType, TrainConfig


@pytest.mark.parametrize(
    "kind",
    [SD3, FLUX, pytest.param(SDXL, marks=pytest.mark.slow)],
    ids=lambda kind: kind.value,
)
def test_every_format_becomes_every_other_with_the_same_change(model, kind, tmp_path):
    its = model(kind)
    before = its.lora
    for number, (_, model_format) in enumerate(pairwise((*LORAS, LORAS[2], LORAS[0]))):
        after = tmp_path / f"{number}.safetensors"
        assert convert(before, after, model_format, model_type=kind) == []
        assert_same(its.changes(after), its.expected())
        if model_format is not ModelFormat.INTERNAL:
            keys = to_format(its.layers, its.family, model_format).keys()
            assert load_file(after).keys() == keys
        before = after
    with safe_open(before, "pt") as file:
        assert file.metadata()["mine"] == "kept"
        assert file.metadata()["modelspec.architecture"] == f"{its.family.architecture}/lora"
        told = file.metadata()["modelspec.hash_sha256"]
    data = (tensor.numpy().tobytes() for _, tensor in sorted(load_file(before).items()))
    assert told == f"0x{hashlib.sha256(b''.join(data)).hexdigest()}"


def test_layers_that_were_trained_as_one_keep_their_rank(model, tmp_path):
    its = model(FLUX)
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    width = its.networks["transformer"].transformer_blocks[0].attn.to_q.base_layer.weight.shape[1]
    tensors = {
        f"{fused}.lora_down.weight": torch.randn(4, width),
        f"{fused}.lora_up.weight": torch.randn(3 * width, 4),
        f"{fused}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", tmp_path / "two", "INTERNAL", model_type=FLUX)
    assert len(load_file(tmp_path / "two")) == 9
    convert(tmp_path / "two", tmp_path / "three", "KOHYA_LORA", model_type=FLUX)
    back = load_file(tmp_path / "three")
    assert all(torch.equal(back[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_other_kinds_of_adapter_convert_too(model, kind, tmp_path):
    its = model(SD)
    settings = {
        "dora": {"lora_decompose": True, "lora_decompose_output_axis": True},
        "loha": {"peft_type": "LOHA"},
        "lokr": {"peft_type": "LOKR", "lokr_dim": 2},
    }
    network = its.family.tiny().denoiser
    config = TrainConfig().update(lora_rank=4, lora_alpha=2.0, **settings[kind])
    add_adapter(network, matching_layers(network, "attn", regex=False), config)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    layers = list(adapter_layers({"unet": network}))
    written = {}
    for model_format in (
        ModelFormat.KOHYA_LORA,
        ModelFormat.COMFY_LORA,
        ModelFormat.DIFFUSERS_LORA,
    ):
        written[model_format] = in_format(layers, its.family, model_format)
    save_tensors(written[ModelFormat.KOHYA_LORA], tmp_path / "a", torch.float32)
    for model_format, expected in written.items():
        convert(tmp_path / "a", tmp_path / "b", model_format, model_type=SD)
        found = load_file(tmp_path / "b")
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, msg=key)


def test_an_adapter_of_any_kind_is_read_back_before_it_is_written(model):
    its = model(SD)
    names = [f"unet.{layer.path}" for layer in its.layers if layer.part == "unet"][:2]
    tensors = {f"{name}.hada_w1_a": torch.zeros(4, 4) for name in names}
    verify_found(tensors, names, its.family, its.networks)
    with pytest.raises(ValueError, match=rf"{names[1]} would not be found in the file again"):
        verify_found({f"{names[0]}.hada_w1_a": torch.zeros(4)}, names, its.family, its.networks)
    odd = {**tensors, "nowhere.hada_w1_a": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"nowhere\.hada_w1_a would not be found"):
        verify_found(odd, names, its.family, its.networks)


def test_the_architecture_is_found_by_metadata_or_keys(model):
    its = model(SDXL)
    tensors = to_format(its.layers, its.family, ModelFormat.KOHYA_LORA)
    assert recognise(tensors, {}).family.architecture == "stable-diffusion-xl-v1-base"  # its te2
    block = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    for width, kind in ((768, SD), (1024, ModelType.STABLE_DIFFUSION_21), (2048, SDXL)):
        tensors = {
            f"{block}.lora_A.weight": torch.zeros(4, width),
            f"{block}.lora_B.weight": torch.zeros(640, 4),
        }
        assert kind in recognise(tensors, {}).family.model_types
    deep = {
        f"diffusion_model.{kind}_blocks.{number}.{leaf}.lora_{side}.weight": torch.zeros(28, 28)
        for kind, number, leaf in (("double", 18, "img_mod.lin"), ("single", 37, "linear1"))
        for side in "AB"
    }
    key, found = next(iter(deep)), recognise(deep, {}, FLUX)
    assert found.adapter.unplaced == []
    assert "transformer.single_transformer_blocks.37.proj_mlp" in found.adapter.layers
    stray = {f"steps.{10**9}.lora_A.weight": torch.zeros(4, 4), f"n.{'9' * 5000}.x": deep[key]}
    found = recognise({**deep, **stray}, {})  # a path for each number up to there would take years
    assert FLUX in found.family.model_types
    assert sorted(found.adapter.unplaced) == sorted(stray)
    with pytest.raises(AdapterError, match=r"STABLE_DIFFUSION_15, .*Say which by a model type"):
        recognise({f"{block}.lora_A.weight": torch.zeros(4, 7)}, {})
    with pytest.raises(AdapterError, match=r"None of the file's 1 keys, such as odd\.lora_A"):
        recognise({"odd.lora_A.weight": torch.zeros(4, 7)}, {})


def test_keys_without_a_place_are_named_or_left_out(model, tmp_path):
    its = model(SD)
    odd = {**load_file(its.lora), "lora_unet_nowhere.lora_down.weight": torch.zeros(4, 4)}
    save_file(odd, tmp_path / "odd.safetensors")
    with pytest.raises(AdapterError, match=r"1 keys of no layer .*lora_unet_nowhere\.lora_down"):
        convert(tmp_path / "odd.safetensors", tmp_path / "new", "DIFFUSERS_LORA", model_type=SD)
    assert not (tmp_path / "new").exists()
    left_out = convert(
        tmp_path / "odd.safetensors", tmp_path / "new", "DIFFUSERS_LORA", model_type=SD, skip=True
    )
    assert left_out == ["lora_unet_nowhere.lora_down.weight"]
    assert_same(its.changes(tmp_path / "new"), its.expected())


def test_embeddings_in_the_file_come_along_where_there_is_a_place(model, tmp_path):
    its = model(SD)
    vectors = torch.randn(2, 32)
    save_file({**load_file(its.lora), "bundle_emb.<me>.emp_params": vectors}, tmp_path / "both")
    convert(tmp_path / "both", tmp_path / "new", "DIFFUSERS_LORA", model_type=SD)
    assert torch.equal(load_file(tmp_path / "new")["bundle_emb.<me>.emp_params"], vectors)
    with pytest.raises(AdapterError, match="ORIGINAL_LORA has no place"):
        convert(tmp_path / "both", tmp_path / "new", "ORIGINAL_LORA", model_type=SD)


@pytest.mark.parametrize("kind", [SD, SD3], ids=lambda kind: kind.value)
def test_a_folder_becomes_the_single_file_that_a_run_writes_and_back(model, kind, tmp_path):
    its = model(kind)
    convert(its.folder, tmp_path / "m.safetensors", "ORIGINAL_SINGLE_FILE", model_type=kind)
    own, expected = load_file(tmp_path / "m.safetensors"), load_file(its.file)
    assert own.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in own.items())
    shutil.copytree(its.folder, tmp_path / "m")  # the settings beside the file
    half = torch.float16
    convert(tmp_path / "m.safetensors", tmp_path / "back", "DIFFUSERS", model_type=kind, dtype=half)
    for file in sorted(its.folder.glob("*/*.safetensors")):
        before, after = load_file(file), load_file(tmp_path / "back" / file.relative_to(its.folder))
        tied = {"encoder.embed_tokens.weight"} & after.keys()
        assert before.keys() == after.keys() - tied
        assert all(
            torch.equal(after[key], tensor.half() if tensor.is_floating_point() else tensor)
            for key, tensor in before.items()
        )


def test_numbers_that_the_wanted_type_cannot_hold_are_named(model, tmp_path):
    its = model(FLUX)
    shutil.copytree(its.folder, tmp_path / "large")
    (file,) = (tmp_path / "large" / "transformer").glob("*.safetensors")
    weights = load_file(file)
    weights["proj_out.bias"] = torch.full_like(weights["proj_out.bias"], 1e5)
    save_file(weights, file)
    target = tmp_path / "new.safetensors"
    with pytest.raises(ValueError, match=r"final_layer\.linear\.bias holds numbers up to 100000"):
        convert(tmp_path / "large", target, "ORIGINAL_TRANSFORMER", dtype=torch.float16)
    assert not target.exists()
    convert(tmp_path / "large", target, "ORIGINAL_TRANSFORMER", dtype=torch.bfloat16)


def test_a_format_that_a_model_lacks_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="ORIGINAL_SINGLE_FILE, which Flux"):
        convert(model(FLUX).folder, tmp_path / "x.safetensors", "ORIGINAL_SINGLE_FILE")
    convert(model(FLUX).folder, tmp_path / "x.safetensors", "ORIGINAL_TRANSFORMER")
    with pytest.raises(AdapterError, match=r"is a transformer alone\. Convert a diffusers"):
        convert(tmp_path / "x.safetensors", tmp_path / "y", "COMFY_TRANSFORMER")
    with pytest.raises(AdapterError, match=r"is a single file already\. Convert it to DIFFUSERS"):
        convert(model(SD).file, tmp_path / "y", "ORIGINAL_TRANSFORMER")


def test_architectures_that_diffusers_does_not_have_yet_are_passed_over(model, monkeypatch):
    """An older diffusers cannot be asked for the layers of what came after it."""
    from modules.families.krea_2 import Krea2

    def missing(_self):
        raise ImportError("cannot import name 'Krea2Pipeline' from 'diffusers'")

    monkeypatch.setattr(Krea2, "pipeline", "NoPipeline")
    monkeypatch.setattr(Krea2, "tiny", missing)
    its = model(FLUX)
    tensors = to_format(its.layers, its.family, ModelFormat.COMFY_LORA)
    assert recognise(tensors, {}).family is its.family
