"""Our trainer's step against a bare loop and against diffusers' script, alternately in one run.

On the embedded model, and on a Stable Diffusion of 60 million parameters with random weights:
`python benchmarks/step_time.py`. Times are CPU times of the whole process on one thread, so that
a machine that does other things disturbs them least. `--memory` measures memory instead, each
loop in a process of its own (Linux).
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from baselines import BareLoop, DiffusersScript
from quarter_model import config_of, save_model, save_pictures

from modules import GenericTrainer, TrainCallbacks, TrainConfig
from ot_notebook.preset_files import find

Block = Callable[[int], None]
"""Takes so many steps."""


def machine() -> str:
    """Where this was measured, in a line."""
    name = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = [line for line in cpu.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"machine: {name}, torch {torch.__version__}, 1 thread"


def emoji_config(workspace: Path, steps: int) -> TrainConfig:
    """The quickstart's preset without samples and backups."""
    config, _ = TrainConfig.load(find("emoji LoRA"))
    return config.update(
        workspace_dir=str(workspace),
        cache_dir=str(workspace / "cache"),
        output_model_destination=str(workspace / "lora.safetensors"),
        sample_after_unit="NEVER",
        backup_before_save=False,
        tensorboard=False,
        epochs=max(1, -(-steps // 6)),
    )


def with_everything(config: TrainConfig) -> TrainConfig:
    """EMA and TensorBoard on; metrics always are."""
    return config.update(ema="CPU", ema_update_step_interval=1, tensorboard=True)


class Ours:
    """A real run, as many steps at a time as are asked for."""

    def __init__(self, config: TrainConfig) -> None:
        self.trainer = GenericTrainer(config, TrainCallbacks(on_event=lambda _event: None))
        self.trainer.start()

    def __call__(self, steps: int) -> None:
        self.trainer.max_step = self.trainer.step + steps
        self.trainer.train()


def by_hand(loop: BareLoop | DiffusersScript) -> Block:
    """A loop's step, repeated."""

    def block(steps: int) -> None:
        for _ in range(steps):
            loop.step()

    return block


def alternate(blocks: dict[str, Block], rounds: int, steps: int) -> dict[str, list[float]]:
    """Time blocks in turn, each round in another order; seconds of a step, by name.

    The first round warms up and does not count.
    """
    names = list(blocks)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.process_time()
            blocks[name](steps)
            if number:
                seconds[name].append((time.process_time() - began) / steps)
    return seconds


def report(title: str, seconds: dict[str, list[float]], bars: list[tuple[str, str, float]]) -> None:
    """Print each loop's median, and for each bar (ours, theirs, most) the median ratio."""
    print(f"\n{title}")
    for name, values in seconds.items():
        print(f"  {name:34} {statistics.median(values) * 1e3:9.2f} ms/step")
    for ours, theirs, most in bars:
        ratios = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
        spread = f"least {min(ratios):.3f}, most {max(ratios):.3f}, {len(ratios)} rounds"
        middle = statistics.median(ratios)
        verdict = "held" if middle <= most else "MISSED"
        print(f"  {ours} / {theirs}: {middle:.3f} ({spread}; bar {most:.2f} {verdict})")


def embedded(folder: Path, rounds: int, steps: int) -> None:
    """The quickstart's model and settings."""
    config = emoji_config(folder / "plain", steps * (rounds + 2))
    ours = Ours(config)
    everything = Ours(with_everything(config.update(workspace_dir=str(folder / "all"))))
    bare = by_hand(BareLoop(config, next(ours.trainer._batches)))
    blocks = {"bare loop": bare, "ours": ours, "ours, EMA and TensorBoard": everything}
    bars = [("ours", "bare loop", 1.03), ("ours, EMA and TensorBoard", "bare loop", 1.06)]
    report("Embedded model", alternate(blocks, rounds, steps), bars)


def quarter(folder: Path, rounds: int, steps: int) -> None:
    """The 60 million parameters, in float32 and with a bfloat16 base."""
    parameters = save_model(folder / "model")
    files = save_pictures(folder / "pictures")
    config = config_of(folder, "plain")
    small = {"unet.weight_dtype": "BFLOAT_16", "train_dtype": "BFLOAT_16"}
    ours = Ours(config)
    blocks = {
        "bare loop": by_hand(BareLoop(config, next(ours.trainer._batches))),
        "ours": ours,
        "ours, EMA and TensorBoard": Ours(with_everything(config_of(folder, "all"))),
        "diffusers' script": by_hand(DiffusersScript(config, files)),
        "ours, bfloat16 base": Ours(config_of(folder, "small").update(**small)),
    }
    bars = [
        ("ours", "bare loop", 1.03),
        ("ours, EMA and TensorBoard", "bare loop", 1.06),
        ("ours", "diffusers' script", 0.90),
        ("ours, bfloat16 base", "diffusers' script", 0.65),
    ]
    title = (
        f"SD-shaped, UNet of {parameters / 1e6:.0f} million parameters, 256 px, batch 2, rank 16"
    )
    report(title, alternate(blocks, rounds, steps), bars)


def peak(name: str, folder: Path, steps: int) -> None:
    """Print the most memory that one loop's steps took, in MB; called in a process of its own."""
    config = config_of(folder, name)
    ours = Ours(config)
    block: Block = ours
    if name == "bare":
        example = next(ours.trainer._batches)
        ours.trainer.close()
        block = by_hand(BareLoop(config, example))
    block(2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    block(steps)
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def memory(folder: Path, steps: int) -> None:
    """Compare what both loops take on the 60 million parameters."""
    save_model(folder / "model")
    save_pictures(folder / "pictures")
    took = {}
    for name in ("bare", "ours", "bare", "ours"):
        command = [sys.executable, __file__, "--peak-of", name, "--folder", str(folder)]
        done = subprocess.run(
            [*command, "--steps", str(steps)], capture_output=True, text=True, check=True
        )
        took[name] = min(float(done.stdout.split()[-1]), took.get(name, float("inf")))
    ratio = took["ours"] / took["bare"]
    verdict = "held" if ratio <= 1.05 else "MISSED"
    print(f"\nMemory of the process, SD-shaped: bare loop {took['bare']:.0f} MB, ours ", end="")
    print(f"{took['ours']:.0f} MB, ratio {ratio:.3f} (bar 1.05 {verdict})")


def main(
    rounds: int = 8,
    steps: int = 0,
    only: str = "",
    peak_of: str = typer.Option("", hidden=True),
    folder: Path | None = typer.Option(None, hidden=True),  # noqa: B008 - typer's way
) -> None:
    """Print step times and memory; `--only` embedded, quarter or memory; `--steps` of a block."""
    torch.set_num_threads(1)
    if peak_of and folder:
        peak(peak_of, folder, steps)
        return
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        if only in ("", "embedded"):
            embedded(Path(name), rounds, steps or 24)
        if only in ("", "quarter"):
            quarter(Path(name) / "quarter", rounds, steps or 2)
        if only in ("", "memory"):
            memory(Path(name) / "memory", steps or 4)


if __name__ == "__main__":
    typer.run(main)
