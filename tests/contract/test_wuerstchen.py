"""What is peculiar to Würstchen and Stable Cascade: networks from three places, and two stages."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import save_toy

from modules.adapters.converting import convert
from modules.adapters.files import save_tensors, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.adapters.merging import merge
from modules.config import (
    ConfigError,
    ModelFormat,
    ModelType,
    SampleConfig,
    TrainConfig,
    validate,
)
from modules.families import family_for, wuerstchen_stages
from modules.families.efficient_net import EfficientNetEncoder
from modules.families.folders import parts_of, read_index
from modules.families.saving import save_model
from modules.families.storage import SmallLinear
from modules.sampling.preview import denoised
from modules.sampling.sampler import sample_batch
from modules.training.forward import Draw, Forward
from modules.training.update import build_update

torch.set_num_threads(1)
WUERSTCHEN, CASCADE = ModelType.WUERSTCHEN_2, ModelType.STABLE_CASCADE_1
KINDS = [pytest.param(kind, id=kind.value) for kind in (WUERSTCHEN, CASCADE)]
DEFINITION = SampleConfig().update(
    prompt="a card", width=128, height=256, diffusion_steps=2, cfg_scale=3.0
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The settings that load a toy of each."""
    root = tmp_path_factory.mktemp("toys")
    return {kind: save_toy(family_for(kind), root / kind.value) for kind in (WUERSTCHEN, CASCADE)}


def load(kind, changes):
    config, warnings = TrainConfig.load(
        {
            "model_type": kind.value,
            "training_method": "LORA",
            "train_dtype": "FLOAT_32",
            "offline_mode": True,
        }
    )
    assert warnings == []
    return family_for(kind).load(config.update(**changes))


def same(network, other):
    own, theirs = network.state_dict(), other.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)


