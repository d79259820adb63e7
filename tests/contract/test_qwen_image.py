"""The text encoder of Qwen-Image: a model of pictures and text, of which captions pass a part."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import cards, config_for

from modules import GenericTrainer, TrainCallbacks, TrainConfig
from modules.adapters.change import weight_change
from modules.adapters.files import to_canonical, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.adapters.low_rank import extract
from modules.adapters.merging import merge
from modules.adapters.reading import read_adapter
from modules.adapters.writing import by_layer
from modules.config import ModelFormat, ModelType
from modules.families import family_for
from modules.families.saving import save_model
from modules.training.method import method_for

torch.set_num_threads(1)
FAMILY = family_for(ModelType.QWEN)
CAPTIONS = ["a red circle", "blurry, of glass"]


def adapted(paths=None):
    """A toy's text encoder with an adapter on some layers, by default on all, that changes them."""
    parts = FAMILY.tiny()
    network = parts.pipeline.text_encoder
    paths = paths or matching_layers(network, "", regex=False)
    add_lora(network, paths, rank=2, alpha=1.0, dropout=0.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    layers = list(lora_layers({"text_encoder": network}))
    for layer in layers:
        layer.up.data.normal_(std=0.1, generator=generator)
    return parts, layers


def test_captions_pass_every_layer_that_learns_and_no_other():
    parts, layers = adapted()
    FAMILY.encode_text(parts, CAPTIONS)["text"].square().sum().backward()
    reached = {layer.path for layer in layers if layer.up.grad is not None and layer.up.grad.any()}
    assert reached
    assert reached == {each.path for each in layers if FAMILY.learns("text_encoder", each.path)}
    whole = FAMILY.tiny()
    network = whole.pipeline.text_encoder.requires_grad_(True)
    FAMILY.encode_text(whole, CAPTIONS)["text"].square().sum().backward()
    for path, weight in network.named_parameters():
        assert (weight.grad is not None) == FAMILY.learns("text_encoder", path), path


LAYER = "model.language_model.layers.0.self_attn.q_proj"
SPELLINGS = {
    "ComfyUI": "text_encoders.qwen25_7b.transformer.model.layers.0.self_attn.q_proj",
    "OneTrainer for ComfyUI": f"text_encoders.qwen25_7b.transformer.{LAYER}",
    "diffusers": f"text_encoder.{LAYER}",
    "diffusers of old": "text_encoder.model.layers.0.self_attn.q_proj",
    "kohya": "lora_te_model_language_model_layers_0_self_attn_q_proj",
    "kohya of old": "lora_te_model_layers_0_self_attn_q_proj",
    "kohya with a number": "lora_te1_model_language_model_layers_0_self_attn_q_proj",
}


def test_every_tools_name_of_a_layer_is_read():
    parts, layers = adapted([LAYER])
    own = to_canonical(layers, FAMILY)
    for tool, name in SPELLINGS.items():
        spelled = {key.replace(f"text_encoder.{LAYER}", name): held for key, held in own.items()}
        found = read_adapter(spelled, FAMILY, parts.modules())
        assert found.unplaced == [], tool
        assert found.tensors.keys() == own.keys(), tool
        assert all(torch.equal(found.tensors[key], own[key]) for key in own), tool


@torch.no_grad()
def test_an_adapter_merged_into_a_folder_encodes_as_it_did_live(tmp_path):
    """Its files name the layers as Qwen published them, and the adapter as transformers does."""
    save_model(FAMILY, FAMILY.tiny(), tmp_path / "model", ModelFormat.DIFFUSERS, torch.float32)
    parts, layers = adapted()
    plain = FAMILY.encode_text(FAMILY.tiny(), CAPTIONS)["text"]
    expected = FAMILY.encode_text(parts, CAPTIONS)["text"]
    assert (expected - plain).abs().max() > 1e-2
    for model_format in (ModelFormat.DIFFUSERS_LORA, ModelFormat.COMFY_LORA):
        file = tmp_path / f"{model_format.value}.safetensors"
        save_file(to_format(layers, FAMILY, model_format), file)
        merge(tmp_path / "model", tmp_path / "merged", {file: 1.0})
        merged = FAMILY.encode_text(loaded(tmp_path / "merged"), CAPTIONS)["text"]
        torch.testing.assert_close(merged, expected)
    drawn = tmp_path / "drawn.safetensors"
    extract(tmp_path / "model", tmp_path / "merged", drawn, rank=2, dtype=torch.float32)
    merge(tmp_path / "model", tmp_path / "again", {drawn: 1.0})
    again = FAMILY.encode_text(loaded(tmp_path / "again"), CAPTIONS)["text"]
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)


