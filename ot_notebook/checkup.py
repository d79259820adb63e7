"""What this machine and this kernel have, what works with it, and what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ot_notebook.platform import Platform, detect

GIB = 2**30

LITTLE_DISK, LITTLE_RAM = 10 * GIB, 8 * GIB
"""Below these a model of full size hardly fits."""

ENGINE = ("torch", "diffusers", "transformers", "peft", "safetensors", "accelerate")
FRONT_END = ("ipywidgets", "anywidget", "bqplot", "traitlets", "ipykernel", "IPython", "jupyterlab")

Verdict = Literal["good", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    value: str
    verdict: Verdict = "good"
    advice: str = ""


class Checkup(tuple[Check, ...]):
    """Everything that was looked at; shown as a table."""

    __slots__ = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing stands in the way of training."""
        return all(check.verdict != "bad" for check in self)

    def __repr__(self) -> str:
        marks = {"good": "  ", "note": "! ", "bad": "X "}
        lines = []
        for check in self:
            lines.append(f"{marks[check.verdict]}{check.name:12} {check.value}")
            if check.advice:
                lines.append(f"{'':15}{check.advice}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        marks = {"good": "", "note": "note", "bad": "needs care"}
        rows = "".join(
            f"<tr><td><b>{escape(check.name)}</b></td><td style='text-align:left'>"
            f"{escape(check.value)}<br><small>{escape(check.advice)}</small></td>"
            f"<td>{marks[check.verdict]}</td></tr>"
            for check in self
        )
        return f"<table>{rows}</table>"


def doctor(folder: str | Path = ".") -> Checkup:
    """Look at the platform, versions, GPU, memory and disk; change nothing, and use no network.

    Args:
        folder: where you mean to work.
    """
    place = detect()
    checks = [_platform(place), *_versions(), _gpu(), _memory(), _disk(Path(folder)), _store()]
    return Checkup([*checks, *_hub()])


def _platform(place: Platform) -> Check:
    words = {"rich": "live views", "core": "plain widgets", "text": "text"}[place.mode]
    verdict: Verdict = "note" if place.advice else "good"
    return Check("Platform", f"{place.label}: {words}", verdict, place.advice)


def _versions() -> Iterator[Check]:
    python = f"{sys.version.split()[0]} in {sys.prefix}"
    yield Check("Python", python)
    missing = [name for name in ENGINE[:5] if find_spec(name) is None]
    if missing:
        fix = f"Install what is missing: pip install {' '.join(missing)}"
        yield Check("Engine", f"{', '.join(missing)} missing", "bad", fix)
    else:
        yield Check("Engine", _listed(ENGINE))
    yield _front_end()


def _front_end() -> Check:
    if find_spec("jupyterlab"):
        return Check("Front end", _listed(FRONT_END))
    anywidget = ".".join(_version("anywidget").split(".")[:2])
    widgets = _version("ipywidgets").split(".")[0]
    advice = (
        f"JupyterLab runs from another environment. Views show only if that one has anywidget "
        f"{anywidget} and ipywidgets {widgets}, too."
    )
    return Check("Front end", _listed(FRONT_END), "note", advice)


def _gpu() -> Check:
    if find_spec("torch") is None:
        return Check("GPU", "unknown without torch", "note")
    import torch

    if torch.cuda.is_available():
        names = []
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            kind = "bfloat16" if card.major >= 8 else "float16; it has no bfloat16"
            names.append(f"{card.name}, {card.total_memory / GIB:.0f} GiB, use {kind}")
        return Check("GPU", "; ".join(names))
    if torch.backends.mps.is_available():
        return Check("GPU", "Apple silicon: set train_device to mps")
    advice = "Small models train on the CPU: set train_device to cpu. Larger ones need a GPU."
    return Check("GPU", "none that torch can use", "note", advice)


def _memory() -> Check:
    try:
        import psutil
    except ImportError:
        return Check("Memory", "unknown", "note", "pip install psutil brings the figures.")
    memory = psutil.virtual_memory()
    value = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < LITTLE_RAM:
        advice = "Models of full size need more: close other kernels, or stream weights from disk."
        return Check("Memory", value, "note", advice)
    return Check("Memory", value)


def _disk(folder: Path) -> Check:
    try:
        disk = shutil.disk_usage(folder)
    except OSError as error:
        return Check("Disk", f"{folder}: {error}", "bad", "Choose a folder that exists.")
    value = f"{disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB free in {folder.resolve()}"
    if not os.access(folder, os.W_OK):
        return Check("Disk", value, "bad", "This user may not write there. Choose another folder.")
    if disk.free < LITTLE_DISK:
        advice = "Backups of a large model take several GiB each: choose another disk for them."
        return Check("Disk", value, "note", advice)
    return Check("Disk", value)


def _store() -> Check:
    return Check("Run store", f"SQLite {sqlite3.sqlite_version}")


def _hub() -> Iterator[Check]:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        advice = "Models come from this machine alone. Unset HF_HUB_OFFLINE to download others."
        yield Check("Model hub", "offline", "note", advice)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {found}" for name in names if (found := _version(name)))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
