"""Pictures that tile: what leaves at one edge comes in at the other."""

from __future__ import annotations

from torch import nn

from modules.adapters.lora import ADAPTER
from modules.config import TrainConfig, settings
from modules.config.problems import error
from modules.families import Parts


def wrap_around(parts: Parts, config: TrainConfig) -> None:
    """Let every padded convolution of a model, and of the adapters on it, wrap around the edges.

    Where the config asks for it: settings leave models alone whose denoisers have no edges.

    Raises:
        ConfigError: if a convolution has an adapter that pads with zeros all the same.
    """
    if not (config.force_circular_padding and TILING.fits_model(config)):
        return
    for network in parts.modules().values():
        for path, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d) and any(layer.padding):
                layer.padding_mode = "circular"
            base = getattr(layer, "base_layer", None)
            if isinstance(base, nn.Conv2d) and any(base.padding) and not _follows(layer):
                field = "force_circular_padding"
                message = f"{field} is true, but the adapter on {path} cannot wrap around."
                fix = "Use LORA without lora_decompose, or a layer_filter of attention alone."
                raise error(field, message, fix)


TILING = next(s for s in settings(TrainConfig) if s.path == "force_circular_padding")
"""Says which model types can tile."""


def _follows(adapter: nn.Module) -> bool:
    """Whether an adapter computes with convolutions of its own, or with those of its layer."""
    plain = ADAPTER in getattr(adapter, "lora_A", ())
    decomposed = ADAPTER in getattr(adapter, "lora_magnitude_vector", ())
    return (plain and not decomposed) or ADAPTER in getattr(adapter, "oft_R", ())
