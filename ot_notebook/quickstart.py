"""The quickstart notebook from the command line: run it headless, or open it in JupyterLab."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from modules.adapters.lora import LoraLayer
    from ot_notebook.services.run import Run

NOTEBOOK = "00_quickstart.ipynb"

WORKSPACE = Path("workspace") / "demo"
"""Where the notebook works, below the folder it runs in."""

LORA = "emoji-line-art.safetensors"
"""The file it trains, in KOHYA_LORA layout."""

CELL_SECONDS = 1800
"""Longest time of one cell: the training, on a slow and busy machine."""


class DemoError(RuntimeError):
    """The quickstart could not be run; the text says why and what to do."""


@dataclass(frozen=True)
class Demo:
    """What a run of the quickstart left behind."""

    report: Path
    notebook: Path
    lora: Path
    """In KOHYA_LORA layout."""
    diffusers_lora: Path
    """The same in DIFFUSERS_LORA layout."""


def notebook_file() -> Path:
    """The quickstart: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    installed = here / "notebooks" / NOTEBOOK
    return installed if installed.is_file() else here.parent / "notebooks" / NOTEBOOK


def run_demo(folder: Path) -> Demo:
    """Execute the quickstart in `folder` and write what came of it below `workspace/demo`.

    Raises:
        DemoError: if something is missing, or a cell fails; the notebook as far as it came is kept.
    """
    _need("nbclient", "nbformat", "ipykernel", extra="notebooks,lab")
    workspace = folder.resolve() / WORKSPACE
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(
            f"{workspace} cannot be made: {error}. Name another with --folder."
        ) from error
    executed = workspace / NOTEBOOK
    _execute(notebook_file(), executed, folder.resolve())
    run = _newest_run(workspace)
    lora = workspace / LORA
    other = lora.with_name(f"{lora.stem}.diffusers.safetensors")
    _write_diffusers_layout(run, other)
    return Demo(run.report(workspace / "report.html"), executed, lora, other)


def open_lab(folder: Path, arguments: Sequence[str] = ()) -> int:
    """Open the quickstart in JupyterLab and give its exit code; copied if `folder` has none.

    Args:
        folder: that JupyterLab opens.
        arguments: passed on to it.

    Raises:
        DemoError: if JupyterLab is missing or the notebook cannot be copied.
    """
    _need("jupyterlab", "ipykernel", extra="lab")
    command = [sys.executable, "-m", "jupyterlab", str(notebook_in(folder)), *arguments]
    return subprocess.run(command, cwd=folder, check=False).returncode


def notebook_in(folder: Path) -> Path:
    """The quickstart's path from `folder`; a copy is put there unless it lies below it already.

    Raises:
        DemoError: if it cannot be copied.
    """
    source, folder = notebook_file().resolve(), folder.resolve()
    if source.is_relative_to(folder):
        return source.relative_to(folder)  # a checkout: no second copy
    target = folder / source.name
    if not target.exists():  # a copy that the user has worked in stays
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise DemoError(f"{target} cannot be written: {error}.") from error
    return target.relative_to(folder)


def _execute(source: Path, target: Path, folder: Path) -> None:
    """Run a notebook with this interpreter and write it with its outputs, as far as it came."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.read(source, as_version=4)
    log = target.with_name("kernel.log")
    client = NotebookClient(
        notebook,
        kernel_manager_class=_kernel_of_this_python(),
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        with log.open("wb") as output:
            client.execute(stdout=output, stderr=output)
    except CellExecutionError as error:
        raise DemoError(
            f"A cell of the quickstart failed.\n{error.ename}: {error.evalue}\n"
            f"The notebook with the whole traceback: {target}"
        ) from error
    except (CellTimeoutError, DeadKernelError) as error:
        raise DemoError(
            f"The quickstart did not end: {error}\nIs the machine out of memory, or very busy? "
            f"The notebook as far as it came: {target}; what the kernel said: {log}"
        ) from error
    finally:
        nbformat.write(notebook, target)


def _kernel_of_this_python() -> Any:
    """A kernel called python3 may belong to another environment; this one does not."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(AsyncKernelManager):  # type: ignore[misc, unused-ignore]
        @property
        def kernel_spec(self) -> Any:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    return ThisPython


def _newest_run(workspace: Path) -> Run:
    from ot_notebook.services.run import run, runs

    return run(runs(workspace)["id"][0], workspace)


def _write_diffusers_layout(run: Run, path: Path) -> None:
    """Write the adapter of the run's last backup in the layout of diffusers."""
    from safetensors.torch import load_file

    from modules.adapters.files import save_tensors, to_format
    from modules.config import ModelFormat
    from modules.config.paths import backups
    from modules.families import family_for
    from modules.families.loading import DTYPES

    found = backups(run.workspace)
    if not found:
        raise DemoError(f"The run left no backup in {run.workspace / 'backup'}.")
    adapter = load_file(found[0] / "lora" / "lora.safetensors")
    family = family_for(run.config.model_type)
    tensors = to_format(_layers(adapter), family, ModelFormat.DIFFUSERS_LORA)
    save_tensors(tensors, path, DTYPES[run.config.output_dtype])


def _layers(adapter: Mapping[str, Tensor]) -> Iterator[LoraLayer]:
    """The layers of an adapter as backups hold it."""
    from modules.adapters.lora import LoraLayer

    for key, alpha in adapter.items():
        name, is_alpha, _ = key.partition(".alpha")
        if is_alpha:
            part, _, path = name.partition(".")
            down, up = (adapter[f"{name}.lora_{side}.weight"] for side in ("down", "up"))
            yield LoraLayer(part, path, down, up, float(alpha))


def _need(*packages: str, extra: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise DemoError(
            f"{' and '.join(missing)} is not installed in {sys.prefix}. "
            f"Install it: pip install 'ot-notebook[{extra}]'"
        )
