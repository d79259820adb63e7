"""Converting, merging, extracting and resizing, against live networks with the adapter on them."""

import json
import shutil
from itertools import pairwise

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules.adapters.converting import convert
from modules.adapters.files import AdapterError, save_tensors, to_canonical, to_format
from modules.adapters.kinds import adapter_layers, add_adapter, in_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.adapters.low_rank import extract, resize
from modules.adapters.merging import merge
from modules.adapters.reading import read_adapter, verify_found
from modules.adapters.recognise import recognise
from modules.config import ConfigError, ModelFormat, ModelType, TrainConfig
from modules.families import family_for
from modules.families.saving import save_model

torch.set_num_threads(1)
SD, SDXL, SD3, FLUX = (
    ModelType.STABLE_DIFFUSION_15,
    ModelType.STABLE_DIFFUSION_XL_10_BASE,
    ModelType.STABLE_DIFFUSION_3,
    ModelType.FLUX_DEV_1,
)
LORAS = (
    ModelFormat.DIFFUSERS_LORA,
    ModelFormat.KOHYA_LORA,
    ModelFormat.COMFY_LORA,
    ModelFormat.LEGACY_LORA,
    ModelFormat.INTERNAL,
)


class Model:
    """A toy of an architecture, its folder, and an adapter that could have been trained on it."""

    def __init__(self, kind, folder):
        self.kind, self.family = kind, family_for(kind)
        parts = self.family.tiny()
        if kind is SD3:  # what diffusers takes CLIP-L's to be in a single file
            torch.nn.init.eye_(parts.pipeline.text_encoder.text_projection.weight)
        self.folder = folder / "model"
        save_model(self.family, parts, self.folder, ModelFormat.DIFFUSERS, torch.float32)
        self.file = folder / "model.safetensors"
        if self.family.single_file:
            save_model(
                self.family, parts, self.file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float32
            )
        self.networks = {}
        generator = torch.Generator().manual_seed(2)
        for name in (self.family.denoiser, *self.family.trainable_encoders):
            network = parts.module(name)
            layers = matching_layers(network, "", regex=False)
            add_lora(network, layers, rank=3, alpha=1.5, dropout=0.0, seed=1)
            for layer in lora_layers({name: network}):
                layer.up.data.normal_(std=0.1, generator=generator)
            self.networks[name] = network
        self.layers = list(lora_layers(self.networks))
        self.lora = folder / "lora.safetensors"
        self.write(self.lora, ModelFormat.KOHYA_LORA)

    def write(self, file, model_format):
        tensors = to_format(self.layers, self.family, model_format)
        notes = {"modelspec.architecture": f"{self.family.architecture}/lora", "mine": "kept"}
        save_tensors(tensors, file, torch.float32, notes)

    def changes(self, file):
        """The weight change of each layer that a file holds."""
        found = read_adapter(load_file(file), self.family, self.networks)
        assert found.unplaced == []
        names = {key.removesuffix(".alpha") for key in found.tensors if key.endswith(".alpha")}
        return {name: product(found.tensors, name) for name in names}

    def expected(self):
        tensors = to_canonical(self.layers, self.family)
        names = {key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")}
        return {name: product(tensors, name) for name in names}

    def merged_weights(self):
        """By part and path: what the live weights with the adapter in them are, by peft."""
        found = {}
        for part, network in self.networks.items():
            for path, module in network.named_modules():
                if hasattr(module, "get_delta_weight"):
                    delta = module.get_delta_weight("default")
                    found[part, path] = (module.base_layer.weight + delta).detach()
        return found


def product(tensors, name):
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    return (up.flatten(1) @ down.flatten(1)) * (tensors[f"{name}.alpha"] / len(down))


def assert_same(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        torch.testing.assert_close(found[name], change, atol=atol, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of each type, made when first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = Model(kind, tmp_path_factory.mktemp(kind.value))
        return made[kind]

    return get


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
        assert len(file.metadata()["modelspec.hash_sha256"]) == 66


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
    found = recognise(deep, {}, FLUX)
    assert found.adapter.unplaced == []
    assert "transformer.single_transformer_blocks.37.proj_mlp" in found.adapter.layers
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


def test_a_format_that_a_model_lacks_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="ORIGINAL_SINGLE_FILE, which Flux"):
        convert(model(FLUX).folder, tmp_path / "x.safetensors", "ORIGINAL_SINGLE_FILE")
    convert(model(FLUX).folder, tmp_path / "x.safetensors", "ORIGINAL_TRANSFORMER")
    with pytest.raises(AdapterError, match=r"is a single file already\. Convert it to DIFFUSERS"):
        convert(tmp_path / "x.safetensors", tmp_path / "y", "COMFY_TRANSFORMER")


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


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
def test_what_was_merged_is_extracted_again(model, exact, tmp_path):
    its = model(SD)
    merge(its.folder, tmp_path / "tuned", {its.lora: 1.0})
    extract(
        its.folder,
        tmp_path / "tuned",
        tmp_path / "new",
        rank=3,
        model_format="KOHYA_LORA",
        exact=exact,
        dtype=torch.float32,
    )
    assert_same(its.changes(tmp_path / "new"), its.expected(), atol=1e-4)


def test_extracting_from_single_files_finds_the_parts_of_fused_weights(model, tmp_path):
    its = model(SD3)
    merge(its.file, tmp_path / "tuned.safetensors", {its.lora: 1.0}, model_type=SD3)
    extract(
        its.file,
        tmp_path / "tuned.safetensors",
        tmp_path / "new",
        rank=3,
        model_type=SD3,
        dtype=torch.float32,
    )
    assert_same(its.changes(tmp_path / "new"), its.expected(), atol=1e-4)


def test_an_extract_of_a_smaller_rank_is_the_nearest_there_is(model, tmp_path):
    its = model(SD)
    merge(its.folder, tmp_path / "tuned", {its.lora: 1.0})
    extract(its.folder, tmp_path / "tuned", tmp_path / "new", rank=2, dtype=torch.float32)
    found, expected = its.changes(tmp_path / "new"), its.expected()
    for name, change in expected.items():
        values = torch.linalg.svdvals(change)
        least = values[2:].norm()  # Eckart and Young
        torch.testing.assert_close((found[name] - change).norm(), least, atol=1e-4, rtol=1e-2)


def test_outliers_are_cut_off_at_the_quantile(model, tmp_path):
    its = model(SD)
    merge(its.folder, tmp_path / "tuned", {its.lora: 1.0})
    extract(its.folder, tmp_path / "tuned", tmp_path / "whole", rank=3, dtype=torch.float32)
    extract(
        its.folder,
        tmp_path / "tuned",
        tmp_path / "cut",
        rank=3,
        clamp_quantile=0.9,
        dtype=torch.float32,
    )
    whole, cut = load_file(tmp_path / "whole"), load_file(tmp_path / "cut")
    for key in whole:
        if key.endswith("lora_A.weight"):
            other = key.replace("lora_A", "lora_B")
            numbers = torch.cat([whole[key].flatten(), whole[other].flatten()]).abs()
            most = max(float(cut[key].abs().max()), float(cut[other].abs().max()))
            assert 0.85 < (numbers <= most + 1e-6).float().mean() < 0.95


def test_models_that_cannot_be_compared_are_refused(model, tmp_path):
    sd = model(SD)
    with pytest.raises(AdapterError, match="do not differ in any layer"):
        extract(sd.folder, sd.folder, tmp_path / "new", rank=4)
    with pytest.raises(AdapterError, match="do not have the same layers"):
        extract(sd.folder, model(FLUX).folder, tmp_path / "new", rank=4)
    with pytest.raises(AdapterError, match="rank is 0, but a rank is at least 1"):
        extract(sd.folder, sd.folder, tmp_path / "new", rank=0)
    with pytest.raises(AdapterError, match=r"clamp_quantile is 2, but is in"):
        extract(sd.folder, sd.folder, tmp_path / "new", rank=4, clamp_quantile=2)


@pytest.mark.parametrize("model_format", LORAS[:3], ids=lambda each: each.value)
def test_a_resized_lora_is_the_nearest_of_its_rank(model, model_format, tmp_path):
    its = model(SD)
    its.write(tmp_path / "old", model_format)
    ranks = resize(tmp_path / "old", tmp_path / "new", rank=2)
    assert set(ranks.values()) == {2}
    assert load_file(tmp_path / "new").keys() == load_file(tmp_path / "old").keys()
    found, expected = its.changes(tmp_path / "new"), its.expected()
    for name, change in expected.items():
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        nearest = (left[:, :2] * values[:2]) @ right[:2]
        torch.testing.assert_close(found[name], nearest, atol=1e-5, rtol=1e-3, msg=name)
    resize(tmp_path / "old", tmp_path / "same", rank=8)
    assert_same(its.changes(tmp_path / "same"), expected, atol=1e-5)


def diagonal(values):
    """A LoRA whose change has these singular values."""
    rank = len(values)
    return {
        "a.lora_down.weight": torch.eye(rank, 8),
        "a.lora_up.weight": torch.eye(6, rank) * torch.tensor(values),
        "a.alpha": torch.tensor(2.0 * rank),
        "a.dora_scale": torch.ones(6, 1),
    }


@pytest.mark.parametrize(
    ("limits", "rank"),
    [
        ({"ratio": 3.0}, 2),
        ({"ratio": 100.0}, 4),
        ({"share": 0.9}, 2),
        ({"share": 0.5}, 1),
        ({"share": 1.0}, 4),
        ({"rank": 1, "share": 1.0}, 1),
    ],
    ids=str,
)
def test_a_rank_can_be_chosen_by_what_it_keeps(limits, rank, tmp_path):
    # norms of the largest alone: 4 / 5.1 = 0.78; of two: 5 / 5.1 = 0.98
    save_file(diagonal([4.0, 3.0, 1.0, 0.05]), tmp_path / "old", {"ss_network_dim": "4"})
    ranks = resize(tmp_path / "old", tmp_path / "new", **limits)
    assert ranks == {"a": rank}
    new = load_file(tmp_path / "new")
    assert new["a.lora_down.weight"].shape == (rank, 8)
    assert float(new["a.alpha"]) == 2.0 * rank  # the scale alpha / R stays
    assert torch.equal(new["a.dora_scale"], torch.ones(6, 1))
    with safe_open(tmp_path / "new", "pt") as file:
        assert file.metadata()["ss_network_dim"] == str(rank)


def test_a_resize_without_a_limit_or_a_lora_is_refused(model, tmp_path):
    its = model(SD)
    with pytest.raises(AdapterError, match="Set rank, ratio or share"):
        resize(its.lora, tmp_path / "new")
    with pytest.raises(AdapterError, match=r"ratio is 0\.5, but is at least 1"):
        resize(its.lora, tmp_path / "new", ratio=0.5)
    with pytest.raises(AdapterError, match=r"share is 2, but is in"):
        resize(its.lora, tmp_path / "new", share=2)
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "none")
    with pytest.raises(AdapterError, match="holds no LoRA: its keys are such as weight"):
        resize(tmp_path / "none", tmp_path / "new", rank=2)


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
