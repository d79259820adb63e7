"""What the rules need to know of the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


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


@lru_cache(maxsize=16)
def detect(device: str) -> Hardware:
    """The device of that name in this machine, as the driver describes it; loads no torch."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return Hardware(kind, device)
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(number or 0))
        name = pynvml.nvmlDeviceGetName(handle)
        major, _ = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30
        pynvml.nvmlShutdown()
    except (pynvml.NVMLError, ValueError):
        return Hardware(kind, device, present=False)
    text = name.decode() if isinstance(name, bytes) else str(name)
    return Hardware(kind, text, bfloat16=major >= 8, memory_gib=memory)
