"""What drawing with the service costs beside diffusers alone; alternately, in one process.

    python benchmarks/inference_cost.py [rounds]

On the embedded model and on a Stable Diffusion of 60 million weights: seconds of a picture by
`generate` and by the plain pipeline; milliseconds to change the strengths of two LoRAs; a grid of
5 by 5 in pictures, by the clock and by CPU time, and how many texts it encodes; and whether
training gives the same weights with and without drawing in between.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import quarter_model
import torch
from safetensors.torch import load_file

import ot_notebook as ot
from modules import TrainConfig
from modules.adapters.files import save_tensors, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.config import ModelFormat
from ot_notebook.preset_files import find
from ot_notebook.services.inference_service import InferenceService
from ot_notebook.services.trainer_service import TrainerService

SETTINGS = {"seed": 1, "steps": 20, "cfg_scale": 3.0, "scheduler": "DDIM"}


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

    measure_grid(name, service, ours)


def measure_grid(name: str, service: InferenceService, single: Callable[[], None]) -> None:
    """A grid beside as many single pictures, alternately in three rounds."""
    texts = []
    encoder = service._held.model._owner[1].pipeline.text_encoder
    counted = encoder.register_forward_hook(lambda *_: texts.append(1))
    values = {"x": {"seed": range(5)}, "y": {"cfg_scale": [1.5, 2, 3, 4, 5]}}

    def grid() -> None:
        service.grid("a red apple", **values, steps=SETTINGS["steps"], scheduler="DDIM")

    grid()
    print(f"{name}: a grid of 5 by 5 encodes {len(texts)} texts after those that are known")
    counted.remove()
    clock, cpu = [], []
    for _ in range(3):
        one, one_cpu = timed(lambda: [single() for _ in range(5)])
        whole, whole_cpu = timed(grid)
        two, two_cpu = timed(lambda: [single() for _ in range(5)])
        clock.append(10 * whole / (one + two))
        cpu.append(10 * whole_cpu / (one_cpu + two_cpu))
    print(f"{name}: a grid of 5 by 5 takes {median(clock):.2f} single pictures by the clock")
    print(f"{name}: and {median(cpu):.2f} by CPU time, which other programs disturb less")


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of CPU time."""
    begun, used = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - begun, time.process_time() - used


def alike(name: str, config: TrainConfig, folder: Path) -> None:
    """Train twice, the second time with pictures of the live model in between."""
    weights = []
    for turn in ("alone", "drawn"):
        target = folder / f"{name}-{turn}.safetensors"
        service = TrainerService()
        run = service.start(
            config.update(
                workspace_dir=str(folder / f"{name}-{turn}"),
                cache_dir=str(folder / f"{name}-cache"),
                output_model_destination=str(target),
            )
        )
        if turn == "drawn":
            while service.state != "training":
                time.sleep(0.01)
            drawing = InferenceService(folder / "live", service).load("live")
            pictures = [drawing.generate("a red apple", steps=2, seed=seed) for seed in (1, 2)]
            print(f"{name}: drew {len(pictures)} pictures of the live model between its steps")
        run.wait()
        service.close()
        weights.append(load_file(target))
    same = all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    print(f"{name}: training is {'bit-identical' if same else 'NOT the same'} with and without")


def small_run() -> TrainConfig:
    """The quickstart, shorter, with dropout at work."""
    config, _ = TrainConfig.load(find("emoji LoRA"))
    changes = {"epochs": 4, "dropout_probability": 0.1, "tensorboard": False, "samples": []}
    return config.update(sample_after_unit="NEVER", **changes)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure("embedded", ot.assets.model(), rounds, folder)
        alike("embedded", small_run(), folder)
        count = quarter_model.save_model(folder / "model")
        print(f"the larger model's UNet has {count / 1e6:.0f} M weights")
        measure("60M", folder / "model", rounds, folder)
        quarter_model.save_pictures(folder / "pictures", count=6, size=128)
        config = quarter_model.config_of(folder, "60M").update(resolution="128", epochs=3)
        alike("60M", config, folder)


if __name__ == "__main__":
    main()