def loaded(folder):
    source = {"model_type": "QWEN", "base_model_name": str(folder)}
    return FAMILY.load(TrainConfig().update(**source, text_encoder_sequence_length=64))


def test_an_adapter_of_layers_that_learn_nothing_is_gone_on_from(tmp_path):
    """As OneTrainer trains them: on the vision tower and the head too, where they stay zero."""
    _parts, layers = adapted()
    tensors = to_format(layers, FAMILY, ModelFormat.LEGACY_LORA)
    assert any(".visual." in key for key in tensors)
    file = tmp_path / "theirs.safetensors"
    save_file(tensors, file)
    (tmp_path / "pictures").mkdir()
    config = config_for(
        ModelType.QWEN,
        cards(tmp_path / "pictures"),
        tmp_path,
        lora_model_name=str(file),
        lora_rank=2,
        lora_alpha=1.0,
        **{"text_encoder.train": True, "transformer.train": False},
    )
    live = FAMILY.tiny()
    method = method_for(config, FAMILY, live)
    own = to_canonical(lora_layers(method.networks), FAMILY)
    assert not any("visual" in key or "lm_head" in key for key in own)
    theirs = to_canonical(layers, FAMILY)
    assert all(torch.equal(own[key], theirs[key]) for key in own)


KINDS = {
    "lora": {},
    "dora": {"lora_decompose": True},
    "loha": {"peft_type": "LOHA"},
    "lokr": {"peft_type": "LOKR", "lokr_dim": 2},
    "oft": {"peft_type": "OFT_2", "oft_block_size": 2},
}


@pytest.mark.parametrize(
    "kind",
    [kind if kind == "lora" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_a_run_trains_the_encoder_and_caches_no_caption(kind, tmp_path):
    (tmp_path / "pictures").mkdir()
    settings = {"text_encoder.train": True, "transformer.train": False, **KINDS[kind]}
    config = config_for(ModelType.QWEN, cards(tmp_path / "pictures"), tmp_path, **settings)
    GenericTrainer(config, TrainCallbacks()).run()
    live = FAMILY.tiny()
    network = live.pipeline.text_encoder
    found = read_adapter(load_file(tmp_path / "lora.safetensors"), FAMILY, live.modules())
    assert found.unplaced == []
    learned = by_layer(found.tensors)
    assert len(learned) == 14
    for name, held in learned.items():
        weight = network.get_submodule(name.removeprefix("text_encoder.")).weight
        assert weight_change(held, weight.detach()).any(), name
    kinds = {path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()}
    assert "image" in kinds
    assert "text" not in kinds


@pytest.mark.slow
def test_a_whole_encoder_trains_but_for_what_sees_and_speaks(tmp_path):
    (tmp_path / "pictures").mkdir()
    changes = {
        "training_method": "FINE_TUNE",
        "output_model_format": "DIFFUSERS",
        "output_model_destination": str(tmp_path / "tuned"),
        "learning_rate": 1e-3,
        "text_encoder.train": True,
    }
    config = config_for(ModelType.QWEN, cards(tmp_path / "pictures"), tmp_path, **changes)
    live = FAMILY.tiny()
    method_for(config, FAMILY, live)
    for path, weight in live.pipeline.text_encoder.named_parameters():
        assert weight.requires_grad == FAMILY.learns("text_encoder", path), path
    GenericTrainer(config, TrainCallbacks()).run()
    tuned = loaded(tmp_path / "tuned").pipeline.text_encoder.state_dict()
    before = FAMILY.tiny().pipeline.text_encoder.state_dict()
    assert tuned.keys() == before.keys()
    for key, weight in before.items():
        assert torch.equal(tuned[key], weight) != FAMILY.learns("text_encoder", key), key


@torch.no_grad()
def test_a_long_caption_keeps_its_length_in_bfloat16():
    """Of 301 tokens, which no number of that type counts."""
    parts = FAMILY.tiny()
    noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(1, 320, 16, generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(320) < 301)[None]
    expected, found = (
        FAMILY.predict(parts, noisy, torch.tensor([0.5]), {"text": text, "mask": mask.to(dtype)})
        for dtype in (torch.long, torch.bfloat16)
    )
    assert torch.equal(found, expected)
