"""The command `ot-notebook`: the engine's commands, and those that need a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from modules.cli import FAILED, build_app
from ot_notebook.preset_files import find

app = build_app(find)
_console, _errors = Console(), Console(stderr=True)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(help="Where to work; everything lands in its workspace/demo.")
    ] = Path(),
) -> None:
    """Run the quickstart without a browser: train a LoRA and write down what came of it."""
    from ot_notebook.quickstart import DemoError, run_demo

    try:
        result = run_demo(folder)
    except DemoError as error:
        _errors.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(FAILED) from None
    _console.print(f"Report: {result.report}", markup=False, highlight=False, soft_wrap=True)
    _console.print(f"LoRA:   {result.lora}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def lab(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Passed on to JupyterLab, after --, as in: lab -- --allow-root"),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder that JupyterLab opens.")] = Path(),
) -> None:
    """Open the quickstart in JupyterLab."""
    from ot_notebook.quickstart import DemoError, open_lab

    try:
        code = open_lab(folder, arguments or [])
    except DemoError as error:
        _errors.print(str(error), style="red", markup=False, highlight=False)
        code = FAILED
    raise typer.Exit(code)


@app.command("doctor")
def check_up() -> None:
    """Say what this machine has, what works with it, and what to do."""
    from ot_notebook.checkup import doctor

    found = doctor()
    _console.print(repr(found), markup=False, highlight=False)
    raise typer.Exit(0 if found.healthy else FAILED)


@app.command()
def runs(
    workspace: Annotated[
        Path | None, typer.Argument(help="Workspace; else all in and below this folder.")
    ] = None,
) -> None:
    """List what has run."""
    from ot_notebook.services.run import runs as list_runs

    try:
        frame = list_runs(workspace)
    except OSError as error:
        _errors.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(FAILED) from None
    if frame.empty:
        _console.print("No runs here.")
        return
    columns = ("id", "state", "step", "max_step", "smooth_loss", "workspace")
    table = Table()
    for name in columns:  # an id is there to be copied, so it is never cut short
        table.add_column(name, no_wrap=name in ("id", "state"), overflow="fold")
    for row in frame[list(columns)].itertuples(index=False):
        table.add_row(*(f"{each:.4g}" if isinstance(each, float) else str(each) for each in row))
    _console.print(table)
