"""A transformer from a GGUF file: the same answers as from its weights, and an adapter on it."""

import gguf
import pytest
import torch

from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.config import ConfigError, ModelFormat, ModelType, TrainConfig
from modules.families import family_for
from modules.families.saving import part_layouts, save_model

torch.set_num_threads(1)
WAN = ModelType.WAN_2


@pytest.fixture(scope="module")
def family():
    return family_for(WAN)


@pytest.fixture(scope="module")
def place(family, tmp_path_factory):
    """A folder of a model, and its transformer as a GGUF file of 8-bit blocks where they fit."""
    folder = tmp_path_factory.mktemp("gguf")
    parts = family.tiny()
    for weight in parts.denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    save_model(family, parts, folder / "model", ModelFormat.DIFFUSERS, torch.float32)
    ((_, _, layout),) = part_layouts(family, ModelFormat.ORIGINAL_TRANSFORMER)
    writer = gguf.GGUFWriter(folder / "wan.gguf", "wan")
    packed = 0
    for key, tensor in layout(parts.denoiser.state_dict()).items():
        numbers = tensor.contiguous().numpy()
        kind = gguf.GGMLQuantizationType.F32
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 and "blocks" in key:
            kind, packed = gguf.GGMLQuantizationType.Q8_0, packed + 1
        writer.add_tensor(key, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    assert packed > 4
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def config(place, file="wan.gguf"):
    return TrainConfig().update(
        model_type=WAN.value,
        base_model_name=str(place / "model"),
        offline_mode=True,
        **{"transformer.model_name": str(place / file), "transformer.weight_dtype": "FLOAT_32"},
    )


def inputs(family, parts):
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 16, 8, 8, generator=generator)
    return noisy, torch.tensor([0.5]), family.encode_text(parts, ["a card"])


def test_it_answers_nearly_as_its_weights_do_and_takes_an_adapter(family, place):
    plain = family.load(config(place).update(**{"transformer.model_name": ""}))
    parts = family.load(config(place))
    assert parts.dtype == torch.float32
    with torch.no_grad():
        expected = family.predict(plain, *inputs(family, plain))
        found = family.predict(parts, *inputs(family, parts))
    assert 0 < (found - expected).square().mean() < 1e-3 * expected.square().mean()
    network = parts.denoiser
    layers = matching_layers(network, "attn", regex=False)
    weights = add_lora(network, layers, rank=2, alpha=2.0, dropout=0.0, seed=1)
    with torch.no_grad():
        noisy, t, condition = inputs(family, parts)
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = (family.predict(parts, noisy, t, condition) - noisy).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(layer.up.any() for layer in lora_layers({"transformer": network}))


def test_a_file_that_is_cut_short_is_named(family, place):
    (place / "cut.gguf").write_bytes((place / "wan.gguf").read_bytes()[:-5000])
    with pytest.raises(ConfigError) as caught:
        family.load(config(place, "cut.gguf"))
    (problem,) = caught.value.problems
    assert problem.field == "transformer.model_name"
    assert "cut.gguf" in problem.message
