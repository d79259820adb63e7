"""What the rules need to know of the device that trains."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Hardware:
    """One device."""

    kind: str
    """As torch calls it: "cuda", "mps", "xpu" or "cpu"."""
    name: str
    """For people, such as "Tesla T4"."""
    present: bool = True
    """Whether this machine has it."""
    bfloat16: bool = True
    """Whether it computes in bfloat16 at full speed."""
    memory_gib: float | None = None
    """Its own memory; None if unknown."""


def detect(device: str) -> Hardware:
    """The device of that name in this machine; loads no torch, but asks one that is loaded.

    Other makers' GPUs, which torch calls "cuda" too, have no NVIDIA driver to describe them.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return Hardware(kind, device)
    if described := _from_driver(device, number):
        return described
    torch = sys.modules.get("torch")
    if Path("/dev/kfd").exists() or (torch is not None and torch.cuda.is_available()):
        return Hardware(kind, device)
    return Hardware(kind, device, present=False)


@lru_cache(maxsize=16)
def _from_driver(device: str, number: str) -> Hardware | None:
    """What NVIDIA's driver says of a GPU; None where there is no driver, or no such GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(number or 0))
        name = pynvml.nvmlDeviceGetName(handle)
        major, _ = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30
        pynvml.nvmlShutdown()
    except (pynvml.NVMLError, ValueError):
        return None
    text = name.decode() if isinstance(name, bytes) else str(name)
    return Hardware("cuda", text or device, bfloat16=major >= 8, memory_gib=memory)


def default_device() -> str:
    """The device that a config trains on if it names none: a GPU if there is one, else "cpu"."""
    if sys.platform == "darwin":
        return "mps" if platform.machine() == "arm64" else "cpu"
    return "cuda" if detect("cuda").present else "cpu"
