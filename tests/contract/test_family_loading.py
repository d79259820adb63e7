"""What a config can name as its model, and what is said of one that does not load."""

import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.config import ConfigError, DataType, ModelFormat, ModelType, TrainConfig
from modules.families import family_for, storage
from modules.families.saving import save_model
from modules.families.storage import SmallLinear, pack

SD, SDXL, SD3, FLUX = (
    ModelType.STABLE_DIFFUSION_15,
    ModelType.STABLE_DIFFUSION_XL_10_BASE,
    ModelType.STABLE_DIFFUSION_3,
    ModelType.FLUX_DEV_1,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each model type, made when first asked for."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind.value) / "model"
            family = family_for(kind)
            save_model(family, family.tiny(), made[kind], ModelFormat.DIFFUSERS, torch.float32)
        return made[kind]

    return folder


@pytest.fixture
def copy(folders, tmp_path):
    """A folder to spoil."""
    return lambda kind: shutil.copytree(folders(kind), tmp_path / "spoiled")


def config_for(kind, source, **changes):
    config, warnings = TrainConfig.load(
        {
            "model_type": kind.value,
            "training_method": "LORA",
            "train_dtype": "FLOAT_32",
            "base_model_name": str(source),
            "offline_mode": True,
        }
    )
    assert warnings == []
    return config.update(**changes)


def load(kind, source, **changes):
    return family_for(kind).load(config_for(kind, source, **changes))


def refusal(kind, source, **changes):
    with pytest.raises(ConfigError) as caught:
        load(kind, source, **changes)
    (problem,) = caught.value.problems
    return problem


def same(network, weights):
    own = network.state_dict()
    return all(torch.equal(own[key], tensor) for key, tensor in weights.items())


def test_each_part_comes_in_the_type_that_is_asked_for(folders):
    parts = load(
        SD, folders(SD), **{"unet.weight_dtype": "BFLOAT_16", "vae.weight_dtype": "FLOAT_32"}
    )
    assert parts.dtype == torch.bfloat16
    assert parts.vae.dtype == torch.float32
    problem = refusal(SD, folders(SD), **{"unet.weight_dtype": DataType.GGUF})
    assert problem.field == "unet.weight_dtype"
    assert "GGUF, in which this engine does not load weights" in problem.message


@pytest.mark.parametrize("dtype", ["FLOAT_8", "INT_8", "NFLOAT_4", "INT_W8A8", "FLOAT_W8A8"])
def test_small_weights_predict_and_encode_nearly_alike(folders, dtype, tmp_path):
    family = family_for(FLUX)
    plain = load(FLUX, folders(FLUX))  # the types of the weights are the run's own
    small = {f"{part}.weight_dtype": dtype for part in ("transformer", "text_encoder_2")}
    parts = load(FLUX, folders(FLUX), **small, **{"quantization.layer_filter": "blocks"})
    kept = [m for m in parts.denoiser.modules() if isinstance(m, SmallLinear)]
    assert kept
    assert type(parts.denoiser.x_embedder) is torch.nn.Linear  # the filter leaves it out
    with torch.no_grad():
        condition = family.encode_text(plain, ["a card"])
        assert_near(family.encode_text(parts, ["a card"])["text"], condition["text"])
        noisy, t = torch.randn(1, 16, 8, 8), torch.tensor([0.5])
        expected = family.predict(plain, noisy, t, condition)
        assert_near(family.predict(parts, noisy, t, condition), expected)
    save_model(family, parts, tmp_path / "saved", ModelFormat.DIFFUSERS, torch.float32)
    assert same(load(FLUX, tmp_path / "saved").vae, plain.vae.state_dict())


@pytest.mark.parametrize("source", ["folder", "file"])
def test_small_weights_are_made_of_what_the_file_holds(folders, tmp_path, source):
    """In the file's own type, which takes no memory, and not by way of the run's."""
    family, parts = family_for(FLUX), family_for(FLUX).tiny()
    for weight in parts.denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    save_model(family, parts, tmp_path / "model", ModelFormat.DIFFUSERS, torch.float32)
    (file,) = (tmp_path / "model" / "transformer").glob("*.safetensors")
    changes = {f"{part}.weight_dtype": "INT_8" for part in ("transformer", "text_encoder_2")}
    if source == "file":
        changes["transformer.model_name"] = str(file)
    loaded = load(FLUX, tmp_path / "model", **changes, train_dtype="FLOAT_16")
    held = load_file(file)
    layers = dict(loaded.denoiser.named_modules())
    small = {name: layer for name, layer in layers.items() if isinstance(layer, SmallLinear)}
    assert len(small) > 10
    for name, layer in small.items():
        codes, scales = pack(held[f"{name}.weight"], "int8")
        assert torch.equal(layer.codes, codes)
        assert torch.equal(layer.scales, scales)
        assert layer.weight.dtype == torch.float16
    assert {weight.dtype for weight in loaded.denoiser.parameters()} == {torch.float16}
    t5 = {
        name: layer.weight.dtype
        for name, layer in loaded.module("text_encoder_2").named_modules()
        if isinstance(layer, SmallLinear)
    }
    wide = {name for name, dtype in t5.items() if dtype == torch.float32}
    assert wide == {name for name in t5 if name.endswith(".wo")}  # overflows in float16


def test_a_file_of_8_bits_is_read_in_the_runs_own_type(folders, tmp_path, monkeypatch):
    """In float32 it would take four times its size before its weights are small again."""
    (file,) = (folders(FLUX) / "transformer").glob("*.safetensors")
    held = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in load_file(file).items()}
    save_file(held, tmp_path / "small.safetensors")
    read = set()

    def watched(weight, kind):
        read.add(weight.dtype)
        return pack(weight, kind)

    monkeypatch.setattr(storage, "pack", watched)
    small = {
        "transformer.model_name": str(tmp_path / "small.safetensors"),
        "transformer.weight_dtype": "FLOAT_8",
    }
    load(FLUX, folders(FLUX), **small, train_dtype="BFLOAT_16")
    assert read == {torch.bfloat16}


