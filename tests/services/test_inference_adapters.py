"""Adapters of every kind laid over a model: the same answers as from peft's own layers."""

import copy

import pytest
import torch

from modules.adapters.files import save_tensors
from modules.adapters.kinds import adapter_layers, add_adapter, in_format
from modules.adapters.lora import matching_layers
from modules.adapters.stack import applied, load_adapter
from modules.config import ModelFormat, ModelType, TrainConfig
from modules.families import family_for

KINDS = {
    "lora": {"peft_type": "LORA"},
    "dora": {"lora_decompose": True, "lora_decompose_output_axis": True},
    "dora by inputs": {"lora_decompose": True},
    "loha": {"peft_type": "LOHA"},
    "lokr": {"peft_type": "LOKR", "lokr_dim": 2},
    "lokr both": {"peft_type": "LOKR", "lokr_dim": 2, "lokr_decompose_both": True},
    "oft": {"peft_type": "OFT_2", "oft_block_size": 4},
    "oft shared": {"peft_type": "OFT_2", "oft_block_size": 4, "oft_block_share": True},
}
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def family():
    return family_for(ModelType.STABLE_DIFFUSION_15)


@pytest.fixture(scope="module")
def parts(family):
    parts = family.tiny()
    parts.denoiser.eval()
    return parts


def answer(denoiser):
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 32, generator=generator)
    with torch.no_grad():
        return denoiser(noisy, torch.tensor([10, 500]), text).sample


@pytest.fixture(scope="module")
def trained(family, parts, tmp_path_factory):
    """Makes a file of a kind of adapter with random weights; gives it and what peft answers."""

    def make(kind, layers=""):
        network = copy.deepcopy(parts.denoiser)
        config = TrainConfig().update(lora_rank=4, lora_alpha=2.0, **KINDS[kind])
        add_adapter(network, matching_layers(network, layers, regex=False), config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise * 0.1)
        network.eval()
        file = tmp_path_factory.mktemp("adapters") / f"{kind}.safetensors"
        tensors = in_format(adapter_layers({"unet": network}), family, ModelFormat.KOHYA_LORA)
        save_tensors(tensors, file, torch.float32)
        return file, answer(network)

    return make


@pytest.mark.parametrize("layers", ["attentions", ""], ids=["attention", "all layers"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_each_kind_changes_the_model_as_peft_did(family, parts, trained, kind, layers):
    file, expected = trained(kind, layers)
    before = answer(parts.denoiser)
    weights = {name: weight.clone() for name, weight in parts.denoiser.state_dict().items()}
    adapter = load_adapter(file, family, parts)
    assert adapter.unplaced == ()
    with applied(family, parts, [(adapter, 1.0)]):
        changed = answer(parts.denoiser)
    size = (expected - before).abs().max()
    assert size > 0.01
    assert (changed - expected).abs().max() < 1e-3 * max(1.0, float(size))
    with applied(family, parts, [(adapter, 0.0)]):
        assert torch.equal(answer(parts.denoiser), before)
    assert torch.equal(answer(parts.denoiser), before)
    after = parts.denoiser.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())


def test_two_halves_are_one_whole(family, parts, trained):
    file, _ = trained("lora")
    adapter = load_adapter(file, family, parts)
    with applied(family, parts, [(adapter, 0.8)]):
        whole = answer(parts.denoiser)
    with applied(family, parts, [(adapter, 0.5), (adapter, 0.3)]):
        halves = answer(parts.denoiser)
    assert torch.allclose(whole, halves, atol=1e-5)


def test_an_error_inside_the_block_leaves_no_hook(family, parts, trained):
    adapter = load_adapter(trained("lora")[0], family, parts)
    before = answer(parts.denoiser)
    with pytest.raises(KeyError), applied(family, parts, [(adapter, 1.0)]):
        raise KeyError
    assert torch.equal(answer(parts.denoiser), before)
