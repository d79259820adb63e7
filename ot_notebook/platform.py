"""Where a kernel runs, and what differs there."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Name = Literal["colab", "kaggle", "vscode", "jupyter", "terminal"]


@dataclass(frozen=True, slots=True)
class Platform:
    """One kind of place to run in."""

    name: Name
    label: str
    mode: Literal["rich", "core", "text"]
    """How views draw: with modules of their own, with ipywidgets alone, or as text."""
    keep: Path | None
    """Folder that outlives the session, or None if it has to be set up first."""
    advice: str
    """What to know here; empty where nothing is special."""


def detect(
    environment: Mapping[str, str] = os.environ, root: Path = Path("/"), shell: Any = None
) -> Platform:
    """The platform of this process.

    Args:
        environment: its environment variables.
        root: of the file system.
        shell: the IPython shell; by default the one that runs, if any.
    """
    if shell is None and "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
    if "COLAB_RELEASE_TAG" in environment or "google.colab" in sys.modules:
        drive = root / "content" / "drive" / "MyDrive"
        advice = "" if drive.is_dir() else _COLAB
        return Platform("colab", "Google Colab", "rich", drive if not advice else None, advice)
    if "KAGGLE_KERNEL_RUN_TYPE" in environment or (root / "kaggle" / "input").is_dir():
        return Platform("kaggle", "Kaggle", "core", root / "kaggle" / "working", _KAGGLE)
    if getattr(shell, "kernel", None) is None:
        return Platform("terminal", "a terminal or a script", "text", Path.cwd(), "")
    if "__vsc_ipynb_file__" in shell.user_ns or "VSCODE_PID" in environment:
        return Platform("vscode", "VS Code", "rich", Path.cwd(), _VSCODE)
    return Platform("jupyter", "Jupyter", "rich", Path.cwd(), "")


def give_back(_run: object = None) -> None:
    """End this session and give its machine back, where a place is known to allow that.

    Everything that lies on the machine alone is lost; a mounted Google Drive is given first what
    waits to be uploaded. Meant for `start(config, auto_stop=True)`.

    Raises:
        RuntimeError: where nothing is known to end it; or it could not be ended.
        ValueError: if Google Drive does not take what waits; the machine stays then.
    """
    if "COLAB_RELEASE_TAG" in os.environ:
        importlib.import_module("google.colab.drive").flush_and_unmount()
        importlib.import_module("google.colab.runtime").unassign()
    elif pod := os.environ.get("RUNPOD_POD_ID"):
        program = shutil.which("runpodctl")
        if program is None:
            raise RuntimeError(f"The pod {pod} is not stopped: runpodctl is not installed here.")
        stop = [program, "stop", "pod", pod]
        done = subprocess.run(stop, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"runpodctl could not stop the pod {pod}: {done.stderr[-300:]}")
    else:
        raise RuntimeError(
            f"{detect().label} is no machine that can be given back from here. Give start() a "
            f"function of your own: start(config, auto_stop=lambda run: ...)."
        )


_COLAB = (
    "The machine is taken away at the end of the session. Mount Google Drive "
    "(from google.colab import drive; drive.mount('/content/drive')) and put workspace_dir there."
)
_KAGGLE = (
    "Only /kaggle/working outlives the session: put workspace_dir there. Views use plain widgets, "
    "as Kaggle loads no others. Downloads need Internet turned on in the notebook's settings."
)
_VSCODE = "After a reload of the window, run the cell with the view again: nothing is lost."