def assert_near(found, expected):
    assert 0 < (found - expected).square().mean() < 0.05 * expected.square().mean()


def test_small_weights_do_not_train(folders):
    changes = {"unet.weight_dtype": "NFLOAT_4", "training_method": "FINE_TUNE"}
    problem = refusal(SD, folders(SD), **changes, output_model_format="DIFFUSERS")
    assert "NFLOAT_4, in which weights cannot train" in problem.message
    changes = {"unet.weight_dtype": "NFLOAT_4", "quantization.layer_filter": "nothing"}
    problem = refusal(SD, folders(SD), **changes)
    assert "'nothing' matches no linear layer of the unet" in problem.message


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_loads_with_the_settings_beside_it(folders, tmp_path, suffix):
    family = family_for(SD)
    parts = family.tiny()
    file = tmp_path / "model.safetensors"
    save_model(family, parts, file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float32)
    if suffix == ".ckpt":
        torch.save({"state_dict": load_file(file)}, tmp_path / "model.ckpt")
    shutil.copytree(folders(SD), tmp_path / "model")
    loaded = load(SD, tmp_path / f"model{suffix}")
    assert same(loaded.denoiser, parts.denoiser.state_dict())
    assert same(loaded.module("text_encoder"), parts.module("text_encoder").state_dict())


def test_a_single_file_stays_in_its_own_type_until_its_parts_are_made(folders, tmp_path):
    family = family_for(SD)
    file = tmp_path / "model.safetensors"
    save_model(family, family.tiny(), file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float16)
    shutil.copytree(folders(SD), tmp_path / "model")
    halves = {f"{part}.weight_dtype": "FLOAT_16" for part in ("unet", "text_encoder", "vae")}
    for changes, vae in (
        (halves, torch.float16),
        ({**halves, "vae.weight_dtype": "FLOAT_32"}, None),
    ):
        parts = load(SD, file, **changes)
        assert parts.dtype == torch.float16
        assert parts.module("text_encoder").dtype == torch.float16
        assert parts.vae.dtype == (vae or torch.float32)
        stored = load_file(file)["first_stage_model.quant_conv.weight"]
        assert torch.equal(parts.vae.quant_conv.weight.float(), stored.float())


def test_a_single_file_that_is_something_else_is_named(folders, tmp_path):
    def refused(name, tensors):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        shutil.copytree(folders(SD), tmp_path / name)
        return refusal(SD, tmp_path / f"{name}.safetensors").message

    family, flux = family_for(SD), family_for(FLUX)
    save_model(family, family.tiny(), tmp_path / "a", ModelFormat.ORIGINAL_SINGLE_FILE, torch.half)
    save_model(flux, flux.tiny(), tmp_path / "b", ModelFormat.ORIGINAL_TRANSFORMER, torch.half)
    whole = load_file(tmp_path / "a")
    part = {key: tensor for key, tensor in whole.items() if not key.startswith("cond_stage")}
    message = refused("part", part)
    assert "lacks the text_encoder: name a source of that, text_encoder.model_name" in message
    assert "It holds a Flux.1-dev." in refused("flux", load_file(tmp_path / "b"))
    lora = {"lora_unet_conv_in.lora_down.weight": torch.zeros(4, 4)}
    assert "It holds an adapter, no model: name it as lora_model_name." in refused("lora", lora)


