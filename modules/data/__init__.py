"""Concepts -> items -> buckets -> cache -> batches.

`scan` lists what is there and what is wrong with it, `build` encodes what the cache lacks,
`Batches` delivers. Names load on first use: listing files and varying captions needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.data.ahead import CachingStopped as CachingStopped
    from modules.data.batches import Batch as Batch
    from modules.data.batches import Batches as Batches
    from modules.data.dataset import Dataset as Dataset
    from modules.data.dataset import build as build
    from modules.data.encode import Encoder as Encoder
    from modules.data.findings import DataProblem as DataProblem
    from modules.data.items import Item as Item
    from modules.data.items import Scan as Scan
    from modules.data.items import scan as scan

_HOMES = {
    "Batch": "modules.data.batches",
    "Batches": "modules.data.batches",
    "CachingStopped": "modules.data.ahead",
    "DataProblem": "modules.data.findings",
    "Dataset": "modules.data.dataset",
    "Encoder": "modules.data.encode",
    "Item": "modules.data.items",
    "Scan": "modules.data.items",
    "build": "modules.data.dataset",
    "scan": "modules.data.items",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list by any other means


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
