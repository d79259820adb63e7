"""The other kinds of adapter: DoRA, LoHa, LoKr and OFT, as peft has them.

Sources: DoRA Liu et al. 2024, arXiv:2402.09353; LoHa and LoKr Yeh et al. 2024, arXiv:2309.14859;
OFT Qiu et al. 2023, arXiv:2306.07280. R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modules.adapters.change import ROTATION, per_input, widths
from modules.adapters.dora import InputLengths, measure_inputs
from modules.adapters.files import ALPHA, DOWN, PEFT, UP
from modules.adapters.key_map import KeyMap
from modules.adapters.lora import ADAPTER, inject
from modules.config import ConfigError, ModelFormat, PeftType, Problem, TrainConfig
from modules.families.base import Family

MAGNITUDE = "dora_scale"
LYCORIS = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
"""Tensors of LoHa and LoKr; peft, LyCORIS and OneTrainer call them alike."""


NO_RANK = 1 << 30
"""A rank that no layer has: peft leaves the factors of a LoKr whole."""


@dataclass(frozen=True, slots=True)
class AdapterLayer:
    """The live adapter of one layer."""

    part: str
    """Pipeline name of the network, such as "unet"."""
    path: str
    """Module path of the adapted layer inside that network."""
    tensors: Mapping[str, Tensor]
    """What trains, not copied, by the name that backups use."""
    alpha: float | None
    """None for OFT, which has none."""
    scale: float
    """Factor of the weight change: alpha / R."""


def add_adapter(
    network: nn.Module, layers: Iterable[str], config: TrainConfig
) -> list[nn.Parameter]:
    """Freeze a network, put a fresh adapter on its layers and return what trains, in float32."""
    paths = list(layers)
    trainable = inject(network, _peft_config(config, paths), config.ot.seed)
    if config.peft_type is PeftType.OFT_2:
        from modules.adapters.oft import rotate_weights

        rotate_weights(network)
    _scale_whole_factors(network, config.lokr_dim)
    if config.lora_decompose and not config.lora_decompose_output_axis:
        measure_inputs(network)
        trainable = [p for p in network.parameters() if p.requires_grad]
    return trainable


def adapter_layers(networks: Mapping[str, nn.Module]) -> Iterator[AdapterLayer]:
    """The adapter of every layer of the given networks."""
    for part, network in networks.items():
        for path, layer in network.named_modules():
            if tensors := _tensors(layer):
                alphas = getattr(layer, "lora_alpha", None) or getattr(layer, "alpha", None)
                scaling = getattr(layer, "scaling", None)
                alpha = float(alphas[ADAPTER]) if alphas else None
                scale = float(scaling[ADAPTER]) if scaling else 1.0
                yield AdapterLayer(part, path, tensors, alpha, scale)


def canonical(layers: Iterable[AdapterLayer], family: Family) -> dict[str, Tensor]:
    """`part.path.suffix`: what backups hold; the tensors themselves, not copies, but for alpha."""
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        name = f"{layer.part}.{family.adapter_name(layer.part, layer.path)}"
        for suffix, tensor in layer.tensors.items():
            tensors[f"{name}.{suffix}"] = tensor
        if layer.alpha is not None:
            tensors[f"{name}.{ALPHA}"] = torch.tensor(layer.alpha)
    return tensors


def in_format(
    layers: Iterable[AdapterLayer], family: Family, model_format: ModelFormat
) -> dict[str, Tensor]:
    """The adapter as the readers of a format expect it.

    Raises:
        ConfigError: if the format joins layers that these adapters cannot be joined for, or the
            family does not have it.
    """
    key_map = family.lora_formats.get(model_format)
    if key_map is None:
        raise _error(model_format, f"is no adapter format of {family.architecture}")
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        if layer.part not in key_map.prefixes:
            raise _error(model_format, f"has no place for {layer.part}, which trained")
        place = key_map.place(layer.part, family.adapter_name(layer.part, layer.path))
        if place.fused:
            raise _error(model_format, f"joins {layer.path} with others, which only LoRA can do")
        if ROTATION not in layer.tensors and place.swaps(*widths(layer.tensors)):
            why = f"swaps the halves of {layer.path}, which only LoRA can do"
            raise _error(model_format, why)
        entries = _entries(layer, key_map)
        tensors |= {f"{place.name}.{suffix}": tensor for suffix, tensor in entries.items()}
    return tensors


def _entries(layer: AdapterLayer, key_map: KeyMap) -> dict[str, Tensor]:
    """The tensors of a layer under a format's suffixes, its scale where that format has it."""
    found = dict(layer.tensors)
    magnitude = found.pop(MAGNITUDE, None)
    if UP in found:
        if key_map.folds_alpha:
            found[UP] = found[UP] * layer.scale
        if magnitude is not None:
            kernel = [1] * (found[UP].ndim - 2)
            by_input = per_input(magnitude)
            if key_map.folds_alpha and by_input:
                why = "has no DoRA along the inputs"
                raise _error(ModelFormat.DIFFUSERS_LORA, why, ModelFormat.KOHYA_LORA)
            if key_map.folds_alpha:  # diffusers keeps the shape of a bias
                shape = [1, -1, *kernel] if kernel else [-1]
                found["lora_magnitude_vector.weight"] = magnitude.reshape(shape)
            else:
                column = magnitude if by_input else magnitude.reshape(-1, 1, *kernel)
                found[MAGNITUDE] = column
        if key_map.peft:
            found = {PEFT.get(suffix, suffix): tensor for suffix, tensor in found.items()}
        if not key_map.folds_alpha:
            found[ALPHA] = torch.tensor(layer.alpha)
    elif layer.alpha is not None:
        found[ALPHA] = torch.tensor(layer.alpha)
    return found


