"""What a step costs besides its forward pass, backward pass and optimizer.

The run is a real one on the embedded model: batches, noise, reporting, commands, what is due,
TensorBoard. Only its network is replaced, by one number; a loop by hand on that number is taken
off. The clock says by how much a step is longer; the CPU time is that of all threads, the one that
makes batches beside the network too. `python benchmarks/fixed_cost.py`; `--profile` says where the
time goes.
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import tempfile
import time
from pathlib import Path

import torch
import typer
from step_time import emoji_config, machine
from torch import Tensor, nn

from modules import GenericTrainer, TrainCallbacks


def nearly_nothing(trainer: GenericTrainer) -> None:
    """Let the run train one number instead of a network."""
    number = nn.Parameter(torch.zeros(()))

    def loss(draw: object) -> Tensor:
        return (number + 1).expand(len(draw.latents)) * draw.weight  # type: ignore[attr-defined]

    trainer._forward.loss = loss
    optimizer = torch.optim.AdamW([{"params": [number], "name": "unet"}], lr=1e-3, fused=True)
    trainer._update.optimizer = optimizer
    trainer._update._parameters[:] = [number]


def by_hand(steps: int, images: int) -> None:
    number = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([number], lr=1e-3, fused=True)
    weight = torch.ones(images)
    for _ in range(steps):
        ((number + 1).expand(images) * weight).mean().backward()
        nn.utils.clip_grad_norm_([number], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main(rounds: int = 10, steps: int = 300, profile: bool = False) -> None:
    """Print the fixed cost of a step in milliseconds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = emoji_config(Path(folder), steps * (rounds + 2)).update(tensorboard=True)
        trainer = GenericTrainer(config, TrainCallbacks(on_event=lambda _event: None))
        trainer.start()
        nearly_nothing(trainer)

        def ours() -> None:
            trainer.max_step = trainer.step + steps
            trainer.train()

        ours()  # warms up
        if profile:
            with cProfile.Profile() as watched:
                ours()
            pstats.Stats(watched).sort_stats("cumulative").print_stats(45)
            return
        costs: dict[str, list[float]] = {"clock": [], "CPU, all threads": []}
        for _ in range(rounds):
            began = time.perf_counter(), time.process_time()
            ours()
            middle = time.perf_counter(), time.process_time()
            by_hand(steps, config.batch_size)
            ended = time.perf_counter(), time.process_time()
            for which, a, b, c in zip(costs, began, middle, ended, strict=True):
                costs[which].append((2 * b - a - c) / steps * 1e3)
        trainer.close()
    print(machine())
    for which, found in costs.items():
        middle_one, least = statistics.median(found), min(found)
        print(f"fixed cost, {which}: {middle_one:.3f} ms/step (least {least:.3f}, bar 0.5)")


if __name__ == "__main__":
    typer.run(main)
