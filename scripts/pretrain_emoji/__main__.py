"""Makes the miniature text-to-image model that ships with the package, or one like it.

    mkdir icons && cd icons && npm install <the packages that pictures.py names> && cd ..
    python -m scripts.pretrain_emoji train workspace/emoji_model --packages icons/node_modules
    python -m scripts.pretrain_emoji judge workspace/emoji_model --packages icons/node_modules

`train` may be stopped at any moment, even killed: the same command goes on where it was, and the
model is the same as if nothing had happened. The defaults take about an hour and a half of two free
CPU cores; a GPU gets larger batches, and sees more pictures in about as many steps.
`--images FOLDER` takes pictures of one's own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve a shared machine

import numpy as np
import torch
import typer
from typer import Argument, Option

from modules.atomic import atomic_file, atomic_folder
from scripts.pretrain_emoji import denoiser, vae
from scripts.pretrain_emoji.captions import train_tokenizer
from scripts.pretrain_emoji.colors import recolored
from scripts.pretrain_emoji.evaluate import draw, score, thumbnails
from scripts.pretrain_emoji.pictures import (
    Picture,
    on_background,
    read_folder,
    read_packages,
    sheet,
)

SIZE = 64
CONCRETE = ("Animals & Nature", "Food & Drink", "Activities")
THINGS = ("Travel & Places", "Objects")
OTHER_STYLES = {"fluent-emoji": 0.5, "noto": 0.7, "fluent-emoji-high-contrast": 0.7}
"""What the autoencoder sees besides the flat style, and how often against it."""
MAIN_STYLE, MAIN_WEIGHT = "fluent-emoji-flat", 3.0

Packages = Annotated[Path | None, Option(help="node_modules folder with the icon packages.")]
Images = Annotated[Path | None, Option(help="Folder of pictures to use instead of packages.")]
Count = Annotated[int, Option(help="How many emoji the model learns, at most.")]
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def train(
    out: Annotated[Path, Argument(help="Folder for the model and for what a resumed run needs.")],
    packages: Packages = None,
    images: Images = None,
    emoji: Count = 400,
    vae_steps: Annotated[int, Option(help="Steps of the autoencoder.")] = 1600,
    text_steps: Annotated[int, Option(help="Steps of the text encoder on its own.")] = 400,
    pictures: Annotated[
        int | None,
        Option(help="Pictures that the denoiser sees: 600,000 on a CPU, 3 million else."),
    ] = None,
    batch_size: Annotated[int | None, Option(help="48 on a CPU, 256 on a GPU.")] = None,
    learning_rate: Annotated[float, Option(help="The denoiser's peak.")] = 8e-4,
    colors: Annotated[bool, Option(help="Teach colour words and backgrounds too.")] = False,
    seed: Annotated[int, Option(help="Of everything random.")] = 0,
    save_every: Annotated[int, Option(help="Steps between checkpoints.")] = 500,
) -> None:
    """Train a model and write it to OUT/model, in the layout of diffusers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    batch_size = batch_size or (256 if on_gpu else 48)
    pictures = pictures or (3_000_000 if on_gpu else 600_000)
    _remember(
        out,
        {
            "pictures from": str(images or packages),
            "emoji": emoji,
            "vae steps": vae_steps,
            "text steps": text_steps,
            "pictures": pictures,
            "batch size": batch_size,
            "learning rate": learning_rate,
            "colors": colors,
            "seed": seed,
        },
    )
    taught, sources = _pictures(packages, images, emoji)
    common: dict[str, Any] = {"folder": out, "seed": seed, "save_every": save_every}

    if not (out / "tokenizer").exists():
        with atomic_folder(out / "tokenizer") as temporary:
            train_tokenizer([picture for _, each in sources for picture in each], temporary)
    tokenizer = _tokenizer(out / "tokenizer")
    autoencoder = vae.train(
        sources, steps=vae_steps, batch_size=batch_size, device=device, **common
    )
    sharpness = vae.psnr(autoencoder, vae.as_input([p.pixels for p in taught], device))
    print(f"vae: restores the pictures with {sharpness:.1f} dB PSNR")

    learnt = [*taught, *recolored(taught)] if colors else taught
    data = denoiser.examples(learnt, autoencoder, tokenizer, device, seed)
    torch.manual_seed(seed)
    text_encoder = denoiser.build_text_encoder(tokenizer).to(device)
    unet = denoiser.build_unet().to(device)
    denoiser.train_text(data, text_encoder, steps=text_steps, **common)
    denoiser.train(
        data,
        text_encoder,
        unet,
        pictures=pictures,
        batch_size=batch_size,
        learning_rate=learning_rate,
        **common,
    )
    names = {picture.id: picture.name for picture in taught}
    _save(out / "model", autoencoder, text_encoder, unet, tokenizer, out / "tokenizer", names)
    print(f"The model is in {out / 'model'}.")


