"""Memory that loading a model takes beyond its weights, on random weights of 2 GB in 16 bits.

`python benchmarks/load_memory.py`: a Stable Diffusion 1.5 of full size, from a diffusers folder and
from a single file, each in a process of its own (Linux). Pages of the file that the kernel can drop
at any time are not counted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import typer

from modules import TrainConfig
from modules.config import ModelFormat, ModelType
from modules.families import Parts, family_for
from modules.families.saving import save_model

GIB = 2**30
TYPES = (("FLOAT_16", "FLOAT_16"), ("FLOAT_32", "FLOAT_16"), ("FLOAT_16", "NFLOAT_4"))
"""Of the VAE and the UNet."""
EXTRA_GIB = 1.0
"""Most that loading may take beside the weights."""


def main(source: Path | None = None, vae: str = "FLOAT_16", unet: str = "FLOAT_16") -> None:
    """Measure; with a source, in this process."""
    if source:
        print(measured(source, vae, unet))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write(folder)
        size = sum(file.stat().st_size for file in folder.glob("*/*.safetensors")) / GIB
        print(f"weights: {size:.2f} GiB")
        over = False
        for each in (folder, folder.with_suffix(".safetensors")):
            for part, main_part in TYPES:
                if each.is_file() and main_part != "FLOAT_16":
                    continue  # a single file is read whole
                command = [sys.executable, __file__, "--source", str(each)]
                command += ["--vae", part, "--unet", main_part]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                peak, seconds = (float(number) for number in out.split()[-2:])
                name = "folder" if each.is_dir() else "single file"
                types = f"VAE in {part}, UNet in {main_part}"
                print(f"{name}, {types}: peak {peak:.2f} GiB in {seconds:.0f} s")
                over |= peak > size + EXTRA_GIB
    if over:
        raise typer.Exit(1)


def write(folder: Path) -> None:
    """A Stable Diffusion 1.5 of random weights in 16 bits: a folder, and a single file."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    family = family_for(ModelType.STABLE_DIFFUSION_15)
    pipeline: Any = family.tiny().pipeline
    torch.set_default_dtype(torch.float16)
    words = len(pipeline.tokenizer)
    pipeline.register_modules(
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=words,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        ),
    )
    torch.set_default_dtype(torch.float32)
    parts = Parts(pipeline, "unet")
    save_model(family, parts, folder, ModelFormat.DIFFUSERS, torch.float16)
    file = folder.with_suffix(".safetensors")
    save_model(family, parts, file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float16)


def measured(source: Path, vae: str, unet: str) -> str:
    """Peak of this process's own memory while it loads, in GiB over that before, and seconds."""
    import diffusers  # noqa: F401 - what libraries take is not what loading takes
    import transformers  # noqa: F401

    config = TrainConfig().update(
        model_type="STABLE_DIFFUSION_15",
        base_model_name=str(source),
        offline_mode=True,
        training_method="LORA",
        train_dtype="FLOAT_32",  # what small weights unpack to
        **{"unet.weight_dtype": unet, "text_encoder.weight_dtype": "FLOAT_16"},
        **{"vae.weight_dtype": vae},
    )
    family = family_for(ModelType.STABLE_DIFFUSION_15)
    peak, done, before = 0.0, threading.Event(), own()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, own())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    parts = family.load(config)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    del parts
    return f"{peak - before} {seconds}"


def own() -> float:
    """Memory of this process that is no page of a file, in GiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / GIB
    raise OSError("/proc/self/status names no RssAnon; this needs Linux")


if __name__ == "__main__":
    typer.run(main)
