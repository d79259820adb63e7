"""What drawing with the service costs beside diffusers alone; alternately, in one process.

    python benchmarks/inference_cost.py [rounds]

On the embedded model and on one of 60 million weights: seconds of a picture by `generate` and by
the plain pipeline; milliseconds to change the strengths of two LoRAs; and a grid of 5 by 5 in
pictures.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch

import ot_notebook as ot
from modules.adapters.files import save_tensors, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.config import ModelFormat, ModelType
from modules.families import family_for
from ot_notebook.services.inference_service import InferenceService

SETTINGS = {"seed": 1, "steps": 20, "cfg_scale": 3.0, "scheduler": "DDIM"}


def sixty_million(folder: Path) -> Path:
    """Stable Diffusion's own architecture at 60 million weights, drawing 128 px; random weights."""
    parts = family_for(ModelType.STABLE_DIFFUSION_15).tiny()
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(128, 192, 320, 320),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=parts.pipeline.text_encoder.config.hidden_size,
    )
    count = sum(weight.numel() for weight in unet.parameters())
    print(f"the larger model's UNet has {count / 1e6:.0f} M weights")
    parts.pipeline.register_modules(unet=unet)
    parts.pipeline.save_pretrained(folder)
    return folder


def lora(service: InferenceService, path: Path, seed: int) -> Path:
    family, parts = service._held.model._owner
    network = parts.denoiser
    copied = type(network).from_config(network.config)
    layers = matching_layers(copied, "attentions", False)
    add_lora(copied, layers, rank=8, alpha=8, dropout=0, seed=seed)
    found = list(lora_layers({"unet": copied}))
    save_tensors(to_format(found, family, ModelFormat.KOHYA_LORA), path, torch.float32)
    return path


def measure(name: str, source: Path, rounds: int, folder: Path) -> None:
    service = InferenceService(folder / name).load(source)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    usual = service.defaults

    def plain() -> None:
        pipeline(
            "a red apple",
            width=usual["width"],
            height=usual["height"],
            num_inference_steps=SETTINGS["steps"],
            guidance_scale=SETTINGS["cfg_scale"],
            generator=torch.Generator().manual_seed(1),
        )

    def ours() -> None:
        service.generate("a red apple", **SETTINGS)

    plain(), ours()
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    cpu: dict[str, list[float]] = {"plain": [], "ours": []}
    for number in range(rounds):
        pair = [("plain", plain), ("ours", ours)]
        for which, draw in pair if number % 2 else reversed(pair):
            begun, used = time.perf_counter(), time.process_time()
            draw()
            times[which].append(time.perf_counter() - begun)
            cpu[which].append(time.process_time() - used)
    ratio = median(a / b for a, b in zip(times["ours"], times["plain"], strict=True))
    alone, drawn = median(times["plain"]), median(times["ours"])
    print(f"{name}: plain {alone:.3f} s, generate {drawn:.3f} s, ratio {ratio:.3f}")
    worked = median(a / b for a, b in zip(cpu["ours"], cpu["plain"], strict=True))
    print(f"{name}: CPU time of the same, which other programs disturb less: ratio {worked:.3f}")

    files = [lora(service, folder / f"{name}-{seed}.safetensors", seed) for seed in (0, 1)]
    service.set_loras([(file, 1.0) for file in files])
    switches = []
    for number in range(20):
        begun = time.perf_counter()
        service.set_loras([(file, number / 20) for file in files])
        switches.append(time.perf_counter() - begun)
    print(f"{name}: strengths of two LoRAs changed in {1000 * max(switches):.1f} ms at most")
    service.set_loras([])

    begun = time.perf_counter()
    service.grid("a red apple", x={"seed": range(5)}, y={"cfg_scale": [1.5, 2, 3, 4, 5]}, steps=20)
    grid = time.perf_counter() - begun
    single = []
    for _ in range(5):
        begun = time.perf_counter()
        ours()
        single.append(time.perf_counter() - begun)
    print(f"{name}: a grid of 5 by 5 takes {grid / median(single):.1f} single pictures")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure("embedded", ot.assets.model(), rounds, folder)
        measure("60M", sixty_million(folder / "model"), rounds, folder)


if __name__ == "__main__":
    main()
