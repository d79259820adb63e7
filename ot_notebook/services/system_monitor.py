"""What the machine does while it trains: GPU, CPU, memory and disk, once a second.

Read on a thread of its own, so that a slow driver never holds a training step. What cannot be read
is None, and `note` says why in a sentence.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets as t

from ot_notebook.services.drive_space import Drive, DriveSpace

if TYPE_CHECKING:
    from modules.training.trainer import GenericTrainer

SECONDS = 1.0
"""Time between two readings."""

KEPT = 600
"""Readings in memory: ten minutes."""

WATCHED = 30.0
"""Seconds for which a folder is looked at since somebody asked; the last one asked for stays."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU. Memory in bytes; None where the driver does not tell."""

    name: str
    utilisation: float | None
    """Percent of the last second in which it worked."""
    memory_used: int | None
    memory_total: int | None
    process_memory: int | None
    """Of this process."""
    temperature: float | None
    """Degrees Celsius."""
    power: float | None
    """Watts."""
    clock: float | None
    """Megahertz of its cores."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The machine at one moment. Memory and disk in bytes."""

    time: float
    """Seconds since 1970."""
    cpu: float | None
    """Percent over all cores."""
    ram_used: int | None
    ram_total: int | None
    process_ram: int | None
    disk_free: int | None
    disk_total: int | None
    gpus: tuple[Gpu, ...]
    drives: Mapping[Path, Drive] = field(default_factory=dict)
    """By folder: where runs are kept, if not on that disk; see `SystemMonitor.watch`."""

    def drive_of(self, folder: str | Path) -> Drive | None:
        """Where a run is kept that the monitor watches; None if that is the disk, or not known."""
        return self.drives.get(_place(folder))


class SystemMonitor(t.HasTraits):
    """Reads the machine while it is started. Observe `reading` for a display.

    Args:
        folder: the disk that matters is the one that this is on.
        seconds: time between two readings.

    Example:
        >>> monitor = SystemMonitor()
        >>> monitor.start()
        >>> monitor.reading.ram_used
    """

    reading = t.Any(None, read_only=True, help="The latest `Reading`, or None.")
    note = t.Unicode("", read_only=True, help="What cannot be read and why; empty if all can.")

    def __init__(self, folder: str | Path = ".", seconds: float = SECONDS) -> None:
        super().__init__()
        self.history: deque[Reading] = deque(maxlen=KEPT)
        """The newest readings, oldest first."""
        self._folder, self._seconds = Path(folder), seconds
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: dict[Path, float] = {}  # when each was asked for, the last one at the end
        self._asking = threading.Lock()
        self._quotas: dict[Path, int] = {}

    def watch(self, folder: str | Path, quota: int | None = None) -> None:
        """Tell from now on also of the drive that a run is kept on, if it is another one.

        Several dashboards may each ask for their own; one that asks no more is told no longer.

        Args:
            folder: the run's workspace.
            quota: bytes that may lie there, where the drive itself does not tell: many network
                drives show the size of all of their machines. It stays known for that folder.
        """
        place = _place(folder)
        with self._asking:
            if quota is not None:
                self._quotas[place] = quota
            self._watched.pop(place, None)
            self._watched[place] = time.monotonic()

    def _kept(self) -> list[tuple[Path, int | None]]:
        """The folders of the runs that are shown, with their quotas."""
        with self._asking:
            since = time.monotonic() - WATCHED
            for place in list(self._watched)[:-1]:
                if self._watched[place] < since:
                    del self._watched[place]
            return [(place, self._quotas.get(place)) for place in self._watched]

    def start(self) -> None:
        """Read from now on; nothing happens if it does already."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="ot-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        machine = _Machine(self._folder, self._kept)
        self.set_trait("note", machine.note)
        try:
            while not self._stopped.wait(self._seconds if self.history else 0):
                reading = machine.read()
                self.history.append(reading)
                self.set_trait("reading", reading)
        finally:
            machine.close()


class _Machine:
    """The libraries that read it, as far as they are there."""

    def __init__(self, folder: Path, watched: Callable[[], list[tuple[Path, int | None]]]) -> None:
        notes = []
        self._folder, self._watched = folder, watched
        self._spaces: dict[tuple[Path, int | None], DriveSpace] = {}  # each counts its files
        self._psutil: Any = None
        try:
            import psutil

            self._psutil = psutil
            self._process = psutil.Process()
            psutil.cpu_percent()  # the first call only sets the mark from which the next counts
        except ImportError:
            notes.append("No CPU and memory figures: pip install psutil brings them.")
        self._nvml, why = _nvml()
        if why:
            notes.append(why)
        self.note = " ".join(notes)

    def read(self) -> Reading:
        cpu = ram_used = ram_total = process = None
        if self._psutil is not None:
            memory = self._psutil.virtual_memory()
            cpu, ram_total = self._psutil.cpu_percent(), memory.total
            ram_used = memory.total - memory.available
            process = self._process.memory_info().rss
        free = total = None
        with suppress(OSError):  # an unplugged drive, a folder that is gone
            total, _, free = shutil.disk_usage(self._folder)
        memory_now = (cpu, ram_used, ram_total, process)
        return Reading(time.time(), *memory_now, free, total, self._gpus(), self._drives())

    def _drives(self) -> dict[Path, Drive]:
        found = {}
        for watched in self._watched():
            folder, quota = watched
            with suppress(OSError):  # a drive that does not answer now
                if watched not in self._spaces:
                    self._spaces[watched] = DriveSpace(folder, self._folder, quota)
                if (drive := self._spaces[watched].look()) is not None:
                    found[folder] = drive
        return found

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def _gpus(self) -> tuple[Gpu, ...]:
        if self._nvml is None:
            return ()
        count = self._ask(self._nvml.nvmlDeviceGetCount) or 0
        handles = [self._ask(self._nvml.nvmlDeviceGetHandleByIndex, n) for n in range(count)]
        return tuple(self._gpu(n, handle) for n, handle in enumerate(handles) if handle is not None)

    def _gpu(self, number: int, handle: Any) -> Gpu:
        nvml, ask = self._nvml, self._ask
        name = ask(nvml.nvmlDeviceGetName, handle) or f"GPU {number}"
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = ask(nvml.nvmlDeviceGetPowerUsage, handle)
        processes = ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        ours = [each.usedGpuMemory for each in processes if each.pid == os.getpid()]
        return Gpu(
            name.decode() if isinstance(name, bytes) else name,
            rates.gpu if rates else None,
            memory.used if memory else None,
            memory.total if memory else None,
            ours[0] if ours else None,
            ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            milliwatts / 1000 if milliwatts is not None else None,
            ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        )

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What the driver says, or None: cards differ in what they tell."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None


def _place(folder: str | Path) -> Path:
    return Path(folder).expanduser().absolute()


def _nvml() -> tuple[Any, str]:
    """The library that reads NVIDIA's GPUs, started, or None and why not."""
    try:
        import pynvml
    except ImportError:
        return None, "No GPU figures: pip install nvidia-ml-py brings them, where there is a GPU."
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"No GPU figures: this machine has no NVIDIA driver that answers ({error})."
    return pynvml, ""


