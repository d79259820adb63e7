"""Toys of several architectures with an adapter that could have been trained on them."""

import torch
from safetensors.torch import load_file

from modules.adapters.files import save_tensors, to_canonical, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.adapters.reading import read_adapter
from modules.config import ModelFormat, ModelType
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
            paths = matching_layers(network, "", regex=False)
            layers = [path for path in paths if self.family.learns(name, path)]
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
