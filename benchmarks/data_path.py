"""The way from a folder to batches: scan, cache, deliver, and what it keeps in memory.

Caching is measured in turn against two hand-written loops, each to be beaten by half: a plain one
of Pillow and a DataLoader that saves a file for each image, and one as in diffusers' example
scripts, in its batches of 16 and without a cache. `python benchmarks/data_path.py`.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image

from modules.config import ConceptConfig, TrainConfig
from modules.data import Batches, Dataset, Scan, build, scan
from modules.families import family_for
from modules.training.encoder import LiveEncoder
from ot_notebook.preset_files import find

EDGE = 64
MEMORY_SIZES = (1_000, 10_000, 100_000)
PLAIN_BATCH, EXAMPLES_BATCH = 8, 16
"""As many as our own encoding takes of small pictures, and as many as the example script does."""


def picture(seed: int, edge: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((edge, edge), Image.Resampling.BICUBIC)


def make_folder(folder: Path, count: int, edge: int = 256, suffix: str = ".jpg") -> None:
    folder.mkdir()
    for index in range(count):
        picture(index, edge).save(folder / f"{index:06}{suffix}", quality=90)
        (folder / f"{index:06}.txt").write_text(f"picture number {index}, smooth, colourful")


def build_set(found: Scan, encoder: Any, cache: Path, resolution: int = EDGE) -> Dataset:
    return build(
        found,
        encoder,
        cache,
        resolution=str(resolution),
        quantum=8,
        bucketing=True,
        threads=2,
        report=lambda _done, _total: None,
        should_stop=lambda: False,
    )


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def busy_seconds(work: Callable[[], Any]) -> float:
    """Of this process alone, whatever else the machine does."""
    started = time.process_time()
    work()
    return time.process_time() - started


def both_seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """By the clock, and of this process alone."""
    busy = time.process_time()
    return seconds(work), time.process_time() - busy


def middles(times: list[tuple[float, float]]) -> tuple[float, float]:
    took, busy = zip(*times, strict=True)
    return statistics.median(took), statistics.median(busy)


class HandWritten:
    """The loops that one would write without a data path."""

    def __init__(self, folder: Path) -> None:
        config, _ = TrainConfig.load(find("emoji LoRA"))
        self.family = family_for(config.model_type)
        self.parts = self.family.load(config)
        self.folder = folder

    def load(self, path: Path) -> torch.Tensor:
        image = Image.open(path).convert("RGB").resize((EDGE, EDGE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1

    @torch.no_grad()
    def plain(self, cache: Path) -> None:
        cache.mkdir()
        number = 0
        for pixels, captions in torch.utils.data.DataLoader(self.examples(), PLAIN_BATCH):
            latents = self.family.encode_images(self.parts, pixels)
            text = self.family.encode_text(self.parts, list(captions))
            for row in range(len(latents)):
                held = {"latents": latents, **text}
                rows = {name: tensor[row].clone() for name, tensor in held.items()}
                torch.save(rows, cache / f"{number:06}.pt")
                number += 1

    @torch.no_grad()
    def as_in_examples(self) -> None:
        loader = torch.utils.data.DataLoader(self.examples(), EXAMPLES_BATCH, shuffle=True)
        for pixels, captions in loader:
            self.family.encode_images(self.parts, pixels)
            self.family.encode_text(self.parts, list(captions))

    def examples(self) -> _Examples:
        return _Examples(sorted(self.folder.glob("*.jpg")), self.load)


class _Examples(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], load: Callable[[Path], torch.Tensor]) -> None:
        self.paths, self.load = paths, load

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        path = self.paths[index]
        return self.load(path), path.with_suffix(".txt").read_text()


class Pooling:
    """An encoder that costs nothing, to measure what is around it."""

    image_identity, text_identity = "pooling", "length"
    hint, hint_identity, lanes = "none", "none", 1

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def encode_text(self, captions: list[str]) -> dict[str, torch.Tensor]:
        return {
            "hidden": torch.tensor([[[float(len(caption))] * 128] * 24 for caption in captions])
        }


def private_bytes() -> int:
    """Memory of this process that no file backs."""
    gc.collect()
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure_memory(count: int) -> dict[str, float]:
    """In a process of its own: bytes that the scan and the training set keep."""
    import pyarrow as pa

    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "set.arrow"
        schema = pa.schema([("image", pa.binary()), ("text", pa.string())])
        with pa.OSFile(str(table), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for start in range(0, count, 1000):
                images, texts = [], []
                for index in range(start, min(start + 1000, count)):
                    buffer = io.BytesIO()
                    colour = (index & 255, index >> 8 & 255, index >> 16)
                    Image.new("RGB", (16, 16), colour).save(buffer, "BMP")
                    images.append(buffer.getvalue())
                    texts.append(f"picture number {index:06}, one colour, flat, synthetic")
                writer.write_batch(pa.record_batch([images, texts], schema=schema))
        warm = build_set(
            scan([ConceptConfig(path=_few(Path(name)))]), Pooling(), Path(name) / "w", 16
        )
        next(Batches(warm, 2, 0))
        concepts = [ConceptConfig(path=str(table))]
        before = private_bytes()
        found = scan(concepts)
        scanned = private_bytes()
        cache = Path(name) / "cache"
        build_set(found, Pooling(), cache, 16)  # encoding leaves the allocator room of its own
        before_set = private_bytes()
        data = build_set(found, Pooling(), cache, 16)
        batches = Batches(data, 8, 0)
        for _ in range(min(200, batches.batches_in(0))):
            next(batches)
        batches.load_state_dict(batches.state_dict())  # lets go of those that wait
        built = private_bytes()
        return {"index": scanned - before, "beyond": built - before_set}


def memory_of_many(items: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory-of", str(items)]
    one_heap = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # else each thread keeps some for itself
    ran = subprocess.run(command, check=True, capture_output=True, env=one_heap)
    kept: dict[str, float] = json.loads(ran.stdout)
    return kept


def _few(folder: Path) -> str:
    few = folder / "few"
    make_folder(few, 4, 16)
    return str(few)


def main(rounds: int = 3, memory_of: int = 0) -> None:
    """Print every figure; `--memory-of N` prints only what N items keep in memory, as JSON."""
    if memory_of:
        print(json.dumps(measure_memory(memory_of)))
        return
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_folder(root / "many", 10_000, 16, ".png")
        concepts = [ConceptConfig(path=str(root / "many"))]
        scan(concepts)  # warms the disk
        plain, again = partial(scan, concepts), partial(scan, concepts, root / "cache")
        took, busy = (min(clock(plain) for _ in range(rounds)) for clock in (seconds, busy_seconds))
        print(
            f"scan, headers and captions: {10_000 / took:,.0f} images/s, "
            f"{10_000 / busy:,.0f} in a second of the CPU"
        )
        time.sleep(2.1)  # files changed just now are not remembered
        again()
        took, busy = (min(clock(again) for _ in range(rounds)) for clock in (seconds, busy_seconds))
        print(f"scan again of 10,000 unchanged images: {took:.2f} s, {busy:.2f} of the CPU")

        make_folder(root / "set", 512)
        ours = HandWritten(root / "set")
        found = scan([ConceptConfig(path=str(root / "set"))])
        encoder = LiveEncoder(ours.family, ours.parts, cache_text=True)
        times: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for turn in range(rounds):
            fill = partial(build_set, found, encoder, root / f"ours-{turn}")
            times["cache"].append(both_seconds(fill))
            times["a plain loop"].append(both_seconds(partial(ours.plain, root / f"plain-{turn}")))
            times["the examples"].append(both_seconds(ours.as_in_examples))
        took, busy = middles(times["cache"])
        print(
            f"caching, embedded VAE and text encoder: {512 / took:,.0f} images/s, "
            f"{512 / busy:,.0f} in a second of the CPU"
        )
        for what in ("a plain loop", "the examples"):
            their_took, their_busy = middles(times[what])
            print(
                f"  against {what}: {their_took / took:.2f}x of its {512 / their_took:,.0f} "
                f"images/s, {their_busy / busy:.2f}x by the CPU"
            )

        data = build_set(found, encoder, root / "ours-0")
        batches = Batches(data, 8, 0)
        next(batches)
        count = 8 * 1000
        took = min(seconds(lambda: [next(batches) for _ in range(1000)]) for _ in range(rounds))
        print(f"delivery of cached batches of 8: {count / took:,.0f} items/s")

    smaller, before = 0, {"index": 0.0, "beyond": 0.0}
    for items in MEMORY_SIZES:
        kept = memory_of_many(items)
        grown = {what: (kept[what] - before[what]) / (items - smaller) for what in kept}
        since = f"each beyond {smaller:,}" if smaller else "an item, with what is there once"
        print(
            f"memory at {items:,} items: index {grown['index']:,.0f} bytes {since}, "
            f"training set {grown['beyond']:,.0f} more"
        )
        smaller, before = items, kept


if __name__ == "__main__":
    typer.run(main)
