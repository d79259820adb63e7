"""Adapter files of every family and format: names, numbers, and who can read them."""

import inspect
import os
import types
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_model
from safetensors.torch import load_file

from modules.adapters.files import save_tensors, to_canonical, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.adapters.native import to_native
from modules.adapters.reading import read_adapter, verify
from modules.config import ConfigError, ModelFormat
from modules.families import all_families

FAMILIES = []
for each in all_families():  # variants of one architecture mostly write the same files
    same = (
        type(other) is type(each) and other.lora_formats == each.lora_formats for other in FAMILIES
    )
    if not any(same):
        FAMILIES.append(each)
KEYS = Path(__file__).parent / "keys"
FORMATS = (
    ModelFormat.DIFFUSERS_LORA,
    ModelFormat.KOHYA_LORA,
    ModelFormat.ORIGINAL_LORA,
    ModelFormat.COMFY_LORA,
    ModelFormat.LEGACY_LORA,
)


CASES = [
    pytest.param(
        each,
        id=each.architecture,
        marks=[pytest.mark.slow] if each.architecture == "stable-diffusion-v2" else [],
    )
    for each in FAMILIES
]


@pytest.fixture(scope="module", params=CASES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def trained(family):
    """Networks with an adapter on every layer that takes one, as if it had been trained."""
    parts = family.tiny()
    networks = {}
    for name in (family.denoiser, *family.trainable_encoders):
        network = parts.module(name)
        paths = matching_layers(network, "", regex=False)
        layers = [path for path in paths if family.learns(name, path)]
        add_lora(network, layers, rank=4, alpha=2.0, dropout=0.0, seed=1)
        generator = torch.Generator().manual_seed(2)
        for layer in lora_layers({name: network}):
            layer.up.data.normal_(std=0.1, generator=generator)
        networks[name] = network
    return networks


def layers_of(trained, family, model_format):
    """What a run could have trained whose output has that format."""
    return [
        layer
        for layer in lora_layers(trained)
        if layer.part in family.lora_formats[model_format].prefixes
    ]


def change(tensors, name):
    """The weight change of a layer, [out, in * k * k], from OneTrainer's own names."""
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    return (up.flatten(1) @ down.flatten(1)) * (tensors[f"{name}.alpha"] / len(down))


def assert_same_change(found, expected):
    names = {key.removesuffix(".alpha") for key in expected if key.endswith(".alpha")}
    assert {key.removesuffix(".alpha") for key in found if key.endswith(".alpha")} == names
    for name in names:
        torch.testing.assert_close(change(found, name), change(expected, name), msg=name)


@pytest.mark.parametrize("model_format", FORMATS, ids=lambda each: each.value)
def test_names_are_the_committed_ones(family, trained, model_format):
    """`WRITE_KEYS=1 pytest ...` writes the lists anew; their change is a change for every user."""
    if model_format not in family.lora_formats:
        with pytest.raises(ConfigError, match="does not have as an adapter"):
            to_format(lora_layers(trained), family, model_format)
        return
    tensors = to_format(layers_of(trained, family, model_format), family, model_format)
    names = sorted({key.rpartition(".lora_")[0] or key for key in tensors} - set(alphas(tensors)))
    file = KEYS / family.architecture / f"{model_format.value}.txt"
    if os.environ.get("WRITE_KEYS"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(names) + "\n")
    assert names == file.read_text().splitlines()
    peft = model_format in (
        ModelFormat.DIFFUSERS_LORA,
        ModelFormat.ORIGINAL_LORA,
        ModelFormat.COMFY_LORA,
    )
    down, up = ("lora_A", "lora_B") if peft else ("lora_down", "lora_up")
    for name in names:
        assert f"{name}.{down}.weight" in tensors
        assert f"{name}.{up}.weight" in tensors
        assert (f"{name}.alpha" in tensors) == (model_format is not ModelFormat.DIFFUSERS_LORA)


def alphas(tensors):
    return [key for key in tensors if key.endswith(".alpha")]


@pytest.mark.parametrize("model_format", FORMATS, ids=lambda each: each.value)
def test_reading_finds_what_was_written(family, trained, model_format, tmp_path):
    if model_format not in family.lora_formats:
        return
    layers = layers_of(trained, family, model_format)
    file = tmp_path / "lora.safetensors"
    save_tensors(to_format(layers, family, model_format), file, torch.float32)
    found = read_adapter(load_file(file), family, trained)
    assert found.unplaced == []
    assert_same_change(found.tensors, to_canonical(layers, family))


def test_diffusers_reads_the_same_change(family, trained, tmp_path):
    fresh = family.tiny()
    if not hasattr(fresh.pipeline, "load_lora_weights"):
        pytest.skip(f"diffusers has no adapter loader for {family.pipeline}")
    readable = {  # its loaders know adapters of CLIP alone, and fail on Chroma's T5
        name: network
        for name, network in trained.items()
        if name == family.denoiser
        or ("CLIP" in type(network).__name__ and name in fresh.pipeline._lora_loadable_modules)
    }
    tensors = to_format(lora_layers(readable), family, ModelFormat.DIFFUSERS_LORA)
    file = tmp_path / "lora.safetensors"
    save_tensors(tensors, file, torch.float32)
    fresh.pipeline.load_lora_weights(file)
    compared = 0
    for name, network in readable.items():
        theirs = dict(fresh.module(name).named_modules())
        for layer in lora_layers({name: network}):
            loaded = theirs[layer.path]
            adapter = next(iter(loaded.lora_A))
            delta = loaded.get_delta_weight(adapter).flatten(1)
            own = (layer.up.flatten(1) @ layer.down.flatten(1)) * (layer.alpha / layer.rank)
            torch.testing.assert_close(delta, own.reshape(delta.shape), atol=1e-5, rtol=1e-4)
            compared += 1
    assert compared > 0


READ_BY_DIFFUSERS = {
    "stable-diffusion-v1": (ModelFormat.KOHYA_LORA, ""),
    "stable-diffusion-xl-v1-base": (ModelFormat.KOHYA_LORA, ""),
    "Qwen-Image": (ModelFormat.KOHYA_LORA, "transformer_blocks"),
    "Z-Image": (ModelFormat.KOHYA_LORA, "layers"),
    "Flux.2": (ModelFormat.COMFY_LORA, "transformer_blocks"),
    "Krea-2": (ModelFormat.COMFY_LORA, "transformer_blocks"),
    "Ideogram": (ModelFormat.COMFY_LORA, "layers"),
    "wan-2": (ModelFormat.COMFY_LORA, "blocks"),
    "Anima": (ModelFormat.COMFY_LORA, ""),
}
"""Layouts of other tools that diffusers converts, and the layers that it knows there."""


def test_diffusers_converts_the_layout_of_other_tools(family, trained, tmp_path):
    if family.architecture not in READ_BY_DIFFUSERS:
        pytest.skip("diffusers converts no other layout of this family")
    model_format, where = READ_BY_DIFFUSERS[family.architecture]
    layers = [
        layer
        for layer in lora_layers({family.denoiser: trained[family.denoiser]})
        if where in layer.path
    ]
    file = tmp_path / "lora.safetensors"
    tensors = to_format(layers, family, model_format)
    if model_format is ModelFormat.COMFY_LORA:  # most of its converters know no alpha
        for key in alphas(tensors):
            name = key.removesuffix(".alpha")
            tensors[f"{name}.lora_B.weight"] = (
                tensors[f"{name}.lora_B.weight"]
                * tensors.pop(key)
                / len(tensors[f"{name}.lora_A.weight"])
            )
    save_tensors(tensors, file, torch.float32)
    fresh = family.tiny()
    fresh.pipeline.load_lora_weights(file)
    theirs = dict(fresh.denoiser.named_modules())
    for layer in layers:
        loaded = theirs[layer.path]
        delta = loaded.get_delta_weight(next(iter(loaded.lora_A))).flatten(1)
        own = (layer.up.flatten(1) @ layer.down.flatten(1)) * (layer.alpha / layer.rank)
        torch.testing.assert_close(delta, own.reshape(delta.shape), atol=1e-5, rtol=1e-4)


def test_the_original_layout_is_the_one_that_diffusers_converts(family):
    """diffusers' own converter from the original layout is the reference for every native name."""
    native = family.file_layout or family.lora_formats[ModelFormat.ORIGINAL_LORA].native
    if native is None:
        pytest.skip("its adapters keep diffusers' names")
    network = family.tiny().denoiser
    loadable = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    entry = loadable.get(type(network).__name__)
    if entry is None:
        pytest.skip(f"diffusers reads no original layout of {type(network).__name__}")
    own = network.state_dict()
    theirs = to_native(own, native)
    convert = narrowed(entry["checkpoint_mapping_fn"], network)
    if "config" in inspect.signature(convert).parameters:
        theirs = {f"model.diffusion_model.{key}": tensor for key, tensor in theirs.items()}
    back = convert(dict(theirs), config=dict(network.config))
    computed = {key for key in own.keys() - back.keys() if "pos_embed" in key}  # not stored there
    assert back.keys() | computed == own.keys()
    for key, tensor in back.items():
        torch.testing.assert_close(tensor.reshape(own[key].shape), own[key], msg=key)


def narrowed(convert, network):
    """A converter that knows the widths of the real model by heart, for those of a toy."""
    config = network.config
    heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
    swaps = {3072: heads * width} if isinstance(heads, int) and isinstance(width, int) else {}
    if "num_kv_heads" in config:
        head = config["hidden_size"] // config["num_attention_heads"]
        swaps |= {2304: config["hidden_size"], 768: head * config["num_kv_heads"]}

    def narrow(code):
        constants = tuple(
            narrow(each)
            if isinstance(each, types.CodeType)
            else swaps.get(each, each)
            if isinstance(each, int)
            else each
            for each in code.co_consts
        )
        return code.replace(co_consts=constants)

    if not isinstance(convert, types.FunctionType):
        return convert
    code = narrow(convert.__code__)
    changed = types.FunctionType(code, convert.__globals__, closure=convert.__closure__)
    changed.__defaults__ = convert.__defaults__
    return changed


SPELLINGS = {
    "PEFT": lambda key: f"base_model.model.{key}",
    "ComfyUI": lambda key: f"model.diffusion_model.{key}",
    "an adapter of a name": lambda key: key.replace(".weight", ".default.weight"),
    "old diffusers": lambda key: key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
}


@pytest.mark.parametrize("tool", SPELLINGS)
def test_other_tools_spellings_are_read(family, trained, tool):
    layers = list(lora_layers({family.denoiser: trained[family.denoiser]}))
    tensors = to_format(layers, family, ModelFormat.DIFFUSERS_LORA)
    prefix = f"{family.denoiser}."
    spelled = {SPELLINGS[tool](key.removeprefix(prefix)): value for key, value in tensors.items()}
    odd = {"nowhere.lora_A.weight": torch.zeros(1), "note._aux.weight": torch.zeros(1)}
    found = read_adapter({**spelled, **odd}, family, trained)
    assert found.unplaced == ["nowhere.lora_A.weight"]
    assert_same_change(found.tensors, to_canonical(layers, family))


def t5_of(family):
    """The part that is a T5, by ComfyUI's name for it; None for a family without one."""
    comfy = family.lora_formats[ModelFormat.COMFY_LORA].prefixes
    return next((name for name, prefix in comfy.items() if "t5xxl" in prefix), None)


@pytest.mark.parametrize(
    "family", [case for case in CASES if t5_of(*case.values)], indirect=True, scope="module"
)
def test_kohyas_number_of_t5_is_read(family, trained):
    """Its trainer calls T5 `lora_te3` whatever stands beside it, as ComfyUI does."""
    name = t5_of(family)
    layers = list(lora_layers({name: trained[name]}))
    tensors = to_format(layers, family, ModelFormat.KOHYA_LORA)
    assert tensors
    spelled = {f"lora_te3_{key.split('_', 2)[2]}": value for key, value in tensors.items()}
    found = read_adapter(spelled, family, trained)
    assert found.unplaced == []
    assert_same_change(found.tensors, to_canonical(layers, family))


def test_a_cascade_of_onetrainer_is_read():
    """It numbers q, k and v of the attention, which ComfyUI calls by their names."""
    family = next(each for each in FAMILIES if each.architecture == "stable-cascade-v1-prior")
    network = family.tiny().denoiser
    add_lora(network, matching_layers(network, "", False), rank=2, alpha=1.0, dropout=0.0, seed=1)
    layers = list(lora_layers({"prior": network}))
    for model_format in (ModelFormat.KOHYA_LORA, ModelFormat.COMFY_LORA, ModelFormat.ORIGINAL_LORA):
        tensors = to_format(layers, family, model_format)
        for number, leaf in enumerate(("to_q", "to_k", "to_v")):
            for dot in "._":
                tensors = {
                    key.replace(f"attn{dot}{leaf}", f"attn{dot}in_proj{dot}{number}"): value
                    for key, value in tensors.items()
                }
        assert any("in_proj" in key for key in tensors)
        found = read_adapter(tensors, family, {"prior": network})
        assert found.unplaced == []
        assert_same_change(found.tensors, to_canonical(layers, family))


def test_a_file_is_read_back_before_it_is_written(family, trained):
    layers = list(lora_layers({family.denoiser: trained[family.denoiser]}))
    tensors = to_format(layers, family, ModelFormat.COMFY_LORA)
    verify(tensors, layers, family, trained)
    up = next(key for key in tensors if key.endswith("lora_B.weight"))
    with pytest.raises(ValueError, match=r"lora_B\.weight holds numbers that are not finite"):
        verify({**tensors, up: tensors[up] / 0}, layers, family, trained)
    with pytest.raises(ValueError, match="would come back with another weight change"):
        verify({**tensors, up: tensors[up] * 1.5}, layers, family, trained)
    with pytest.raises(ValueError, match=r"nowhere\.lora_A\.weight names no layer"):
        verify({**tensors, "nowhere.lora_A.weight": torch.zeros(1)}, layers, family, trained)
    less = {
        key: value
        for key, value in tensors.items()
        if not key.startswith(up[: -len("lora_B.weight")])
    }
    with pytest.raises(ValueError, match="would be missing from the file"):
        verify(less, layers, family, trained)


def test_a_part_without_a_place_is_refused(family, trained):
    if not family.trainable_encoders:
        return
    with pytest.raises(ConfigError, match="no place for text_encoder"):
        to_format(lora_layers(trained), family, ModelFormat.ORIGINAL_LORA)
