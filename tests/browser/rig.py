"""A real JupyterLab on the loopback device, and one page of Chromium that drives it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
import requests
from playwright.sync_api import Browser, Locator, Page

CHROMIUM = Path(os.environ.get("OT_CHROMIUM", "/usr/bin/chromium"))
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
]
HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
SHOTS = REPOSITORY / "artifacts" / "browser"


class Lab:
    """`jupyter lab` with folders of its own, so that no run and no user's settings leak in."""

    def __init__(self, root: Path, disabled_extensions: Sequence[str] = ()) -> None:
        self.root = root
        self.folder = root / "notebooks"
        self.folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        self.token = secrets.token_hex(16)
        self._log = (root / "lab.log").open("wb")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={self.token}",
                f"--ServerApp.root_dir={self.folder}",
                "--ServerApp.terminals_enabled=False",
                "--LabApp.expose_app_in_browser=True",
            ],
            env=self._environment(disabled_extensions),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _environment(self, disabled_extensions: Sequence[str]) -> dict[str, str]:
        home = self.root / "home"
        folders = {
            "JUPYTER_CONFIG_DIR": home / "config",
            "JUPYTER_DATA_DIR": home / "data",
            "JUPYTER_RUNTIME_DIR": home / "runtime",
            "JUPYTERLAB_SETTINGS_DIR": home / "settings",
            "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
            "IPYTHONDIR": home / "ipython",
        }
        notices = folders["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab" / "apputils-extension"
        notices.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
        (notices / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
        pages = folders["JUPYTER_CONFIG_DIR"] / "labconfig"
        pages.mkdir(parents=True)
        disabled = {"disabledExtensions": dict.fromkeys(disabled_extensions, True)}
        (pages / "page_config.json").write_text(json.dumps(disabled))
        # bytecode is kept, as it is for everybody: compiling all of it anew takes half a second
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return {
            **inherited,
            **{name: str(folder) for name, folder in folders.items()},
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)]),
            "OMP_NUM_THREADS": "1",
        }

    def wait(self, seconds: float = 60) -> None:
        """Return when the server answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(requests.RequestException):
                answer = requests.get(
                    f"{self.base}/api/status", params={"token": self.token}, timeout=2
                )
                if answer.ok:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"JupyterLab did not start:\n{(self.root / 'lab.log').read_text()}")

    def write(self, name: str, cells: Sequence[str]) -> str:
        """Write a notebook of code cells and give its path on the server."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells]
        )
        notebook.metadata["kernelspec"] = {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        }
        nbformat.write(notebook, self.folder / name)
        return name

    def page(self, browser: Browser, prepare: Callable[[Page], None] = lambda _page: None) -> Page:
        """A page of its own that shows the lab, its side bar closed; `prepare` comes first."""
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(30_000)
        page = context.new_page()
        prepare(page)
        page.goto(f"{self.base}/lab?token={self.token}&reset")
        page.wait_for_function("() => window.jupyterapp")
        page.evaluate(
            """() => window.jupyterapp.restored
                .then(() => window.jupyterapp.commands.execute('application:toggle-left-area'))
                .then(() => null)"""
        )
        return page

    def stop(self) -> None:
        """End the kernels, then the server."""
        with contextlib.suppress(requests.RequestException):
            requests.post(f"{self.base}/api/shutdown", params={"token": self.token}, timeout=10)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait(10)
        self._log.close()


class Notebook:
    """A notebook open in a page of JupyterLab, driven through Lab's own commands and promises."""

    def __init__(self, lab: Lab, page: Page) -> None:
        self.lab, self.page = lab, page
        self.console: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", self._on_page_error)

    def open(self, name: str, cells: Sequence[str]) -> None:
        """Write the notebook and open it with a fresh kernel."""
        self.show(self.lab.write(name, cells))

    def show(self, path: str) -> None:
        """Open a notebook of the server's folder with a fresh kernel."""
        self.command("docmanager:open", path=path)
        self.ready()

    def save(self) -> None:
        """Write the notebook with its outputs."""
        self.command("docmanager:save")

    def ready(self) -> None:
        """Wait until the kernel is connected.

        The toolbar says idle before that, and a cell that is run then is lost without a word.
        """
        self.page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext")
        self.page.evaluate(
            """async () => {
                await window.jupyterapp.restored;
                const panel = window.jupyterapp.shell.currentWidget;
                await panel.context.ready; await panel.revealed; await panel.sessionContext.ready;
                const kernel = panel.sessionContext.session.kernel;
                await kernel.info;
                while (kernel.connectionStatus !== 'connected' || kernel.status !== 'idle')
                    await new Promise((done) => setTimeout(done, 25));
            }"""
        )

    def command(self, name: str, **arguments: Any) -> None:
        """Run one of Lab's commands and wait for it."""
        self.page.evaluate(
            "([n, a]) => window.jupyterapp.commands.execute(n, a).then(() => null)",
            [name, arguments],
        )

    def run(self, index: int, wait: bool = True) -> None:
        """Run a cell; with `wait`, until the kernel has replied."""
        self.page.evaluate(
            """async ([index, wait]) => {
                const app = window.jupyterapp, notebook = app.shell.currentWidget.content;
                notebook.activeCellIndex = index; notebook.mode = 'command'; notebook.deselectAll();
                const done = app.commands.execute('notebook:run-cell');
                if (wait) await done;
            }""",
            [index, wait],
        )

    def output(self, index: int) -> Locator:
        """The outputs of a cell."""
        cells = self.page.locator(".jp-NotebookPanel:visible .jp-Notebook .jp-Cell")
        return cells.nth(index).locator(".jp-OutputArea-output")

    def text(self, index: int) -> str:
        """The text of a cell's outputs."""
        return "\n".join(self.output(index).all_inner_texts())

    def reload(self) -> None:
        """Load the page anew, as F5 does; the kernel lives on."""
        self.page.reload()
        self.ready()

    def theme(self, dark: bool) -> None:
        """Switch Lab's theme and wait until it shows."""
        self.command("apputils:change-theme", theme=f"JupyterLab {'Dark' if dark else 'Light'}")
        self.page.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light", arg=str(not dark).lower()
        )

    def shot(self, name: str, locator: Locator | None = None) -> Path:
        """Keep a picture of the page, or of one element."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{name}.png"
        (locator or self.page).screenshot(path=path)
        return path

    def close(self) -> None:
        """End the kernel, close the tab, stop listening."""
        self.page.remove_listener("console", self._on_console)
        self.page.remove_listener("pageerror", self._on_page_error)
        self.page.evaluate(
            """async () => {
                const panel = window.jupyterapp.shell.currentWidget;
                if (!panel?.sessionContext) return;
                await panel.context.save(); await panel.sessionContext.shutdown();
                panel.context.model.dirty = false; panel.close();
            }"""
        )

    def _on_console(self, message: Any) -> None:
        if message.type == "error":
            self.console.append(message.text)

    def _on_page_error(self, error: Any) -> None:
        self.console.append(str(error))