def _scale_whole_factors(network: nn.Module, rank: int) -> None:
    """Let a LoKr of two whole factors have the scale 1, as in LyCORIS and OneTrainer.

    A file of such a layer tells no rank by which a reader could divide alpha.

    Args:
        network: with the adapter.
        rank: the one that the config names.
    """
    for layer in network.modules():
        whole = [ADAPTER in getattr(layer, name, ()) for name in ("lokr_w1", "lokr_w2")]
        if all(whole):
            held: Any = layer
            held.alpha[ADAPTER], held.scaling[ADAPTER] = float(rank), 1.0


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if ADAPTER in getattr(layer, "lora_A", ()):
        down: Any = layer.lora_A
        up: Any = layer.lora_B
        found = {DOWN: down[ADAPTER].weight, UP: up[ADAPTER].weight}
        magnitudes: Any = getattr(layer, "lora_magnitude_vector", {})
        if ADAPTER in magnitudes:
            lengths = magnitudes[ADAPTER]
            by_input = isinstance(lengths, InputLengths)
            column = (-1, *[1] * (found[UP].ndim - 1))
            found[MAGNITUDE] = lengths.weight if by_input else lengths.weight.view(column)
    elif ADAPTER in getattr(layer, "oft_R", ()):
        rotation: Any = layer.oft_R
        found = {ROTATION: rotation[ADAPTER].weight}
    else:
        for name in LYCORIS:
            held: Any = getattr(layer, name, ())
            if ADAPTER in held:
                found[name] = held[ADAPTER]
    return found


def _peft_config(config: TrainConfig, layers: list[str]) -> Any:
    import peft

    rank, alpha, drop = config.lora_rank, config.lora_alpha, config.dropout_probability
    if config.peft_type is PeftType.LORA:
        return peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=drop,
            target_modules=layers,
            use_dora=config.lora_decompose,
        )
    if config.peft_type is PeftType.LOHA:
        return peft.LoHaConfig(r=rank, alpha=alpha, rank_dropout=drop, target_modules=layers)
    if config.peft_type is PeftType.LOKR:
        return peft.LoKrConfig(
            r=NO_RANK if config.lokr_full_matrix else config.lokr_dim,
            alpha=alpha,
            rank_dropout=drop,
            decompose_both=config.lokr_decompose_both,
            decompose_factor=config.lokr_decompose_factor,
            use_effective_conv2d=config.lokr_use_tucker,
            target_modules=layers,
        )
    return peft.OFTConfig(
        r=0,
        oft_block_size=config.oft_block_size,
        block_share=config.oft_block_share,
        target_modules=layers,
    )


def _error(
    model_format: ModelFormat, why: str, other: ModelFormat = ModelFormat.DIFFUSERS_LORA
) -> ConfigError:
    message = f"output_model_format is {model_format.value}, which {why}."
    return ConfigError([Problem("output_model_format", "error", message, f"Use {other.value}.")])
