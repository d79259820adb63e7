"""The image encoder of Würstchen and Cascade, against torchvision's network of that name."""

import pytest
import torch
from safetensors.torch import save_file

from modules.families.efficient_net import EfficientNetEncoder

FEATURES = 20_177_488
"""Parameters of torchvision's efficientnet_v2_s without its classifier."""
ANSWER = [1198.562, 1061.463, 1212.552, 1272.908, 1349.991, 1452.209, 1311.523, 1313.668]
"""Means of the features of torchvision 0.29.1's, with weights of `fill`, 160 channels each."""


@torch.no_grad()
def fill(network):
    """Weights that any network with the same names can be given."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            drawn = drawn.abs() + 0.5
        elif tensor.ndim == 4:
            drawn = drawn * (2.0 / tensor[0].numel()) ** 0.5
        else:
            drawn = drawn * 0.1 + (1 if name.endswith(".weight") else 0)
        tensor.copy_(drawn)


@pytest.fixture(scope="module")
def encoder():
    return EfficientNetEncoder().eval()


def test_it_answers_as_torchvisions_network_with_the_same_weights(encoder):
    assert sum(weight.numel() for weight in encoder.backbone.parameters()) == FEATURES
    fill(encoder.backbone)
    picture = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        features = encoder.backbone(picture)
        assert encoder(picture).shape == (1, 16, 2, 2)
    means = features.view(8, -1).mean(1)
    torch.testing.assert_close(means, torch.tensor(ANSWER), rtol=1e-4, atol=0.01)


def test_its_weights_have_the_names_of_the_published_files(encoder):
    keys = encoder.state_dict().keys()
    assert {
        "backbone.0.0.weight",
        "backbone.1.0.block.0.0.weight",
        "backbone.2.0.block.1.1.running_var",
        "backbone.4.0.block.2.fc1.bias",
        "backbone.6.14.block.3.0.weight",
        "backbone.7.1.bias",
        "mapper.0.weight",
        "mapper.1.running_mean",
    } <= keys
    assert len(keys) == 780 + 6


@pytest.mark.parametrize("affine", [True, False])
def test_a_file_tells_what_its_last_norm_has(encoder, affine, tmp_path):
    """Würstchen's encoder has weights in its last norm, Cascade's has none."""
    file = tmp_path / "effnet_encoder.safetensors"
    weights = {
        key: tensor
        for key, tensor in encoder.state_dict().items()
        if affine or key not in ("mapper.1.weight", "mapper.1.bias")
    }
    save_file(weights, file)
    read = EfficientNetEncoder.from_file(file, torch.float16)
    assert read.config.affine_batch_norm is affine
    assert read.dtype == torch.float16
    assert not read.training
    assert all(
        torch.equal(tensor.to(weights[k]), weights[k].half().to(weights[k]))
        for k, tensor in read.state_dict().items()
    )


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="effnet is 'efficientnet_v2_l', but the encoder is one"):
        EfficientNetEncoder(effnet="efficientnet_v2_l")
