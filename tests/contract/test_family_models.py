"""Whole models written in every layout, and read back by diffusers."""

import json

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_model
from safetensors import safe_open
from safetensors.torch import load_file

from modules.adapters.converting import convert
from modules.config import MODELS, ConfigError, ModelFormat, ModelType, TrainConfig
from modules.families import all_families, family_for, saving
from modules.families.saving import part_layouts, save_model

FAMILIES = list(all_families())


QUICK = ("stable-diffusion-v1", "stable-diffusion-xl-v1-base", "Flux.1-dev", "Z-Image")


def having(model_format):
    """The families that a format is for."""
    found = [
        pytest.param(
            each,
            id=f"{each.architecture}-{each.pipeline}",
            marks=[] if each.architecture in QUICK else [pytest.mark.slow],
        )
        for each in FAMILIES
        if model_format in MODELS[each.model_types[0]].formats
    ]
    return pytest.mark.parametrize("family", found)


def assert_same_weights(network, other, dtype=torch.float32):
    own, theirs = network.state_dict(), other.state_dict()
    assert own.keys() == theirs.keys()
    for key, tensor in own.items():
        torch.testing.assert_close(theirs[key].to(dtype), tensor.to(dtype), atol=0, rtol=0, msg=key)


@having(ModelFormat.DIFFUSERS)
def test_a_folder_holds_the_model_in_the_wanted_type(family, tmp_path):
    parts = family.tiny()
    before = {name: next(n.parameters()).dtype for name, n in parts.modules().items()}
    save_model(family, parts, tmp_path / "model", ModelFormat.DIFFUSERS, torch.bfloat16)
    assert {name: next(n.parameters()).dtype for name, n in parts.modules().items()} == before
    for file in (tmp_path / "model").glob("*/*.safetensors"):
        tensors = load_file(file)
        assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.bfloat16}
        settings = json.loads((file.parent / "config.json").read_text())
        if settings.get("architectures") == ["CLIPTextModel"]:  # as every version of it reads them
            assert all(key.startswith("text_model.") for key in tensors)
    loader = getattr(diffusers, family.pipeline)
    fresh = loader.from_pretrained(str(tmp_path / "model"), local_files_only=True)
    if hasattr(fresh, "load_components"):  # a modular one
        fresh.load_components(local_files_only=True)
    for name in parts.modules().keys() - parts.beside.keys():
        assert_same_weights(parts.module(name), getattr(fresh, name), torch.bfloat16)


@having(ModelFormat.ORIGINAL_SINGLE_FILE)
def test_a_single_file_is_the_one_that_diffusers_converts(family, tmp_path):
    loader = getattr(diffusers, family.pipeline)
    if not hasattr(loader, "from_single_file"):
        pytest.skip(f"diffusers reads no single file as {family.pipeline}")
    parts = family.tiny()
    if family.architecture.startswith("stable-diffusion-v3"):  # what it takes CLIP-L's to be
        torch.nn.init.eye_(parts.pipeline.text_encoder.text_projection.weight)
    parts.pipeline.save_pretrained(tmp_path / "settings")
    file = tmp_path / "model.safetensors"
    save_model(family, parts, file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float32)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["modelspec.architecture"] == family.architecture
    fresh = loader.from_single_file(file, config=str(tmp_path / "settings"), local_files_only=True)
    for name in family.single_file:
        assert_same_weights(parts.module(name), getattr(fresh, name))


@having(ModelFormat.ORIGINAL_TRANSFORMER)
def test_a_bare_transformer_has_the_original_names(family, tmp_path):
    parts = family.tiny()
    file = tmp_path / "transformer.safetensors"
    save_model(family, parts, file, ModelFormat.ORIGINAL_TRANSFORMER, torch.float16)
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    beside = [weights(parts.module(name)) for name in family.conditioners]
    if family.pipeline.startswith("PixArt"):  # diffusers computes the codes of places
        codes = parts.denoiser.pos_embed.pos_embed
        torch.testing.assert_close(tensors["pos_embed"], codes.half())
        beside.append(codes.numel())
    if family.architecture == "Krea-2":  # its six vectors of modulation stand in a row
        table = parts.denoiser.transformer_blocks[1].scale_shift_table
        assert torch.equal(tensors["blocks.1.mod.lin"], table.detach().half().flatten())
    assert sum(t.numel() for t in tensors.values()) == weights(parts.denoiser) + sum(beside)


