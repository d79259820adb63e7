"""`convert|merge|extract|resize`: the files of adapters and models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modules.config import ModelFormat, ModelType

if TYPE_CHECKING:
    import torch

FAILED = 1
"""Exit code for files that cannot be what is asked of them."""


class NumberType(str, Enum):
    """Type of the written numbers."""

    FLOAT_32 = "FLOAT_32"
    FLOAT_16 = "FLOAT_16"
    BFLOAT_16 = "BFLOAT_16"


Source = Annotated[Path, typer.Argument(help="File, or diffusers folder.")]
Target = Annotated[Path, typer.Argument(help="What to write; replaced if it exists.")]
Kind = Annotated[
    ModelType | None, typer.Option("--model-type", help="Where the files do not tell it.")
]
Type = Annotated[NumberType | None, typer.Option("--dtype", help="Type of the written numbers.")]
Device = Annotated[str, typer.Option(help="Where to compute, such as cuda.")]


CONSOLE, ERRORS = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)


def add_weight_commands(app: typer.Typer) -> None:
    """Give a command line the commands for files of weights."""
    for command in (convert, merge, extract, resize):
        app.command()(command)


@contextmanager
def _shown(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, and what goes wrong as a line instead of a traceback."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(TextColumn(name), *columns, console=CONSOLE) as progress:
            bar = progress.add_task(name)
            yield lambda done, total: progress.update(bar, completed=done, total=total)
    except (ValueError, OSError) as error:
        ERRORS.print(f"[red]error[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(FAILED) from None


def convert(
    source: Source,
    target: Target,
    model_format: Annotated[ModelFormat, typer.Option("--format", help="Of the target.")],
    model_type: Kind = None,
    dtype: Type = None,
    skip: Annotated[
        bool, typer.Option("--skip", help="Leave out keys that belong to no layer.")
    ] = False,
) -> None:
    """Write an adapter, or a whole model, in another format."""
    from modules.adapters.converting import convert as run

    with _shown("converting") as progress:
        left_out = run(
            source,
            target,
            model_format,
            model_type=model_type,
            dtype=_torch(dtype) if dtype else None,
            skip=skip,
            progress=progress,
        )
    for key in left_out:
        CONSOLE.print(f"Left out: {escape(key)}", highlight=False)


def merge(
    model: Annotated[Path, typer.Argument(help="Diffusers folder or .safetensors file.")],
    target: Target,
    lora: Annotated[list[str], typer.Option("--lora", help="FILE or FILE=STRENGTH. Repeatable.")],
    model_type: Kind = None,
) -> None:
    """Write a model with LoRAs in its weights."""
    from modules.adapters.merging import merge as run

    with _shown("merging") as progress:
        adapters = dict(_strength(text) for text in lora)
        run(model, target, adapters, model_type=model_type, progress=progress)


def extract(
    base: Annotated[Path, typer.Argument(help="The model that training began with.")],
    tuned: Annotated[Path, typer.Argument(help="The trained model.")],
    target: Target,
    rank: Annotated[int, typer.Option(help="Of the LoRA.")] = 16,
    model_format: Annotated[
        ModelFormat, typer.Option("--format", help="Of the LoRA.")
    ] = ModelFormat.DIFFUSERS_LORA,
    clamp_quantile: Annotated[
        float | None, typer.Option(help="Cut off outliers beyond it, such as 0.99.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Nearly as good, much faster.")] = False,
    model_type: Kind = None,
    dtype: Annotated[
        NumberType, typer.Option("--dtype", help="Type of the written numbers.")
    ] = NumberType.FLOAT_16,
    device: Device = "cpu",
) -> None:
    """Write what one model learned over another as a LoRA."""
    from modules.adapters.low_rank import extract as run

    with _shown("comparing") as progress:
        run(
            base,
            tuned,
            target,
            rank=rank,
            model_format=model_format,
            clamp_quantile=clamp_quantile,
            exact=not fast,
            model_type=model_type,
            dtype=_torch(dtype),
            device=device,
            progress=progress,
        )


def resize(
    source: Source,
    target: Target,
    rank: Annotated[int | None, typer.Option(help="The most of a layer.")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Keep singular values above the largest / RATIO.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Keep this share of the Frobenius norm, such as 0.95.")
    ] = None,
    dtype: Type = None,
    device: Device = "cpu",
) -> None:
    """Write a LoRA of another rank that changes a model as nearly as it can."""
    from modules.adapters.low_rank import resize as run

    with _shown("resizing") as progress:
        ranks = run(
            source,
            target,
            rank=rank,
            ratio=ratio,
            share=share,
            dtype=_torch(dtype) if dtype else None,
            device=device,
            progress=progress,
        )
    mean = sum(ranks.values()) / len(ranks)
    CONSOLE.print(f"{len(ranks)} layers, of rank {mean:.1f} on average.", highlight=False)


def _torch(dtype: NumberType) -> torch.dtype:
    from modules.config import DataType
    from modules.families.loading import DTYPES

    return DTYPES[DataType(dtype.value)]


def _strength(text: str) -> tuple[Path, float]:
    """A file and its strength, of FILE or FILE=STRENGTH."""
    path, separator, number = text.rpartition("=")
    if not separator or Path(text).is_file():
        return Path(text), 1.0
    try:
        return Path(path), float(number)
    except ValueError:
        raise ValueError(f"--lora {text}: {number!r} is no number. Write FILE=STRENGTH.") from None
