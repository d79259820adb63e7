"""What is peculiar to Anima: diffusers has it as blocks, and its files hold two networks."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.adapters.converting import convert
from modules.config import ConfigError, ModelFormat, ModelType, SampleConfig, TrainConfig
from modules.families import family_for
from modules.families.saving import save_model
from modules.sampling.sampler import sample

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def family():
    return family_for(ModelType.ANIMA)


@pytest.fixture(scope="module")
def parts(family):
    parts = family.tiny()
    for weight in parts.denoiser.parameters():  # layers that start at zero would hide mistakes
        torch.nn.init.normal_(weight, std=0.1)
    return parts


@pytest.fixture(scope="module")
def folder(family, parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("anima") / "model"
    save_model(family, parts, folder, ModelFormat.DIFFUSERS, torch.float32)
    return folder


def load(family, folder, **changes):
    config = TrainConfig().update(
        model_type="ANIMA", base_model_name=str(folder), offline_mode=True, **changes
    )
    return family.load(config)


def same(one, two):
    own, other = one.state_dict(), two.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def test_a_sample_is_the_picture_that_diffusers_blocks_draw(family, parts, folder):
    definition = SampleConfig().update(
        prompt="a red card",
        negative_prompt="blurry",
        width=128,
        height=64,
        cfg_scale=3.0,
        diffusion_steps=2,
        seed=7,
    )
    drawn = sample(family, parts, definition)
    plain = diffusers.ModularPipeline.from_pretrained(str(folder), local_files_only=True)
    plain.load_components(local_files_only=True)
    guidance = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    plain.update_components(guider=guidance)
    (expected,) = plain(
        prompt="a red card",
        negative_prompt="blurry",
        width=128,
        height=64,
        num_inference_steps=2,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(7),
        output="images",
    )
    assert drawn.size == (128, 64)
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(expected)).max() <= 1


def test_its_folder_names_no_path_and_can_be_moved(family, parts, folder, tmp_path):
    index = json.loads((folder / "modular_model_index.json").read_text())
    assert str(folder.parent) not in json.dumps(index)
    moved = tmp_path / "moved"
    folder.rename(moved)
    try:
        again = load(family, moved)
        assert type(again.pipeline.blocks()).__name__ == "AnimaModularPipeline"
        assert all(same(network, again.module(name)) for name, network in parts.modules().items())
    finally:
        moved.rename(folder)


@pytest.mark.parametrize("writer", ["save", "convert"])
def test_a_file_of_the_transformer_brings_its_conditioner(family, folder, tmp_path, writer):
    other = family.tiny()
    for network in (other.denoiser, other.module("text_conditioner")):
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    file = tmp_path / "anima.safetensors"
    if writer == "save":
        save_model(family, other, file, ModelFormat.ORIGINAL_TRANSFORMER, torch.float32)
    else:
        save_model(family, other, tmp_path / "other", ModelFormat.DIFFUSERS, torch.float32)
        convert(tmp_path / "other", file, ModelFormat.ORIGINAL_TRANSFORMER)
    keys = load_file(file).keys()
    assert "net.llm_adapter.blocks.0.cross_attn.q_proj.weight" in keys
    assert "net.blocks.0.adaln_modulation_self_attn.1.weight" in keys
    loaded = load(family, folder, **{"transformer.model_name": str(file)})
    assert same(loaded.denoiser, other.denoiser)
    assert same(loaded.module("text_conditioner"), other.module("text_conditioner"))
    alone = {key: weight for key, weight in load_file(file).items() if "llm_adapter" not in key}
    save_file(alone, tmp_path / "alone.safetensors")
    plain = load(family, folder)
    loaded = load(family, folder, **{"transformer.model_name": str(tmp_path / "alone.safetensors")})
    assert same(loaded.denoiser, other.denoiser)
    assert same(loaded.module("text_conditioner"), plain.module("text_conditioner"))


@torch.no_grad()
def test_a_conditioner_that_lacks_a_weight_is_refused(family, parts, folder, tmp_path):
    """In the folder, whose libraries would not say so, and in a file of the transformer."""
    copy, file = tmp_path / "model", tmp_path / "transformer.safetensors"
    shutil.copytree(folder, copy)
    save_model(family, parts, file, ModelFormat.ORIGINAL_TRANSFORMER, torch.float32)
    (own,) = (copy / "text_conditioner").glob("*.safetensors")
    for path, lead in ((own, ""), (file, "net.llm_adapter.")):
        held = load_file(path)
        del held[f"{lead}blocks.0.cross_attn.k_norm.weight"]
        save_file(held, path)
    for source, changes in ((copy, {}), (folder, {"transformer.model_name": str(file)})):
        with pytest.raises(ConfigError, match=r"lacks blocks\.0\.cross_attn\.k_norm\.weight"):
            load(family, source, **changes)


def test_longer_captions_are_all_of_one_length(family, parts):
    encoded = family.encode_text(parts, ["a", "a card " * 30])
    assert encoded["text"].shape == (2, 64, 16)
    assert not encoded["text"][0, 5:].any()
    assert encoded["text"][1].any(1).all()


def test_an_inference_service_knows_its_folder(folder, tmp_path):
    from ot_notebook.services.inference_service import InferenceService

    service = InferenceService(tmp_path / "gallery").load(folder, device="cpu", dtype="FLOAT_32")
    image = service.generate("a card", steps=1, width=64, height=64, seed=1).image
    assert image.size == (64, 64)