@app.command()
def judge(
    out: Annotated[Path, Argument(help="The OUT of `train`, or a folder that holds a model.")],
    packages: Packages = None,
    images: Images = None,
    samples: Annotated[int, Option(help="Emoji to ask for, one sample each.")] = 128,
    picture: Annotated[Path | None, Option(help="Where to save a sheet of the samples.")] = None,
) -> None:
    """Draw emoji and tell how many came nearest to the right one, of all that it was taught."""
    from diffusers import StableDiffusionPipeline

    folder = out / "model" if (out / "model").is_dir() else out
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    known = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    by_id = {each.id: each for each in _source(packages, images)}
    references = np.stack([on_background(by_id[id_].pixels) for id_ in known])
    chosen = sorted(random.Random(0).sample(range(len(known)), min(samples, len(known))))
    names = list(known.values())
    drawn = draw(pipeline, [f"a {names[index]}" for index in chosen])
    print(score(thumbnails(drawn), chosen, thumbnails(references)))
    if picture:
        sheet(drawn, columns=20).save(picture, optimize=True)


def _source(packages: Path | None, images: Path | None) -> list[Picture]:
    if images:
        return read_folder(images, SIZE)
    if packages:
        return read_packages(packages, MAIN_STYLE, SIZE)
    raise typer.BadParameter("Give --packages or --images: where the pictures come from.")


def _pictures(
    packages: Path | None, images: Path | None, count: int
) -> tuple[list[Picture], list[tuple[float, list[Picture]]]]:
    """The emoji that the model learns, and all that the autoencoder looks at, with weights."""
    main = _source(packages, images)
    if images or packages is None:
        return main[:count], [(1.0, main)]
    others = [
        (weight, read_packages(packages, style, SIZE)) for style, weight in OTHER_STYLES.items()
    ]
    concrete = [picture for picture in main if picture.group in CONCRETE]
    things = [p for p in main if p.group in THINGS and " " not in p.name]
    random.Random(0).shuffle(things)
    return (concrete + things)[:count], [(MAIN_WEIGHT, main), *others]


def _remember(out: Path, settings: dict[str, Any]) -> None:
    """Note the run's settings in its folder.

    Raises:
        typer.BadParameter: if the folder holds a run with other settings, which cannot go on.
    """
    path = out / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{key} was {before.get(key)}"
            for key, value in settings.items()
            if before.get(key) != value
        ]
        if changed:
            raise typer.BadParameter(
                f"{out} holds a run with other settings ({', '.join(changed)}). "
                "Repeat those to go on with it, or choose another folder."
            )
        return
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _save(
    folder: Path,
    autoencoder: Any,
    text_encoder: Any,
    unet: Any,
    tokenizer: Any,
    tokenizer_files: Path,
    names: dict[str, str],
) -> None:
    """Write the pipeline in half precision, readable for older tools too."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=denoiser.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(folder, ignore_errors=True)  # a model of an earlier call with the same settings
    with atomic_folder(folder) as temporary:
        pipeline.to(dtype=torch.float16).save_pretrained(temporary)
        for file in tokenizer_files.iterdir():
            shutil.copy(file, temporary / "tokenizer")
        _widen_compatibility(temporary / "text_encoder")
        (temporary / "classes.json").write_text(
            json.dumps(names, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _widen_compatibility(folder: Path) -> None:
    """Give the text encoder the key names of older transformers, and single precision on loading.

    New releases save without the prefix `text_model.`, which only they can read, and load in the
    precision of the config, in which a pipeline's other parts do not.
    """
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    prefixed = {f"text_model.{key.removeprefix('text_model.')}": weights[key] for key in weights}
    save_file(prefixed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