def test_a_pickle_that_runs_code_is_refused(folders, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    shutil.copytree(folders(SD), tmp_path / "model")
    with (tmp_path / "model.ckpt").open("wb") as file:
        pickle.dump(Trap(), file)
    problem = refusal(SD, tmp_path / "model.ckpt")
    assert "Cannot load" in problem.message
    assert not (tmp_path / "sprung").exists()


def test_a_part_can_come_from_elsewhere(folders, tmp_path):
    family = family_for(FLUX)
    torch.manual_seed(5)
    other = family.tiny()
    for network in (other.vae, other.denoiser):
        for weight in network.parameters():
            weight.data.normal_(std=0.02)
    other.vae.save_pretrained(tmp_path / "vae")
    save_model(family, other, tmp_path / "whole", ModelFormat.DIFFUSERS, torch.float32)
    parts = load(
        FLUX,
        folders(FLUX),
        **{
            "vae.model_name": str(tmp_path / "vae"),
            "transformer.model_name": str(tmp_path / "whole"),
        },
    )
    assert same(parts.vae, other.vae.state_dict())
    assert same(parts.denoiser, other.denoiser.state_dict())
    problem = refusal(FLUX, folders(FLUX), **{"vae.model_name": str(tmp_path / "nowhere")})
    assert problem.field == "vae.model_name"
    assert "nowhere as FluxPipeline's vae" in problem.message


def test_a_transformer_can_come_from_a_single_file(folders, tmp_path):
    family = family_for(ModelType.Z_IMAGE)
    torch.manual_seed(5)
    other = family.tiny()
    for weight in other.denoiser.parameters():
        weight.data.normal_(std=0.02)
    file = tmp_path / "de-turbo.safetensors"
    save_model(family, other, file, ModelFormat.COMFY_TRANSFORMER, torch.float32)
    parts = load(
        ModelType.Z_IMAGE, folders(ModelType.Z_IMAGE), **{"transformer.model_name": str(file)}
    )
    assert same(parts.denoiser, other.denoiser.state_dict())
    file.write_bytes(file.read_bytes()[:-8])
    problem = refusal(
        ModelType.Z_IMAGE, folders(ModelType.Z_IMAGE), **{"transformer.model_name": str(file)}
    )
    assert problem.field == "transformer.model_name"
    assert "but its header says" in problem.message


@pytest.mark.parametrize(
    ("out", "zeros"),
    [
        ("text_encoder", (slice(0, 77), slice(0, 32))),
        ("text_encoder_2", (slice(0, 77), slice(32, None))),
        ("text_encoder_3", (slice(77, None), slice(None))),
    ],
)
def test_zeros_take_the_place_of_a_text_encoder_that_is_left_out(folders, out, zeros):
    family = family_for(SD3)
    whole, parts = load(SD3, folders(SD3)), load(SD3, folders(SD3), **{f"{out}.include": False})
    assert getattr(parts.pipeline, out) is None
    with torch.no_grad():
        expected = family.encode_text(whole, ["a card", "two"])
        condition = family.encode_text(parts, ["a card", "two"])
    expected["text"][:, zeros[0], zeros[1]] = 0
    if out != "text_encoder_3":
        expected["pooled"][:, zeros[1]] = 0
    torch.testing.assert_close(condition, expected)


def test_what_a_model_needs_cannot_be_left_out(folders):
    problem = refusal(FLUX, folders(FLUX), **{"text_encoder.include": False})
    assert "cannot do without its text_encoder" in problem.message


def test_another_architecture_is_named(folders):
    problem = refusal(SD, folders(FLUX))
    assert problem.field == "base_model_name"
    assert "It holds a FluxPipeline." in problem.message
    assert problem.fix == "Check the path, and that the model is of the chosen model_type."


def test_a_missing_part_is_named(copy):
    folder = copy(SD)
    shutil.rmtree(folder / "vae")
    assert "lacks the folder vae" in refusal(SD, folder).message


def test_a_file_that_was_not_copied_whole_is_named_with_its_sizes(copy):
    folder = copy(SD)
    (file,) = (folder / "unet").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    message = refusal(SD, folder).message
    assert f"{file} has {len(whole) - 100} bytes, but its header says {len(whole)}" in message
    file.write_bytes(b"<html>login</html>" * 20)
    assert f"{file} is no safetensors file" in refusal(SD, folder).message


def test_weights_of_another_size_are_refused(copy):
    folder = copy(SD)
    (file,) = (folder / "unet").glob("*.safetensors")
    weights = load_file(file)
    weights["conv_in.weight"] = torch.zeros(8, 4, 3, 3)
    save_file(weights, file, {"format": "pt"})
    assert "conv_in.weight" in refusal(SD, folder).message


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_weight_that_a_folder_lacks_is_named(copy, part):
    """The libraries would fill it with random numbers."""
    folder = copy(FLUX)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    key = sorted(key for key in weights if key.endswith("weight") and key.count(".") > 2)[0]
    del weights[key]
    save_file(weights, file, {"format": "pt"})
    problem = refusal(FLUX, folder)
    lacking = f"{folder / part} lacks {key.removeprefix('text_model.')} (1 such weights)"
    assert lacking in problem.message
    assert "It holds" not in problem.message
    small = {f"{name}.weight_dtype": "INT_8" for name in ("transformer", "text_encoder_2")}
    assert lacking in refusal(FLUX, folder, **small).message  # parts that are loaded one by one


@pytest.mark.parametrize("lead", ["model.diffusion_model", "first_stage_model", "cond_stage_model"])
def test_a_weight_that_a_single_file_lacks_is_noticed(folders, tmp_path, lead):
    family, file = family_for(SD), tmp_path / "model.safetensors"
    save_model(family, family.tiny(), file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float32)
    shutil.copytree(folders(SD), tmp_path / "model")
    weights = load_file(file)
    del weights[[key for key in weights if key.startswith(lead) and key.endswith("weight")][5]]
    save_file(weights, file)
    problem = refusal(SD, file)
    assert f"{file} lacks" in problem.message
    assert "weights" in problem.message
    assert "It lacks the" not in problem.message


def test_a_transformer_alone_is_no_model(folders, tmp_path):
    family, file = family_for(FLUX), tmp_path / "transformer.safetensors"
    save_model(family, family.tiny(), file, ModelFormat.ORIGINAL_TRANSFORMER, torch.float32)
    shutil.copytree(folders(FLUX), tmp_path / "transformer")
    message = refusal(FLUX, file).message
    assert "It holds the transformer alone: name it as transformer.model_name" in message


def test_a_file_of_another_transformer_is_named(folders, tmp_path):
    flux, kind = family_for(FLUX), ModelType.Z_IMAGE
    file = tmp_path / "transformer.safetensors"
    save_model(flux, flux.tiny(), file, ModelFormat.ORIGINAL_TRANSFORMER, torch.float32)
    problem = refusal(kind, folders(kind), **{"transformer.model_name": str(file)})
    assert problem.field == "transformer.model_name"
    assert "as ZImagePipeline's transformer" in problem.message
    assert "It holds a Flux.1-dev." in problem.message


def test_8_bit_weights_with_scales_beside_them_are_refused(folders, tmp_path):
    """diffusers would load the numbers as they are, and leave the scales out."""
    family, kind = family_for(ModelType.Z_IMAGE), ModelType.Z_IMAGE
    file = tmp_path / "transformer.safetensors"
    save_model(family, family.tiny(), file, ModelFormat.COMFY_TRANSFORMER, torch.float32)
    weights = load_file(file)
    save_file({**weights, "layers.0.attention.qkv.scale_weight": torch.ones(1)}, file)
    problem = refusal(kind, folders(kind), **{"transformer.model_name": str(file)})
    assert "scales of their own, such as layers.0.attention.qkv.scale_weight" in problem.message


def test_nothing_there_says_what_could_be(tmp_path):
    problem = refusal(SD, tmp_path / "missing")
    assert "Check the path" in problem.fix
    problem = refusal(SD, "someone/something")
    assert "Check the spelling of the hub id" in problem.fix
    (tmp_path / "empty").mkdir()
    assert "has no model_index.json" in refusal(SD, tmp_path / "empty").message


def test_a_layer_skip_that_a_model_cannot_have_is_refused(folders):
    problem = refusal(FLUX, folders(FLUX), text_encoder_2_layer_skip=1)
    assert problem.field == "text_encoder_2_layer_skip"
    assert "uses fixed layers of its text_encoder_2" in problem.message


def test_each_encoder_skips_layers_of_its_own(folders):
    family = family_for(SDXL)
    plain = load(SDXL, folders(SDXL))
    skipping = load(SDXL, folders(SDXL), text_encoder_2_layer_skip=1)
    with torch.no_grad():
        before = family.encode_text(plain, ["a card"])["text"]
        after = family.encode_text(skipping, ["a card"])["text"]
    assert torch.equal(before[..., :32], after[..., :32])
    assert not torch.equal(before[..., 32:], after[..., 32:])
    assert plain.text.identity != skipping.text.identity


def test_clip_skip_is_the_pipelines_own(folders):
    family = family_for(SDXL)
    parts = load(SDXL, folders(SDXL), text_encoder_layer_skip=1, text_encoder_2_layer_skip=1)
    with torch.no_grad():
        mine = family.encode_text(parts, ["a card"])
        theirs, _, pooled, _ = parts.pipeline.encode_prompt(
            "a card", do_classifier_free_guidance=False, clip_skip=1
        )
    torch.testing.assert_close(mine["text"], theirs)
    torch.testing.assert_close(mine["pooled"], pooled)
