"""`cache info|verify|prune|export|import`: upkeep of the folder that encodings are kept in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from modules.config import TrainConfig
from modules.config.paths import resolve

DAMAGED = 1
"""Exit code of `cache verify` for a cache that has damaged shards still."""
INVALID = 2
GIB = 1 << 30

CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="The cache; else where a config keeps it that names none."),
]


app = typer.Typer(no_args_is_help=True, help="Look at, check, shrink and carry a cache.")


@app.command()
def info(
    cache_dir: CacheDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Sizes in bytes, as JSON.")] = False,
) -> None:
    """Say what a cache holds, encoder by encoder."""
    from modules.data.upkeep import usage

    found = usage(_folder(cache_dir))
    if as_json:
        typer.echo(json.dumps([asdict(use) for use in found], indent=2))
        return
    for use in found:
        last = datetime.fromtimestamp(use.last_used).strftime("%Y-%m-%d %H:%M")
        typer.echo(
            f"{use.name:<22} {use.rows:>9,} encodings {use.shards:>5,} shards "
            f"{_size(use.size):>10}  last used {last}"
        )
    typer.echo(f"{_size(sum(use.size for use in found))} in all")


@app.command()
def verify(
    cache_dir: CacheDir = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete what is damaged; it is encoded anew.")
    ] = False,
) -> None:
    """Read everything and compare it with its check sums; exit code 1 if some is damaged."""
    from modules.data.upkeep import verify as damaged_shards

    found = damaged_shards(_folder(cache_dir), remove)
    for path, why in found:
        typer.echo(f"{path}: {why}{', removed' if remove else ''}")
    if not found:
        typer.echo("Every shard is as it was written.")
    elif not remove:
        typer.echo("Add --remove to have the next run encode anew what they held.", err=True)
        raise typer.Exit(DAMAGED)


@app.command()
def prune(
    limit: Annotated[float, typer.Option("--limit", help="GiB that the cache may keep.", min=0)],
    cache_dir: CacheDir = None,
) -> None:
    """Remove what was not used for longest until the rest fits. Run it while none trains."""
    from modules.data.cache import prune as remove_oldest

    folder = _folder(cache_dir)
    removed = remove_oldest(folder, max(1, int(limit * GIB)))  # 0 would mean no limit
    for path in removed:
        typer.echo(f"removed {path}")
    typer.echo(f"{len(removed):,} shards removed.")


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="Zip file to write.")],
    cache_dir: CacheDir = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file.")] = False,
) -> None:
    """Write a cache as one zip file, for another machine."""
    from modules.data.upkeep import export as write_zip

    if target.exists() and not force:
        _refuse(f"{target} exists. Choose another name, or add --force.")
    folder = _folder(cache_dir)
    with _refusing(target):
        count = write_zip(folder, target)
    typer.echo(f"{count:,} shards, {_size(target.stat().st_size)}: {target}")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Zip file that `cache export` wrote.")],
    cache_dir: CacheDir = None,
) -> None:
    """Add an exported cache to this one; what it has already stays."""
    from modules.data.upkeep import take_in

    folder = cache_dir or _usual()
    with _refusing(source):
        new = take_in(source, folder)
    typer.echo(f"{new:,} new shards in {folder}.")


def _usual() -> Path:
    return Path(resolve(TrainConfig().cache_dir))


def _folder(cache_dir: Path | None) -> Path:
    folder = cache_dir or _usual()
    if not folder.is_dir():
        _refuse(f"{folder} is no folder. Name the cache with --cache-dir.")
    return folder


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(INVALID)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as failure:
        _refuse(str(failure))
    except OSError as failure:
        _refuse(f"{failure.filename or path}: {failure.strerror or failure}.")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
