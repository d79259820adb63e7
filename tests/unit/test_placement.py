"""Weights and activations that wait elsewhere: not a bit of the result differs."""

import weakref

import pytest
import torch

from modules.adapters.lora import add_lora, matching_layers
from modules.config import ModelType
from modules.families import family_for
from modules.families.storage import shrink
from modules.training.memory import recompute
from modules.training.placement import LayerOffload, gather, offload_activations

CPU = torch.device("cpu")
KINDS = [ModelType.STABLE_DIFFUSION_15, ModelType.FLUX_DEV_1]


def do_nothing(_network):
    pass


class Toy:
    """A family's denoiser with an adapter on it, as a run has it, and one step of it."""

    def __init__(self, kind, before=do_nothing, after=do_nothing):
        self.family = family_for(kind)
        self.parts = self.family.tiny()
        self.network = self.parts.denoiser
        torch.manual_seed(1)
        for parameter in self.network.parameters():  # layers that start at zero hide mistakes
            torch.nn.init.normal_(parameter, std=0.05)
        before(self.network)
        layers = matching_layers(self.network, "attn", False)
        self.trained = add_lora(self.network, layers, rank=2, alpha=2.0, dropout=0.1, seed=3)
        gather(self.trained, CPU)
        torch.manual_seed(2)
        for parameter in self.trained:
            torch.nn.init.normal_(parameter, std=0.1)
        self.network.train()
        after(self.network)

    def step(self, between=lambda: None):
        """Prediction and gradients, dropout and all."""
        torch.manual_seed(4)
        latents = self.family.encode_images(self.parts, torch.zeros(2, 3, 64, 64)).detach()
        condition = self.family.encode_text(self.parts, ["a", "b"])
        condition = {name: tensor.detach() for name, tensor in condition.items()}
        flow = self.family.objective(self.parts) == "flow"
        time = torch.tensor([0.1, 0.9]) if flow else torch.tensor([10, 900])
        prediction = self.family.predict(self.parts, torch.randn_like(latents), time, condition)
        between()
        prediction.square().mean().backward()
        return [prediction.detach(), *(parameter.grad for parameter in self.trained)]


def everything_waits(network):
    network.requires_grad_(False)
    LayerOffload(network, 1.0, CPU, CPU)


def assert_same_bits(found, expected):
    assert len(found) == len(expected) > 3
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(tensor.any() for tensor in found)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_wait_elsewhere_change_no_bit(kind):
    toy = Toy(kind, before=everything_waits, after=recompute)
    assert_same_bits(toy.step(), Toy(kind, after=recompute).step())


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_that_recomputes_nothing_finds_the_copies(kind):
    toy = Toy(kind, before=everything_waits)
    waiting = [p for layer in LayerOffload.layers_of(toy.network) for p in layer.parameters()]

    def spoil():
        for parameter in waiting:
            if not parameter.requires_grad:
                parameter.data.fill_(float("nan"))

    assert_same_bits(toy.step(between=spoil), Toy(kind).step())


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_computes_has_copies(kind):
    """With checkpointing, copies are gone as soon as their layer is done, in both directions."""
    lent, seen = [], []

    def note(module, _inputs, _output):
        seen.append(sum(copy() is not None for copy in lent))
        lent.extend(weakref.ref(p) for p in module.parameters() if id(p) not in own)

    toy = Toy(kind, before=everything_waits, after=recompute)
    own = {id(p) for p in toy.network.parameters()}
    attentions = [m for path, m in toy.network.named_modules() if path.endswith(("attn", "attn1"))]
    for module in attentions:
        module.register_forward_hook(note)
    toy.step(between=lambda: seen.append(sum(copy() is not None for copy in lent)))
    assert len(lent) > 2 * len(attentions)  # each lent some, and again for its backward pass
    assert seen[len(attentions)] == 0  # between the passes
    assert max(seen) <= max(len(list(module.parameters())) for module in attentions)
    assert not any(copy() is not None for copy in lent)


def test_a_share_of_the_layers_waits_spread_over_the_network():
    network = family_for(ModelType.STABLE_DIFFUSION_XL_10_BASE).tiny().denoiser
    layers = LayerOffload.layers_of(network)
    network.requires_grad_(False)
    LayerOffload(network, 0.25, CPU, CPU)
    waits = [bool(layer._forward_pre_hooks) for layer in layers]
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in layers]
    moved = sum(size for size, yes in zip(sizes, waits, strict=True) if yes)
    assert moved / sum(sizes) == pytest.approx(0.25, abs=0.05)
    half = len(waits) // 2
    assert 0.3 < sum(waits[:half]) / sum(waits) < 0.7


def test_small_weights_wait_as_well():
    def small(network):
        network.requires_grad_(False)
        shrink(network, "int8")

    def small_and_waiting(network):
        small(network)
        LayerOffload(network, 1.0, CPU, CPU)

    kind = ModelType.FLUX_DEV_1
    toy = Toy(kind, before=small_and_waiting, after=recompute)
    assert_same_bits(toy.step(), Toy(kind, before=small, after=recompute).step())


@pytest.mark.parametrize(("name", "chosen"), [("text_encoder", "q_proj"), ("text_encoder_2", "q")])
def test_a_text_encoder_that_recomputes_its_layers_lends_them_too(name, chosen):
    results = []
    for wait in (True, False):
        encoder = getattr(family_for(ModelType.FLUX_DEV_1).tiny().pipeline, name)
        called = []
        if wait:
            encoder.requires_grad_(False)
            LayerOffload(encoder, 1.0, CPU, CPU)
            for layer in LayerOffload.layers_of(encoder):
                layer.register_forward_hook(lambda module, *_, seen=called: seen.append(module))
        layers = matching_layers(encoder, chosen, False)
        parameters = add_lora(encoder, layers, rank=2, alpha=2.0, dropout=0.0, seed=3)
        for parameter in parameters:
            torch.nn.init.constant_(parameter, 0.1)
        encoder.train()
        assert recompute(encoder)
        output = encoder(torch.arange(1, 78)[None]).last_hidden_state
        output.square().mean().backward()
        results.append([output.detach(), *(p.grad for p in parameters)])
        lending = LayerOffload.layers_of(encoder) if wait else []
        assert set(called) == set(lending)
        assert len(called) > len(lending) or not wait  # again for the backward pass
    assert_same_bits(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_that_wait_elsewhere_change_no_bit(kind, monkeypatch):
    real, saved = torch.empty_like, []

    def counting(tensor, **more):
        if "device" in more:
            saved.append(tensor.nbytes)
        return real(tensor, **more)

    def both(network):
        recompute(network)
        assert offload_activations(network)
        assert not offload_activations(network)  # it is so already

    toy = Toy(kind, after=both)
    monkeypatch.setattr(torch, "empty_like", counting)
    assert_same_bits(toy.step(), Toy(kind, after=recompute).step())
    assert len(saved) >= len(LayerOffload.layers_of(toy.network))


def test_without_checkpointing_there_are_no_activations_to_offload():
    assert not offload_activations(family_for(ModelType.FLUX_DEV_1).tiny().denoiser)