def weights(network):
    return sum(tensor.numel() for tensor in network.state_dict().values())


@having(ModelFormat.LEGACY_SAFETENSORS)
def test_the_format_of_old_is_the_original_one(family, tmp_path):
    """OneTrainer writes the same under both names: a single file, or else the bare transformer."""
    parts = family.tiny()
    formats = MODELS[family.model_types[0]].formats
    single = ModelFormat.ORIGINAL_SINGLE_FILE in formats
    original = ModelFormat.ORIGINAL_SINGLE_FILE if single else ModelFormat.ORIGINAL_TRANSFORMER
    if original not in formats:
        pytest.skip("it has no other name for it")
    for name, each in (("old", ModelFormat.LEGACY_SAFETENSORS), ("new", original)):
        save_model(family, parts, tmp_path / f"{name}.safetensors", each, torch.float16)
    old, new = (load_file(tmp_path / f"{name}.safetensors") for name in ("old", "new"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], tensor) for key, tensor in new.items())


def test_a_cascade_is_written_as_the_stage_c_that_diffusers_reads(tmp_path):
    family = next(each for each in FAMILIES if each.architecture.startswith("stable-cascade"))
    parts = family.tiny()
    file = tmp_path / "stage_c.safetensors"
    save_model(family, parts, file, ModelFormat.LEGACY_SAFETENSORS, torch.float32)
    keys = load_file(file).keys()
    assert "down_blocks.0.2.attention.attn.in_proj_weight" in keys
    assert "up_blocks.0.2.attention.attn.out_proj.bias" in keys
    assert not [key for key in keys if "to_q" in key]
    parts.denoiser.save_pretrained(tmp_path / "settings" / "prior")
    fresh = diffusers.StableCascadeUNet.from_single_file(
        file, config=str(tmp_path / "settings"), subfolder="prior", local_files_only=True
    )
    assert_same_weights(parts.denoiser, fresh)


@having(ModelFormat.COMFY_TRANSFORMER)
def test_comfys_transformer_is_the_one_that_diffusers_converts(family, tmp_path):
    network = family.tiny()
    file = tmp_path / "transformer.safetensors"
    save_model(family, network, file, ModelFormat.COMFY_TRANSFORMER, torch.float32)
    entry = single_file_model.SINGLE_FILE_LOADABLE_CLASSES[type(network.denoiser).__name__]
    back = entry["checkpoint_mapping_fn"](load_file(file))
    own = network.denoiser.state_dict()
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], own[key]) for key in own)


@pytest.mark.parametrize(
    "family", FAMILIES, ids=lambda each: f"{each.architecture}-{each.pipeline}"
)
def test_the_config_promises_the_formats_that_the_family_has(family):
    for kind in family.model_types:
        promised = set(MODELS[kind].formats) - {ModelFormat.SAFETENSORS, ModelFormat.DIFFUSERS}
        adapters = {each for each in promised if each.value.endswith("_LORA")}
        assert set(family.lora_formats) == adapters
        for model_format in promised - adapters:
            assert part_layouts(family, model_format)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("FLUX_DEV_1", {}),
        ("STABLE_DIFFUSION_21", {"ss_v2": "True"}),
        (
            "STABLE_DIFFUSION_XL_10_BASE",
            {"ss_base_model_version": "sdxl_", "modelspec.resolution": "1024x1024"},
        ),
    ],
)
def test_a_file_says_what_it_is_to_whoever_asks(kind, told):
    family = family_for(ModelType(kind))
    title = MODELS[family.model_types[0]].title
    for what, ending, words in (("", "", ""), ("lora", "/lora", " LoRA")):
        assert family.metadata(what) == {
            "modelspec.architecture": f"{family.architecture}{ending}",
            "modelspec.title": f"{title}{words}",
            **told,
        }