def vram_of(trainer: GenericTrainer | None) -> dict[str, int]:
    """Bytes on the training device by what holds them; empty without a GPU or a live model.

    weights: parameters and buffers of the networks; gradients: of those that train; optimizer: its
    state; other: what else is in use, in the middle of a step mostly activations; cached: held by
    torch for reuse; process: all of this process by the driver, as far as it tells.
    """
    torch = sys.modules.get("torch")
    parts = getattr(trainer, "parts", None)  # only from start() to close()
    if trainer is None or parts is None or torch is None or not torch.cuda.is_available():
        return {}
    networks, optimizer = parts.modules().values(), trainer.optimizer
    state = list(optimizer.state.values()) if optimizer is not None else []
    weights = {id(x): x for part in networks for x in (*part.parameters(), *part.buffers())}
    held = {
        "weights": _bytes_of(weights.values()),
        "gradients": _bytes_of(x.grad for x in weights.values() if x.grad is not None),
        "optimizer": _bytes_of(_tensors(state, torch.Tensor)),
    }
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    reading = monitor().reading
    ours = [gpu.process_memory for gpu in reading.gpus if gpu.process_memory] if reading else []
    return {
        **held,
        "other": max(0, allocated - sum(held.values())),
        "cached": reserved - allocated,
        **({"process": sum(ours)} if ours else {}),
    }


def _bytes_of(tensors: Iterable[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x.is_cuda)


def _tensors(value: Any, kind: type) -> Iterator[Any]:
    """Every tensor in nested dicts and lists."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one, kind)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one, kind)


if "_monitor" not in globals():  # `%autoreload` runs this file again
    _monitor: SystemMonitor | None = None


def monitor() -> SystemMonitor:
    """This kernel's monitor, started: one for all displays."""
    global _monitor  # noqa: PLW0603 - a kernel is on one machine
    if _monitor is None:
        _monitor = SystemMonitor()
    _monitor.start()
    return _monitor
