"""Dropout inside adapters, which may change while a run goes on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from modules.adapters.lora import ADAPTER


def set_dropout(networks: Iterable[nn.Module], share: float) -> None:
    """Leave out this share of what an adapter reads (LoRA, DoRA) or of its rows (LoHa, LoKr)."""
    for network in networks:
        for layer in network.modules():
            drops: Any = getattr(layer, "lora_dropout", ())
            if ADAPTER in drops and getattr(drops[ADAPTER], "p", 0.0) != share:
                kind = nn.Dropout(share) if share else nn.Identity()
                drops[ADAPTER] = kind.train(layer.training)
            rows: Any = getattr(layer, "rank_dropout", ())
            if ADAPTER in rows:
                rows[ADAPTER] = share