@pytest.mark.parametrize(("predicts", "word"), [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_a_single_file_says_what_the_model_predicts(predicts, word, tmp_path):
    family = family_for(ModelType.STABLE_DIFFUSION_21)
    parts = family.tiny()
    parts.scheduler.register_to_config(prediction_type=predicts)
    file = tmp_path / "model.safetensors"
    save_model(family, parts, file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float16)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["modelspec.prediction_type"] == word


VELOCITY = {"prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("by", "changes", "marks"),
    [
        ("run", {"prediction_type": "epsilon"}, set()),
        ("run", VELOCITY, {"v_pred"}),
        ("convert", VELOCITY | {"rescale_betas_zero_snr": True}, {"v_pred", "ztsnr"}),
    ],
    ids=["noise", "velocity", "rescaled"],
)
def test_a_single_file_of_sdxl_bears_the_marks_that_comfyui_looks_for(by, changes, marks, tmp_path):
    family = family_for(ModelType.STABLE_DIFFUSION_XL_10_BASE)
    parts = family.tiny()
    folder, file = tmp_path / "model", tmp_path / "model.safetensors"
    save_model(family, parts, folder, ModelFormat.DIFFUSERS, torch.float16)  # of noise
    parts.pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        parts.scheduler.config, **changes
    )
    if by == "run":
        save_model(family, parts, file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float16)
    else:
        save_model(family, parts, tmp_path / "v", ModelFormat.DIFFUSERS, torch.float16)
        convert(tmp_path / "v", file, "ORIGINAL_SINGLE_FILE", model_type=family.model_types[0])
    tensors = load_file(file)
    assert {"v_pred", "ztsnr"} & tensors.keys() == marks
    assert all(tensors[mark].numel() == 0 for mark in marks)
    with safe_open(file, "pt") as opened:
        word = opened.metadata()["modelspec.prediction_type"]
    assert word == ("v" if marks else "epsilon")

    config, _ = TrainConfig.load(
        {"model_type": family.model_types[0].value, "base_model_name": str(file)}
    )
    loaded = family.load(config)  # with the settings of the folder, which say noise
    assert family.objective(loaded) == changes["prediction_type"]
    assert loaded.scheduler.config.get("rescale_betas_zero_snr", False) == ("ztsnr" in marks)
    last = float(loaded.scheduler.alphas_cumprod[-1])
    assert (last < 1e-6) == ("ztsnr" in marks)


def test_a_format_that_a_family_lacks_is_refused(tmp_path):
    family = next(each for each in FAMILIES if each.architecture == "Flux.1-dev")
    parts = family.tiny()
    with pytest.raises(ConfigError, match=r"ORIGINAL_SINGLE_FILE, which Flux\.1-dev does not have"):
        save_model(family, parts, tmp_path / "x", ModelFormat.ORIGINAL_SINGLE_FILE, torch.float32)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_numbers_that_a_file_cannot_hold_are_named_and_nothing_is_written(name, tmp_path):
    family = FAMILIES[0]
    parts = family.tiny()
    kind = ModelFormat.ORIGINAL_SINGLE_FILE if "." in name else ModelFormat.DIFFUSERS
    parts.denoiser.conv_in.bias.data[0] = 1e5
    with pytest.raises(ValueError, match=r"bias holds numbers up to 100000, too large for float16"):
        save_model(family, parts, tmp_path / name, kind, torch.float16)
    parts.denoiser.conv_in.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"bias holds numbers that are not finite"):
        save_model(family, parts, tmp_path / name, kind, torch.bfloat16)
    assert list(tmp_path.iterdir()) == []


def test_a_layout_that_loses_a_weight_is_noticed(tmp_path, monkeypatch):
    family = FAMILIES[0]
    part, (prefix, _) = next(iter(family.single_file.items()))
    lossy = [(part, prefix, lambda weights: {"one": next(iter(weights.values()))})]
    monkeypatch.setattr(saving, "part_layouts", lambda *_: lossy)
    kind = ModelFormat.ORIGINAL_SINGLE_FILE
    with pytest.raises(ValueError, match=r"unet has \d+ numbers, of which the file would hold"):
        save_model(family, family.tiny(), tmp_path / "x", kind, torch.float32)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    family = FAMILIES[0]
    with pytest.raises(FileExistsError, match="holds other things than a model"):
        save_model(family, family.tiny(), tmp_path, ModelFormat.DIFFUSERS, torch.float32)
    assert (tmp_path / "notes.txt").read_text() == "mine"