def changed(network):
    """A network that differs from the toy's."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.01)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_is_loaded_from_its_own_place(kind, sources):
    toy, parts = family_for(kind).tiny(), load(kind, sources[kind])
    beside = {"effnet_encoder", "decoder", "decoder_vqgan"}
    beside |= {"decoder_text_encoder"} if kind is WUERSTCHEN else set()
    assert parts.beside.keys() == beside
    for name, network in toy.modules().items():
        assert same(parts.module(name), network), name
    assert not any(network.training for network in parts.modules().values())


@pytest.mark.parametrize("kind", KINDS)
def test_each_network_can_come_from_elsewhere_and_in_its_own_type(kind, sources, tmp_path):
    toy = family_for(kind).tiny()
    prior, vqgan = changed(toy.denoiser), changed(toy.finisher.vqgan)
    prior.save_pretrained(tmp_path / "prior")
    vqgan.save_pretrained(tmp_path / "vqgan")
    changes = {
        "prior.model_name": str(tmp_path / "prior"),
        "decoder_vqgan.model_name": str(tmp_path / "vqgan"),
        "decoder.weight_dtype": "FLOAT_16",
        "effnet_encoder.weight_dtype": "BFLOAT_16",
    }
    if kind is WUERSTCHEN:
        changed(toy.finisher.text_encoder).save_pretrained(tmp_path / "text")
        changes["decoder_text_encoder.model_name"] = str(tmp_path / "text")
    parts = load(kind, {**sources[kind], **changes})
    assert same(parts.denoiser, prior)
    assert same(parts.finisher.vqgan, vqgan)
    if kind is WUERSTCHEN:
        assert same(parts.finisher.text_encoder, toy.finisher.text_encoder)
    else:
        assert parts.finisher.text_encoder is parts.pipeline.text_encoder
    assert parts.finisher.decoder.dtype == torch.float16
    assert parts.vae.dtype == torch.bfloat16
    assert parts.dtype == torch.float32


def test_a_prior_can_be_a_stage_c_file(sources, tmp_path):
    family = family_for(CASCADE)
    toy = family.tiny()
    changed(toy.denoiser)
    file = tmp_path / "stage_c.safetensors"
    save_model(family, toy, file, ModelFormat.LEGACY_SAFETENSORS, torch.float32)
    parts = load(CASCADE, {**sources[CASCADE], "prior.model_name": str(file)})
    assert same(parts.denoiser, toy.denoiser)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_prior_of_few_bits_is_loaded_alone_and_predicts_nearly_alike(kind, sources):
    family = family_for(kind)
    plain = load(kind, sources[kind])
    small = load(kind, {**sources[kind], "prior.weight_dtype": "INT_8"})
    assert any(isinstance(module, SmallLinear) for module in small.denoiser.modules())
    noisy, time = torch.randn(1, 4, 3, 3), torch.tensor([0.5])
    condition = family.encode_text(plain, ["a card"])
    answers = [family.predict(parts, noisy, time, condition) for parts in (plain, small)]
    assert 0 < (answers[0] - answers[1]).square().mean() < 0.01 * answers[0].square().mean()


def test_the_encoder_of_a_cascade_is_a_file_without_settings(sources, tmp_path, monkeypatch):
    weights = EfficientNetEncoder(affine_batch_norm=False).state_dict()
    file = tmp_path / "effnet_encoder.safetensors"
    save_file(weights, file)
    parts = load(CASCADE, {**sources[CASCADE], "effnet_encoder.model_name": str(file)})
    assert parts.vae.config.affine_batch_norm is False
    asked = []

    def fetch(repository, name, **options):
        asked.append((repository, name, options["local_files_only"]))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    load(CASCADE, {**sources[CASCADE], "effnet_encoder.model_name": ""})
    assert asked == [("stabilityai/stable-cascade", "effnet_encoder.safetensors", True)]
    file.write_bytes(file.read_bytes()[:-8])
    refused = {**sources[CASCADE], "effnet_encoder.model_name": str(file)}
    with pytest.raises(ConfigError, match=r"Cannot load .*effnet_encoder.safetensors as Efficient"):
        load(CASCADE, refused)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("effnet_encoder.model_name", "TODO: MANUALLY DOWNLOAD", "Leave it empty for that of stab"),
        ("decoder.model_name", "/nowhere/at/all", "as StableCascadeDecoderPipeline"),
        ("decoder_vqgan.model_name", "/nowhere/at/all", "StableCascadeDecoderPipeline's vqgan"),
    ],
)
def test_what_cannot_be_loaded_is_named_by_its_setting(field, value, words, sources):
    with pytest.raises(ConfigError) as caught:
        load(CASCADE, {**sources[CASCADE], field: value})
    (problem,) = caught.value.problems
    assert problem.field == field
    assert words in str(problem)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_samples_are_drawn_whatever_the_types_of_the_stages(kind, sources):
    types = {
        "prior": "BFLOAT_16",
        "text_encoder": "FLOAT_32",
        "decoder": "FLOAT_32",
        "decoder_vqgan": "BFLOAT_16",
        "decoder_text_encoder": "BFLOAT_16",
    }
    mixed = {f"{part}.weight_dtype": dtype for part, dtype in types.items()}
    parts = load(kind, {**sources[kind], **mixed})
    (picture,) = sample_batch(family_for(kind), parts, DEFINITION, [3])
    assert picture.size == (128, 256)
    assert np.asarray(picture).std() > 3  # numbers that are none would be black


@torch.no_grad()
def test_each_seed_of_several_draws_its_own_picture(sources):
    family, parts = family_for(CASCADE), load(CASCADE, sources[CASCADE])
    together = sample_batch(family, parts, DEFINITION, [3, 4])
    for seed, picture in zip([3, 4], together, strict=True):
        (alone,) = sample_batch(family, parts, DEFINITION, [seed])
        assert np.abs(np.asarray(alone, dtype=int) - np.asarray(picture, dtype=int)).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_picture_is_seen_at_three_quarters_of_its_size(kind, sources):
    """A cell of 32 pixels for every 42.67, in the colours that the encoder was trained on."""
    family, parts = family_for(kind), load(kind, sources[kind])
    colour = torch.tensor([0.2, 0.5, 0.9])
    pixels = (colour * 2 - 1).view(1, 3, 1, 1).expand(1, 3, 128, 256)
    latents = family.encode_images(parts, pixels)
    assert latents.shape == (1, 4, 3, 6)
    normal = (colour - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    expected = parts.vae(normal.view(1, 3, 1, 1).expand(1, 3, 96, 192))
    if kind is WUERSTCHEN:  # as its pipeline gives them back: times 42, minus 1
        latents = latents * 42 - 1
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)


def test_a_preview_shows_the_latents_without_their_noise():
    scheduler = diffusers.DDPMWuerstchenScheduler()
    latents, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([0.6, 0.6])
    noisy = scheduler.add_noise(latents, noise, time)
    torch.testing.assert_close(denoised(scheduler, noise, time, noisy), latents)


def test_previews_are_drawn(sources):
    seen = []
    parts = load(CASCADE, sources[CASCADE])
    sample_batch(
        family_for(CASCADE), parts, DEFINITION, [1], preview=lambda image, step: seen.append(image)
    )
    assert [image.size for image in seen] == [(3, 6)] * 2


def test_a_sample_can_be_stopped_in_its_second_stage(sources):
    parts, asked = load(CASCADE, sources[CASCADE]), []

    def enough():
        asked.append(1)
        return len(asked) > 3

    assert sample_batch(family_for(CASCADE), parts, DEFINITION, [1], should_stop=enough) is None
    assert len(asked) == 4  # for two steps of the prior, and two of the decoder's twelve
    assert sample_batch(family_for(CASCADE), parts, DEFINITION, [1]) is not None


def test_skipped_layers_are_left_out_of_the_prompt_and_what_it_is_drawn_with(sources):
    for kind in (WUERSTCHEN, CASCADE):
        family = family_for(kind)
        plain = load(kind, sources[kind])
        skipping = load(kind, {**sources[kind], "text_encoder_layer_skip": 1})
        with torch.no_grad():
            before, after = (family.encode_text(parts, ["a card"]) for parts in (plain, skipping))
        encoder = plain.pipeline.text_encoder
        tokens = plain.pipeline.tokenizer(
            ["a card"], padding="max_length", max_length=77, return_tensors="pt"
        )
        with torch.no_grad():
            states = encoder(**tokens, output_hidden_states=True).hidden_states
        expected = states[-2]
        if kind is WUERSTCHEN:
            expected = getattr(encoder, "text_model", encoder).final_layer_norm(expected)
        torch.testing.assert_close(after["text"], expected)
        assert not torch.equal(after["text"], before["text"])


@pytest.mark.parametrize(
    ("kind", "fallback", "computed"),
    [
        (WUERSTCHEN, "BFLOAT_16", torch.float16),
        (CASCADE, "BFLOAT_16", torch.bfloat16),
        (CASCADE, "FLOAT_32", None),
    ],
)
def test_a_cascade_never_computes_in_float16_where_it_would_overflow(
    kind, fallback, computed, sources
):
    config, _ = TrainConfig.load({"model_type": kind.value, "training_method": "LORA"})
    config = config.update(
        **sources[kind],
        train_dtype="FLOAT_16",
        fallback_train_dtype=fallback,
        **{"prior.weight_dtype": "FLOAT_32"},
    )
    family = family_for(kind)
    parts, seen = family.load(config), []
    forward = Forward(config, family, parts, torch.device("cpu"))

    def note(*_):
        enabled = torch.is_autocast_enabled("cpu")
        seen.append(torch.get_autocast_dtype("cpu") if enabled else None)

    parts.denoiser.register_forward_hook(note)
    latents, time = torch.zeros(1, 4, 3, 3), torch.tensor([5000])
    draw = Draw(latents, latents, time, ["a"], None, torch.ones(1), torch.zeros(1, 6))
    with torch.no_grad():
        assert forward.loss(draw).isfinite()
    assert seen == [computed]


@pytest.mark.parametrize(
    ("kind", "fallback", "scaled"),
    [(WUERSTCHEN, "BFLOAT_16", True), (CASCADE, "BFLOAT_16", False), (CASCADE, "FLOAT_16", True)],
)
def test_losses_are_scaled_only_where_a_step_computes_in_float16(kind, fallback, scaled, sources):
    config, _ = TrainConfig.load({"model_type": kind.value, "training_method": "LORA"})
    config = config.update(
        **sources[kind],
        train_dtype="FLOAT_16",
        fallback_train_dtype=fallback,
        optimizer={"optimizer": "ADAMW", "fused_back_pass": True, "fused": False},
    )
    weight = torch.nn.Parameter(torch.zeros(2))
    cpu, generator = torch.device("cpu"), torch.Generator()
    rates, groups = {"prior": 1e-3}, {"prior": [weight]}
    update = build_update(config, [weight], groups, rates, cpu, generator, lambda: None)
    assert update.scaler.is_enabled() is scaled
    refused = [str(problem) for problem in validate(config) if problem.severity == "error"]
    assert any("whose gradients are scaled" in text for text in refused) is scaled


def test_sizes_that_would_come_out_otherwise_are_refused():
    config, _ = TrainConfig.load({"model_type": "STABLE_CASCADE_1", "samples": [{"width": 1088}]})
    said = [str(problem) for problem in validate(config) if problem.field == "samples.0.width"]
    assert len(said) == 1
    assert "1088 px, but must be a multiple of 128 px" in said[0]


def test_diffusers_finds_the_classes_of_published_folders(tmp_path):
    """Their index says `wuerstchen`, which diffusers has moved."""
    wuerstchen_stages.know_old_names()
    toy = family_for(WUERSTCHEN).tiny()
    toy.pipeline.save_pretrained(tmp_path / "prior")
    assert parts_of(read_index(tmp_path / "prior"))["prior"] == ("wuerstchen", "WuerstchenPrior")


def test_an_adapter_is_merged_into_a_stage_c_whose_attention_is_in_one(tmp_path):
    family = family_for(CASCADE)
    parts = family.tiny()
    parts.pipeline.save_pretrained(tmp_path / "prior")
    convert(tmp_path / "prior", tmp_path / "c.safetensors", ModelFormat.LEGACY_SAFETENSORS)
    prior = parts.denoiser
    add_lora(prior, matching_layers(prior, "", False), rank=2, alpha=2.0, dropout=0.0, seed=1)
    layers = list(lora_layers({"prior": prior}))
    for layer in layers:
        layer.up.data.normal_(std=0.1)
    tensors = to_format(layers, family, ModelFormat.LEGACY_LORA)
    save_tensors(tensors, tmp_path / "lora.safetensors", torch.float32)
    for source, target in (("c.safetensors", "file.safetensors"), ("prior", "folder")):
        merge(tmp_path / source, tmp_path / target, {tmp_path / "lora.safetensors": 1.0})
    convert(tmp_path / "folder", tmp_path / "expected.safetensors", ModelFormat.LEGACY_SAFETENSORS)
    found, expected, before = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("file", "expected", "c")
    )
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=1e-5, msg=key)
    joined = "down_blocks.0.2.attention.attn.in_proj_weight"
    (keys,) = (each for each in layers if each.path == "down_blocks.0.2.attention.to_k")
    torch.testing.assert_close((found[joined] - before[joined])[16:32], keys.up @ keys.down)
