"""Weights of 8 and 4 bits, against plain layers."""

import copy

import pytest
import torch
from scipy.stats import norm
from torch import nn

from modules.families.storage import NF4, SmallLinear, pack, shrink, unpack, unpacked_state

KINDS = {"float8": 0.04, "int8": 0.01, "nf4": 0.12}
"""By kind: the error that is usual for it, as a share of the deviation of normal weights."""


def test_the_codes_of_nf4_are_quantiles_of_the_normal_distribution():
    left = norm.ppf(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
    right = norm.ppf(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
    table = torch.cat([torch.tensor(left), torch.zeros(1), -torch.tensor(right)]).sort().values
    assert torch.allclose(table / table.max(), torch.tensor(NF4).double(), atol=1e-5)


@pytest.mark.parametrize(("kind", "error"), KINDS.items())
@pytest.mark.parametrize("shape", [(96, 128), (5, 7), (3, 1)])
def test_a_weight_comes_back_nearly_as_it_was(kind, error, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scales = pack(weight, kind)
    back = unpack(codes, scales, kind, shape, torch.float32)
    assert back.shape == weight.shape
    assert (back - weight).square().mean().sqrt() < error
    assert codes.nbytes <= weight.numel() * (0.5 if kind == "nf4" else 1) + 32
    assert torch.isclose(back.abs().max(), weight.abs().max(), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    codes, scales = pack(torch.zeros(4, 64), kind)
    assert not unpack(codes, scales, kind, (4, 64), torch.float32).any()


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_a_plain_layer_of_the_same_weight(kind):
    layer = SmallLinear(nn.Linear(32, 48), kind)
    plain = nn.Linear(32, 48)
    plain.weight.data, plain.bias.data = layer.weight.clone(), layer.bias.data
    inputs = torch.randn(3, 5, 32, requires_grad=True)
    others = inputs.detach().clone().requires_grad_()
    layer(inputs).square().sum().backward()
    plain(others).square().sum().backward()
    torch.testing.assert_close(layer(inputs), plain(others))
    torch.testing.assert_close(inputs.grad, others.grad)


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_inputs_of_8_bits_are_rounded_by_row_and_let_gradients_through(kind):
    layer = SmallLinear(nn.Linear(32, 48, bias=False), kind, rounds_inputs=True)
    inputs = torch.randn(3, 5, 32, requires_grad=True)
    rows = inputs.detach().view(15, 32)
    if kind == "int8":  # what an integer product of the codes gives
        scales = rows.abs().amax(1, keepdim=True) / 127
        whole = (rows / scales).round().double() @ layer.codes.view(torch.int8).double().T
        expected = (whole * scales.double() * layer.scales.T.double()).float().view(3, 5, 48)
    else:
        scales = rows.abs().amax(1, keepdim=True) / 448
        expected = ((rows / scales).to(torch.float8_e4m3fn).float() * scales) @ layer.weight.T
        expected = expected.view(3, 5, 48)
    outputs = layer(inputs)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(3, 5, 32))


def test_the_graph_keeps_no_unpacked_weight():
    layer = SmallLinear(nn.Linear(256, 256, bias=False), "nf4")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        layer(torch.randn(2, 256, requires_grad=True))
    assert sum(kept) < 256 * 256


def test_autocast_computes_in_its_type():
    layer = SmallLinear(nn.Linear(16, 8), "int8")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 16)).dtype == torch.bfloat16


def test_only_the_chosen_linear_layers_shrink():
    network = nn.ModuleDict(
        {"attn": nn.Linear(8, 8), "mlp": nn.Linear(8, 8), "conv": nn.Conv2d(3, 3, 1)}
    )
    assert shrink(copy.deepcopy(network), "int8") == 2
    assert shrink(network, "int8", "attn") == 1
    assert isinstance(network["attn"], SmallLinear)
    assert type(network["mlp"]) is nn.Linear
    assert shrink(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "int8", "^1$", regex=True) == 1


def test_a_saved_model_has_plain_weights():
    network = nn.Sequential(nn.Linear(8, 8))
    names = set(network.state_dict())
    shrink(network, "float8")
    with unpacked_state(network):
        state = network.state_dict()
        assert set(state) == names
        assert torch.equal(state["0.weight"], network[0].weight)
    assert "0.codes" in network.state_dict()
