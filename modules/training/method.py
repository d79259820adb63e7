"""What of a model trains, and which files hold it: an adapter, or the networks themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from modules.adapters.embedding_files import unbundled
from modules.adapters.files import DOWN, UP, load_canonical, save_tensors, to_canonical, to_format
from modules.adapters.kinds import adapter_layers, add_adapter, canonical, in_format
from modules.adapters.lora import add_lora, lora_layers, matching, matching_layers
from modules.adapters.reading import read_adapter, verify, verify_found
from modules.adapters.starting import Live, go_on_from
from modules.config import (
    ConfigError,
    DataType,
    PeftType,
    Problem,
    TrainConfig,
    TrainingMethod,
)
from modules.config.paths import resolve
from modules.data import Dataset
from modules.families import Family, Parts
from modules.families.loading import DTYPES
from modules.families.saving import save_model
from modules.training.embeddings import Embeddings
from modules.training.memory import recompute
from modules.training.placement import gather, offload_activations
from modules.training.tiling import wrap_around


class Method(Protocol):
    """Prepares networks for training and knows the files of what was trained."""

    trainable: dict[str, list[nn.Parameter]]
    """What trains, by the path of its settings ("unet", "additional_embeddings.0")."""
    networks: dict[str, nn.Module]
    """What its gradients come through, by part."""
    remarks: Sequence[str] = ()
    """What of the settings comes to something else on these layers, in words."""
    live_text: bool = False
    """Whether captions must be encoded anew in each step though no text encoder trains."""

    def check(self, dataset: Dataset) -> None:  # noqa: ARG002
        """Refuse a training set that what trains cannot learn from.

        Raises:
            ConfigError: says what it lacks.
        """
        return

    def after_step(self) -> None:
        """Do to the weights what belongs to every optimizer step."""
        return

    def write_backup(self, folder: Path) -> None:
        """Write the trained weights into a backup folder, every bit."""

    def read_backup(self, folder: Path) -> None:
        """Take the weights of a backup folder.

        Raises:
            ValueError: if they are of other layers than this run trains.
            OSError: if a file is missing.
        """

    def write(self, path: Path, config: TrainConfig, metadata: Mapping[str, str]) -> None:
        """Write the trained model in its output format, for other tools."""


def method_for(config: TrainConfig, family: Family, parts: Parts) -> Method:
    """Make what the config trains trainable, and everything else fixed.

    Raises:
        ConfigError: if nothing would train, or a file to go on from does not fit.
    """
    for network in parts.modules().values():
        network.requires_grad_(False)
        network.eval()
    method = _method(config, family, parts)
    if not any(method.trainable.values()):
        if config.training_method is TrainingMethod.EMBEDDING:
            fix = "Turn embedding.train on, and train_embedding of a text encoder."
            raise _error("embedding.train", "Nothing trains.", fix)
        names = " and ".join(f"{name}.train" for name in _trained(family))
        raise _error(f"{family.denoiser}.train", "Nothing trains.", f"Turn {names} on.")
    for parameters in method.trainable.values():
        gather(parameters, torch.device(config.train_device))
    for name, network in method.networks.items():
        if name in method.trainable:
            network.train()
        section = getattr(config, name)
        if section.gradient_checkpointing:
            recompute(network)
        if section.activation_offloading:
            offload_activations(network, pinned=config.async_offloading)
    wrap_around(parts, config)
    return method


def _method(config: TrainConfig, family: Family, parts: Parts) -> Method:
    trained: Lora | OtherAdapter | FineTune | None = None
    if config.training_method is TrainingMethod.LORA:
        plain = config.peft_type is PeftType.LORA and not config.lora_decompose
        trained = (Lora if plain else OtherAdapter)(config, family, parts)
    elif config.training_method is not TrainingMethod.EMBEDDING:
        trained = FineTune(config, family, parts)
    if trained is None or config.embeddings_in_use:
        return WithEmbeddings(config, family, parts, trained)
    return trained


class Lora(Method):
    """An adapter on the layers of each part; the model itself stays as it is."""

    brought: Mapping[str, Mapping[str, torch.Tensor]] = MappingProxyType({})
    """Embeddings in the adapter file that it goes on from, by their placeholders."""

    def __init__(self, config: TrainConfig, family: Family, parts: Parts) -> None:
        self._family = family
        self.trainable: dict[str, list[nn.Parameter]] = {}
        for name in _trained(family):
            if not getattr(config, name).train:
                continue
            network = parts.module(name)
            self.trainable[name] = add_lora(
                network,
                _layers(config, family, name, network),
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                dropout=config.dropout_probability,
                seed=config.ot.seed,
            )
        _store(self.trainable, config.lora_weight_dtype)
        self.networks = {name: parts.module(name) for name in self.trainable}
        # a format that has no place for a part is better known now than after the last step
        to_format(lora_layers(self.networks), family, config.output_model_format)
        if name := config.lora_model_name:
            live = {
                f"{each.part}.{family.adapter_name(each.part, each.path)}": Live(
                    {DOWN: each.down, UP: each.up}, each.alpha / each.rank
                )
                for each in lora_layers(self.networks)
            }
            tensors, self.brought = _read(name)
            go_on_from(name, read_adapter(tensors, family, self.networks), live)

    def write_backup(self, folder: Path) -> None:
        """`lora/lora.safetensors`, with OneTrainer's own keys."""
        (folder / "lora").mkdir()
        tensors = to_canonical(lora_layers(self.networks), self._family)
        save_tensors(tensors, folder / "lora" / "lora.safetensors", torch.float32)

    def read_backup(self, folder: Path) -> None:
        """Take the adapter of a backup."""
        from safetensors.torch import load_file

        tensors = load_file(folder / "lora" / "lora.safetensors")
        load_canonical(tensors, lora_layers(self.networks), self._family)

    def write(
        self,
        path: Path,
        config: TrainConfig,
        metadata: Mapping[str, str],
        beside: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        """One safetensors file of adapter weights, and of what else belongs in it."""
        layers = [
            replace(layer, down=layer.down.float(), up=layer.up.float())
            for layer in lora_layers(self.networks)
        ]
        tensors = to_format(layers, self._family, config.output_model_format)
        verify(tensors, layers, self._family, self.networks)
        notes = {**self._family.metadata("lora"), **metadata}
        save_tensors({**tensors, **beside}, path, DTYPES[config.output_dtype], notes)


class OtherAdapter(Method):
    """DoRA, LoHa, LoKr or OFT on the layers of each part."""

    brought: Mapping[str, Mapping[str, torch.Tensor]] = MappingProxyType({})
    """Embeddings in the adapter file that it goes on from, by their placeholders."""

    def __init__(self, config: TrainConfig, family: Family, parts: Parts) -> None:
        self._family = family
        self.trainable: dict[str, list[nn.Parameter]] = {}
        for name in _trained(family):
            if getattr(config, name).train:
                network = parts.module(name)
                layers = _layers(config, family, name, network)
                self.trainable[name] = add_adapter(network, layers, config)
        _store(self.trainable, config.lora_weight_dtype)
        self.networks = {name: parts.module(name) for name in self.trainable}
        if config.peft_type is PeftType.OFT_2:
            from modules.adapters.oft import remarks

            self.remarks = tuple(remarks(self.networks, config.oft_block_size))
        in_format(adapter_layers(self.networks), family, config.output_model_format)
        if name := config.lora_model_name:
            live = {
                f"{each.part}.{family.adapter_name(each.part, each.path)}": Live(
                    each.tensors, each.scale
                )
                for each in adapter_layers(self.networks)
            }
            tensors, self.brought = _read(name)
            go_on_from(name, read_adapter(tensors, family, self.networks), live)

    def write_backup(self, folder: Path) -> None:
        """`lora/lora.safetensors`, with OneTrainer's own keys."""
        (folder / "lora").mkdir()
        tensors = canonical(adapter_layers(self.networks), self._family)
        save_tensors(tensors, folder / "lora" / "lora.safetensors", torch.float32)

    @torch.no_grad()
    def read_backup(self, folder: Path) -> None:
        """Take the adapter of a backup."""
        from safetensors.torch import load_file

        found = load_file(folder / "lora" / "lora.safetensors")
        live = canonical(adapter_layers(self.networks), self._family)
        if odd := sorted(found.keys() ^ live.keys()):
            raise ValueError(f"the backup and this run do not both have {odd[0]}")
        for key, tensor in live.items():
            tensor.copy_(found[key])

    def write(
        self,
        path: Path,
        config: TrainConfig,
        metadata: Mapping[str, str],
        beside: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        """One safetensors file of adapter weights, and of what else belongs in it."""
        layers = [
            replace(layer, tensors={name: t.float() for name, t in layer.tensors.items()})
            for layer in adapter_layers(self.networks)
        ]
        family = self._family
        tensors = in_format(layers, family, config.output_model_format)
        names = (f"{each.part}.{family.adapter_name(each.part, each.path)}" for each in layers)
        verify_found(tensors, names, family, self.networks)
        notes = {**self._family.metadata("lora"), **metadata}
        save_tensors({**tensors, **beside}, path, DTYPES[config.output_dtype], notes)


class FineTune(Method):
    """Networks themselves: denoiser and text encoders, or what decodes pictures in the VAE.

    `layer_filter` narrows the denoiser's layers.
    """

    def __init__(self, config: TrainConfig, family: Family, parts: Parts) -> None:
        self._family, self._parts = family, parts
        if config.training_method is TrainingMethod.FINE_TUNE_VAE:
            # As latents of all other models keep their meaning only while the encoder stays.
            parts.vae.decoder.requires_grad_(True)
            names = ["vae"]
        else:
            names = [name for name in _trained(family) if getattr(config, name).train]
            for name in names:
                self._choose(name, config)
        self.networks = {name: parts.module(name) for name in names}
        self.trainable = {
            name: [p for p in network.parameters() if p.requires_grad]
            for name, network in self.networks.items()
        }

    def _choose(self, name: str, config: TrainConfig) -> None:
        network = self._parts.module(name)
        if name != self._family.denoiser or not config.layer_filter:
            for path, weight in network.named_parameters():
                weight.requires_grad_(self._family.learns(name, path))
            return
        weights = dict(network.named_parameters())  # those of norms as well
        for path in matching(list(weights), config.layer_filter, config.layer_filter_regex):
            weights[path].requires_grad_(True)

    def write_backup(self, folder: Path) -> None:
        """The trained networks, each in a folder as diffusers lays a model out."""
        for name in self.trainable:
            network: Any = self._parts.module(name)
            network.save_pretrained(folder / name)

    def read_backup(self, folder: Path) -> None:
        """Take the networks of a backup."""
        from safetensors.torch import load_file

        for name in self.trainable:
            tensors: dict[str, torch.Tensor] = {}
            for file in sorted((folder / name).glob("*.safetensors")):
                tensors.update(load_file(file))
            if not tensors:
                raise OSError(f"{folder / name} holds no weights")
            network = self._parts.module(name)
            own = network.state_dict()
            tensors = {self._own_key(name, key, own): tensor for key, tensor in tensors.items()}
            # transformers leaves tied and buffer-only tensors out of its files
            odd = sorted(key for key in tensors if key not in own)
            if odd:
                raise ValueError(f"{name} has no {odd[0]}, which the backup holds")
            network.load_state_dict({**own, **tensors})

    def _own_key(self, part: str, key: str, own: Mapping[str, torch.Tensor]) -> str:
        """A weight's key in the live network: files of transformers have other ones at times."""
        loaded = self._family.adapter_name(part, key)
        bare = key.removeprefix("text_model.")  # CLIP's, before transformers 5.6
        return next((each for each in (key, loaded, bare) if each in own), key)

    def write(self, path: Path, config: TrainConfig, metadata: Mapping[str, str]) -> None:
        """The whole model: a diffusers folder, or a file of the original layout."""
        save_model(
            self._family,
            self._parts,
            path,
            config.output_model_format,
            DTYPES[config.output_dtype],
            metadata,
        )


class WithEmbeddings(Method):
    """Words that the text encoders learn, alone or beside a model or its adapter.

    Args:
        config: which embeddings there are.
        family: the architecture.
        parts: its networks.
        beside: what else trains, if anything does.
    """

    live_text = True

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        parts: Parts,
        beside: Lora | OtherAdapter | FineTune | None,
    ) -> None:
        self._beside = beside
        self.remarks = beside.remarks if beside else ()
        brought = beside.brought if isinstance(beside, (Lora, OtherAdapter)) else {}
        self._embeddings = Embeddings(config, family, parts, brought)
        self.trainable = {**(beside.trainable if beside else {}), **self._embeddings.trainable}
        self.networks = {
            family.denoiser: parts.denoiser,
            **self._embeddings.networks,
            **(beside.networks if beside else {}),
        }

    def check(self, dataset: Dataset) -> None:
        """Refuse a training set without one of the words."""
        self._embeddings.check(dataset)

    def after_step(self) -> None:
        """Hold the words to their usual length, if the config says so."""
        self._embeddings.hold_lengths()

    def write_backup(self, folder: Path) -> None:
        """The files of what else trains, and `embeddings/<uuid>.safetensors`."""
        if self._beside is not None:
            self._beside.write_backup(folder)
        self._embeddings.write_backup(folder)

    def read_backup(self, folder: Path) -> None:
        """Take all of a backup."""
        if self._beside is not None:
            self._beside.read_backup(folder)
        self._embeddings.read_backup(folder)

    def write(self, path: Path, config: TrainConfig, metadata: Mapping[str, str]) -> None:
        """Inside the adapter's file where the config says so; else in files of their own."""
        with self._embeddings.put_aside():
            if isinstance(self._beside, FineTune):
                self._beside.write(path, config, metadata)
            elif self._beside is not None:
                inside = self._embeddings.bundle() if config.bundle_additional_embeddings else {}
                self._beside.write(path, config, metadata, inside)
                if inside:
                    return
            self._embeddings.write(path, config, metadata)


_START = "Give the path of a .safetensors file, or leave it empty to begin anew."


def _read(
    name: str,
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Mapping[str, torch.Tensor]]]:
    """An adapter file to go on from: its own tensors, and the embeddings in it.

    Raises:
        ConfigError: if it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return unbundled(load_file(resolve(name)))
    except (OSError, SafetensorError) as failure:
        raise _error("lora_model_name", f"{name} cannot be read: {failure}.", _START) from failure


def _store(trainable: Mapping[str, Sequence[nn.Parameter]], dtype: DataType) -> None:
    """Keep what trains in a type of its own."""
    for parameters in trainable.values():
        for parameter in parameters:
            parameter.data = parameter.data.to(DTYPES[dtype])


def _layers(config: TrainConfig, family: Family, part: str, network: nn.Module) -> list[str]:
    """Paths of the layers of a part that get an adapter; the config's filter is the denoiser's."""
    chosen = config.layer_filter if part == family.denoiser else ""
    paths = matching_layers(network, chosen, config.layer_filter_regex)
    return [path for path in paths if family.learns(part, path)]


def _trained(family: Family) -> tuple[str, ...]:
    return (family.denoiser, *family.trainable_encoders)


def _error(field: str, message: str, fix: str) -> ConfigError:
    return ConfigError([Problem(field, "error", message, fix)])
