"""A training stage that survives being killed: whenever it was stopped, the same weights come out.

Each step draws its random numbers from a generator that is seeded with the step's number, so that a
checkpoint needs no state of a generator, and a step repeated after a kill repeats itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.atomic import atomic_file

REPORT_EVERY = 100  # steps
WEIGHT_DECAY = 0.01
CLIP = 1.0  # of the gradient's norm


class Stage:
    """Trains networks by AdamW with warm-up, cosine decay to 3% and an average of the weights."""

    def __init__(
        self,
        name: str,
        networks: dict[str, nn.Module],
        learning_rates: dict[str, float],
        *,
        steps: int,
        warmup: int,
        ema_decay: float,
        folder: Path,
        seed: int,
    ) -> None:
        """Take up the stage where its last checkpoint left it, or at its start.

        Args:
            name: of the stage; its checkpoint is called so.
            networks: what trains, on the device where it shall train.
            learning_rates: peak for each network.
            steps: length of the stage.
            warmup: steps over which the rates rise.
            ema_decay: of the averaged weights, at full length.
            folder: where the checkpoint lies.
            seed: of every random draw.
        """
        self.networks = nn.ModuleDict(networks)
        self.step, self.steps, self.warmup, self.seed = 0, steps, warmup, seed
        self._name, self._decay = name, ema_decay
        self._checkpoint = folder / f"{name}.checkpoint"
        self._optimizer = torch.optim.AdamW(
            [
                {"params": list(network.parameters()), "peak": learning_rates[key]}
                for key, network in networks.items()
            ],
            lr=0.0,
            betas=(0.9, 0.99),
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        self._parameters = list(self.networks.parameters())
        self._average = [each.detach().clone() for each in self._parameters]
        self._device = self._parameters[0].device
        if self._checkpoint.exists():
            self._resume()

    def train(self, loss_of: Callable[[torch.Generator], Tensor], save_every: int) -> None:
        """Run to the end; the networks then hold the averaged weights, in eval mode.

        Args:
            loss_of: one batch's loss, all of whose randomness comes from the generator given.
            save_every: steps between checkpoints.
        """
        self.networks.train()
        began, first, losses = time.monotonic(), self.step, list[Tensor]()
        while self.step < self.steps:
            losses.append(self._train_step(loss_of))
            if self.step % save_every == 0 or self.step == self.steps:
                self._save()
            if self.step % REPORT_EVERY == 0 or self.step == self.steps:
                rate = (self.step - first) / (time.monotonic() - began)
                print(
                    f"{self._name}: step {self.step} of {self.steps}, "
                    f"loss {torch.stack(losses).mean():.4f}, {rate:.2f} steps/s",
                    flush=True,
                )
                losses.clear()
        with torch.no_grad():
            for parameter, average in zip(self._parameters, self._average, strict=True):
                parameter.copy_(average)
        self.networks.eval()

    def _train_step(self, loss_of: Callable[[torch.Generator], Tensor]) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(self.seed * 1_000_003 + self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * scale_at(self.step, self.steps, self.warmup)
        loss = loss_of(generator)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self._decay, self.step / (self.step + 20))  # a young average forgets its start
        torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters], 1 - decay)
        return loss.detach()  # reading its value would make a GPU wait

    def _save(self) -> None:
        with atomic_file(self._checkpoint) as path:
            torch.save(
                {
                    "step": self.step,
                    "networks": self.networks.state_dict(),
                    "average": self._average,
                    "optimizer": self._optimizer.state_dict(),
                },
                path,
            )

    def _resume(self) -> None:
        saved = torch.load(self._checkpoint, map_location=self._device, weights_only=True)
        self.step = saved["step"]
        self.networks.load_state_dict(saved["networks"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._average = saved["average"]
        print(f"{self._name}: goes on at step {self.step} of {self.steps}", flush=True)


def scale_at(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate: linear warm-up times a cosine that ends at 3%."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warmup) * (0.97 * cosine + 0.03)
