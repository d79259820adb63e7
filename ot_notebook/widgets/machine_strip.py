"""What the machine does, in a strip: GPU, CPU, memory and disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TypedDict

import ipywidgets as W

from ot_notebook.services.drive_space import Drive
from ot_notebook.services.system_monitor import Gpu, Reading, SystemMonitor, monitor
from ot_notebook.widgets.texts import brief
from ot_notebook.widgets.view_state import Tone, percent

GIB = 2**30

NEARLY_FULL = 92.0
"""Percent of memory from which a run may fail."""

LITTLE_DISK = 5 * GIB
"""Free bytes below which a backup may not fit."""


class Meter(TypedDict):
    """One figure; `percent` is 0 to 100, `hint` says more."""

    label: str
    text: str
    percent: float
    tone: Tone
    hint: str


def meters(
    reading: Reading | None, held: Mapping[str, int] | None = None, kept: Path | None = None
) -> list[Meter]:
    """The figures that this machine gives; none before the first reading.

    Args:
        reading: the latest.
        held: bytes of GPU memory by what holds them, for the hint of that meter.
        kept: the workspace of the run that is shown, if any.
    """
    if reading is None:
        return []
    found: list[Meter] = []
    for number, gpu in enumerate(reading.gpus):
        found += _gpu(gpu, f"GPU {number}" if len(reading.gpus) > 1 else "GPU", held or {})
    if reading.cpu is not None:
        found.append(_meter("CPU", f"{reading.cpu:.0f}%", reading.cpu, "Over all cores"))
    if reading.ram_used is not None and reading.ram_total:
        ours = "" if reading.process_ram is None else f"{_gib(reading.process_ram)} by this kernel"
        found.append(_memory("RAM", reading.ram_used, reading.ram_total, ours))
    if reading.disk_free is not None and reading.disk_total:
        used = reading.disk_total - reading.disk_free
        disk = _meter(
            "Disk",
            f"{_gib(reading.disk_free)} free",
            percent(used, reading.disk_total),
            f"of {_gib(reading.disk_total)}",
        )
        disk["tone"] = "bad" if reading.disk_free < LITTLE_DISK else "idle"
        found.append(disk)
    drive = None if kept is None else reading.drive_of(kept)
    if drive is not None and drive.total:
        found.append(_drive(drive))
    return found


def _drive(drive: Drive) -> Meter:
    """Where the run is kept."""
    hint = f"of {_gib(drive.total)} for the run's files in {brief(drive.where, 120)}"
    used = percent(drive.total - drive.free, drive.total)
    meter = _meter(drive.label, f"{_gib(drive.free)} free", used, hint)
    meter["tone"] = "bad" if drive.free < min(LITTLE_DISK, drive.total / 10) else "idle"
    return meter


def _gpu(gpu: Gpu, label: str, held: Mapping[str, int]) -> list[Meter]:
    details = [brief(gpu.name, 60)]
    if gpu.temperature is not None:
        details.append(f"{gpu.temperature:.0f} °C")
    if gpu.power is not None:
        details.append(f"{gpu.power:.0f} W")
    if gpu.clock is not None:
        details.append(f"{gpu.clock:.0f} MHz")
    found = []
    if gpu.utilisation is not None:
        heat = "" if gpu.temperature is None else f" · {gpu.temperature:.0f} °C"
        found.append(
            _meter(label, f"{gpu.utilisation:.0f}%{heat}", gpu.utilisation, ", ".join(details))
        )
    if gpu.memory_used is not None and gpu.memory_total:
        ours = "" if gpu.process_memory is None else f"{_gib(gpu.process_memory)} by this kernel"
        parts = [
            ours,
            *(f"{what} {_gib(size)}" for what, size in held.items() if size and what != "process"),
        ]
        hint = ", ".join(part for part in parts if part)
        found.append(_memory(f"{label} memory", gpu.memory_used, gpu.memory_total, hint))
    return found


def _memory(label: str, used: int, total: int, hint: str) -> Meter:
    full = percent(used, total)
    meter = _meter(label, f"{used / GIB:.1f} of {_gib(total)}", full, hint)
    meter["tone"] = "hold" if full >= NEARLY_FULL else "idle"
    return meter


def _meter(label: str, text: str, share: float, hint: str) -> Meter:
    share = round(min(100.0, max(0.0, share)), 1)
    return Meter(label=label, text=text, percent=share, tone="idle", hint=hint)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def strip(found: list[Meter], note: str) -> str:
    """The figures as HTML, and below them what cannot be read; empty if there is neither."""
    cells = "".join(
        f'<div class="ot-meter ot-tone-{meter["tone"]}" title="{escape(meter["hint"])}">'
        f'<div class="ot-bar-text"><span>{escape(meter["label"])}</span>'
        f"<span>{escape(meter['text'])}</span></div>"
        f'<div class="ot-track" role="meter" aria-label="{escape(meter["label"])}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{round(meter["percent"])}" '
        f'aria-valuetext="{escape(meter["text"])}">'
        f'<div class="ot-fill" style="width:{meter["percent"]}%"></div></div></div>'
        for meter in found
    )
    if not cells and not note:
        return ""
    said = f'<div class="ot-machine-note">{escape(brief(note))}</div>' if note else ""
    return f'<div class="ot"><div class="ot-strip-machine">{cells}</div>{said}</div>'


class MachineStrip(W.HTML):
    """The strip as a widget that every front end draws. Whoever holds it calls `draw`.

    Args:
        source: what reads the machine; this kernel's monitor by default, from the first drawing on.
        held: gives bytes of GPU memory by what holds them.
        kept: gives the workspace of the run that is shown, if any.
    """

    def __init__(
        self,
        source: SystemMonitor | None = None,
        held: Callable[[], Mapping[str, int]] = dict,
        kept: Callable[[], Path | None] = lambda: None,
    ) -> None:
        self._source, self._held, self._kept = source, held, kept
        self._drawn: object = self  # nothing, not even the lack of a reading
        super().__init__(layout=W.Layout(width="100%"))

    def draw(self) -> None:
        """Show the latest reading; at most one message a second, as there is no newer one."""
        if self._source is None:
            self._source = monitor()
        if (folder := self._kept()) is not None:
            self._source.watch(folder)
        reading = self._source.reading
        now = (reading, folder)
        if now != self._drawn:
            self._drawn = now
            self.value = strip(meters(reading, self._held(), folder), self._source.note)
