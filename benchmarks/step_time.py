"""Our trainer's step against a bare loop, alternately in one run, on the embedded model.

The bare loop is what one would write by hand: the same pipeline, peft layers, forward, backward,
clipping and fused AdamW on cached tensors, with no logging. `python benchmarks/step_time.py`.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import typer

from modules import GenericTrainer, TrainCallbacks, TrainConfig
from modules.adapters.lora import add_lora, matching_layers
from modules.data import Batch
from modules.families import family_for
from ot_notebook.preset_files import find


def emoji_config(workspace: Path, steps: int) -> TrainConfig:
    config, _ = TrainConfig.load(find("emoji LoRA"))
    return config.update(
        workspace_dir=str(workspace),
        cache_dir=str(workspace / "cache"),
        output_model_destination=str(workspace / "lora.safetensors"),
        sample_after_unit="NEVER",
        backup_before_save=False,
        epochs=max(1, -(-steps // 6)),
    )


class BareLoop:
    """The hand-written loop."""

    def __init__(self, config: TrainConfig, example: Batch) -> None:
        parts = family_for(config.model_type).load(config)
        self.unet, scheduler = parts.pipeline.unet, parts.scheduler
        for network in parts.modules().values():
            network.requires_grad_(False)
        layers = matching_layers(self.unet, config.layer_filter, config.layer_filter_regex)
        rank, alpha = config.lora_rank, config.lora_alpha
        self.parameters = add_lora(self.unet, layers, rank=rank, alpha=alpha, dropout=0, seed=0)
        self.unet.train()
        if config.unet.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=1e-3, fused=True)
        self.alphas = scheduler.alphas_cumprod
        self.batch = len(example.latents)
        self.latents = torch.randn(96, *example.latents.shape[1:])
        self.text = torch.randn(96, *example.condition["text"].shape[1:])

    def step(self) -> None:
        chosen = torch.randint(0, 96, (self.batch,))
        latents, text = self.latents[chosen], self.text[chosen]
        noise, timestep = torch.randn_like(latents), torch.randint(0, 1000, (self.batch,))
        alpha = self.alphas[timestep].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        prediction = self.unet(noisy, timestep, encoder_hidden_states=text).sample
        loss = torch.nn.functional.mse_loss(prediction, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def alternate(ours: Callable[[], None], bare: Callable[[], None], rounds: int, steps: int) -> None:
    """Time blocks of both in turn and print the median ratio."""
    ratios, seconds = [], {"ours": [], "bare": []}
    for number in range(rounds + 1):
        order = [("ours", ours), ("bare", bare)]
        took = {}
        for name, block in order if number % 2 else reversed(order):
            began = time.process_time()
            block()
            took[name] = (time.process_time() - began) / steps
        if number:  # the first round warms up
            ratios.append(took["ours"] / took["bare"])
            for name, value in took.items():
                seconds[name].append(value)
    print(f"machine  {platform.machine()}, torch {torch.__version__}, 1 thread")
    for name, values in seconds.items():
        print(f"{name:8} {statistics.median(values) * 1e3:.2f} ms/step (CPU time)")
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"ratio    {middle:.3f} (least {low:.3f}, most {high:.3f}, {rounds} rounds)")


def main(rounds: int = 8, steps: int = 24) -> None:
    """Print our step time, the bare loop's and their ratio."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = emoji_config(Path(folder), steps * (rounds + 1))
        trainer = GenericTrainer(config, TrainCallbacks(on_event=lambda _event: None))
        trainer.start()
        bare = BareLoop(config, next(trainer._batches))

        def ours() -> None:
            trainer.max_step = trainer.step + steps
            trainer.train()

        def by_hand() -> None:
            for _ in range(steps):
                bare.step()

        alternate(ours, by_hand, rounds, steps)
        trainer.close()


if __name__ == "__main__":
    typer.run(main)
