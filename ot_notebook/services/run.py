"""A handle to one run: live in this kernel, or read back from its workspace."""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.atomic import atomic_folder
from modules.config import TrainConfig
from modules.training.events import ENDED, Event, RunFailed, SampleImage
from ot_notebook.services.heartbeat import living
from ot_notebook.services.run_store import FILE, RunStore, StoredRun, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

SAMPLE_COLUMNS = ("step", "epoch", "prompt", "seed", "kind", "index", "path", "time")


class RunFailedError(RuntimeError):
    """A run that was waited for ended on an error; the text has its advice."""


class Run:
    """One run of a workspace. Made by `TrainerService.start`, or by `ot.run` for an older one.

    Args:
        run_id: its name in the store.
        store: the store of its workspace.
        flush: brings the store up to date with what the run has said; needed while it is live.
        ended: set when a live run is over.
    """

    def __init__(
        self,
        run_id: str,
        store: RunStore,
        flush: Callable[[], None] = lambda: None,
        ended: threading.Event | None = None,
    ) -> None:
        self.id = run_id
        self.store = store
        self._flush = flush
        self._ended = ended

    @property
    def workspace(self) -> Path:
        """Folder of its samples, backups and `run.db`."""
        return self.store.path.parent

    @property
    def state(self) -> str:
        """Where it is now, or how it ended; "cut off" if its process died."""
        return state_of(self._stored())

    @property
    def ending(self) -> str:
        """How it ended, or where it is, in words."""
        run, state = self._stored(), self.state
        last = self.store.last_progress(self.id)
        place = f"step {last[1].step} of {last[1].max_step}" if last else "the first step"
        if state == "cut off":
            return f"Cut off while {run.state} at {place}: its process ended. resume() goes on."
        if state not in ENDED and self._ended is None:
            return f"Live in {living(self.workspace)}, {state} at {place}."
        return f"{state.capitalize()} at {place}"

    @cached_property
    def config(self) -> TrainConfig:
        """The settings it runs with."""
        return TrainConfig.load(self._stored().config)[0]

    @property
    def error(self) -> RunFailed | None:
        """What ended it, if that was an error."""
        failures = self.events("failure")
        last = failures[-1] if failures else None
        return last if isinstance(last, RunFailed) else None

    def wait(self, timeout: float | None = None) -> Run:
        """Wait until it ends, and give the run. Interrupting the wait leaves it running.

        Args:
            timeout: seconds after which to give up.

        Raises:
            RunFailedError: if it ended on an error.
            TimeoutError: if it goes on after `timeout` seconds.
        """
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self._ended is not None and not self._ended.wait(0.25):  # short, for Ctrl+C's sake
            if time.monotonic() > until:
                raise TimeoutError(f"Run {self.id} is still {self.state} after {timeout} s.")
        self._flush()
        if (error := self.error) is not None:
            raise RunFailedError(f"{error.error}\n{error.advice}")
        return self

    def resume(self, *, backup: str | Path = "", **settings: Any) -> Run:
        """Go on from its last backup with this kernel's trainer, and give the new run.

        Args:
            backup: another one: the name of its folder in the workspace, or its path.
            settings: those to change, by name.

        Raises:
            CommandRefused: while a run is live here.
            ConfigError: if it is live in another process, or the config cannot run any more.
        """
        from ot_notebook.services.trainer_service import trainer

        chosen = {"ot.resume_from": str(backup), **settings}
        config = self.config.update(continue_last_backup=True, **chosen)
        return trainer().start(config, after=self)

    def events(self, *names: str) -> list[Event]:
        """What it said, in order: all but its steps, or the kinds named ("sample", "warning")."""
        self._flush()
        return [event for _, event in self.store.events(self.id, *names)]

    def metrics(self) -> pd.DataFrame:
        """One row a step: step, epoch, time, loss, smooth_loss, learning_rate and more."""
        self._flush()
        return self.store.metrics(self.id)

    def samples(self) -> pd.DataFrame:
        """One row a sample: step, epoch, prompt, seed, kind, index, path, time."""
        import pandas as pd

        self._flush()
        rows = [
            {**asdict(event), "path": str(event.path), "time": at}
            for at, event in self.store.events(self.id, "sample")
            if isinstance(event, SampleImage)
        ]
        frame: pd.DataFrame = pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS))
        return frame

    def report(self, path: str | Path | None = None) -> Path:
        """Write one HTML file that tells of the run and opens anywhere; give its path.

        Args:
            path: where; by default `report-<id>.html` in the workspace.

        Raises:
            OSError: if it cannot be written there.
        """
        from ot_notebook.services.report import write_report

        return write_report(self, Path(path or self.workspace / f"report-{self.id}.html"))

    def export(self, folder: str | Path) -> Path:
        """Write all that is known of the run to a new folder, in files that any program reads.

        They are `config.json`, `metrics.csv`, `samples.csv` and `report.html`.

        Raises:
            FileExistsError: if the folder exists.
        """
        target = Path(folder).expanduser().absolute()
        with atomic_folder(target) as new:
            self.config.save(new / "config.json")
            self.metrics().to_csv(new / "metrics.csv", index=False)
            self.samples().to_csv(new / "samples.csv", index=False)
            self.report(new / "report.html")
        return target

    def delete(self) -> None:
        """Forget the run. Its samples, backups and models stay where they are.

        Raises:
            RuntimeError: while it is live.
        """
        if self.state not in (*ENDED, "cut off"):
            raise RuntimeError(f"Run {self.id} is {self.state}. Stop it before you delete it.")
        self.store.delete(self.id)

    def _stored(self) -> StoredRun:
        self._flush()
        return self.store.run(self.id)

    def __repr__(self) -> str:
        text = f"<Run {self.id}: {self.state}"
        if last := self.store.last_progress(self.id):
            text += f", step {last[1].step} of {last[1].max_step}"
        return f"{text}, in {self.workspace}>"


def _stored_runs(workspace: str | Path | None) -> Iterator[tuple[RunStore, StoredRun]]:
    """Every run with its store. A file found by the way that is no store is passed over, aloud."""
    for store in find_stores(workspace):
        try:
            found = store.runs()
        except StoreError as error:
            if workspace is not None:
                raise
            warnings.warn(f"Passed over: {error}", stacklevel=3)
            continue
        yield from ((store, each) for each in found)


def state_of(run: StoredRun) -> str:
    """Its state; one that has not ended but lives nowhere was cut off."""
    if run.state in ENDED:
        return run.state
    beat = living(run.workspace)
    return run.state if beat is not None and beat.run == run.id else "cut off"


def find_stores(workspace: str | Path | None = None) -> list[RunStore]:
    """The stores of a workspace, or of every workspace in and below the current folder.

    Raises:
        FileNotFoundError: if the workspace named has none.
    """
    if workspace is not None:
        path = Path(workspace).expanduser() / FILE
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: no run has used that workspace.")
        return [RunStore(path)]
    here = Path.cwd()
    found = (path for depth in ("", "*/", "*/*/", "*/*/*/") for path in here.glob(depth + FILE))
    return [RunStore(path) for path in sorted(found)]


def runs(workspace: str | Path | None = None) -> pd.DataFrame:
    """What has run, newest first: id, state, started, ended, steps, loss, workspace and more.

    Args:
        workspace: a workspace folder; else all in and up to three folders below the current one.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    latest: dict[Path, float] = {}
    for store, run in _stored_runs(workspace):
        # a clock that was set back must not make the newest run of a workspace an older one
        latest[store.path] = max(run.started, latest.get(store.path, 0.0))
        last = store.last_progress(run.id)
        at, place = last if last else (None, None)
        rows.append(
            {
                "id": run.id,
                "state": state_of(run),
                "started": _time(run.started),
                "ended": _time(run.ended if run.state in ENDED else at),
                "step": place.step if place else 0,
                "max_step": place.max_step if place else 0,
                "smooth_loss": place.smooth_loss if place else float("nan"),
                "base_model": run.config.get("base_model_name", ""),
                "method": run.config.get("training_method", ""),
                "workspace": str(run.workspace),
                "order": (latest[store.path], len(rows)),
            }
        )
    columns = "id state started ended step max_step smooth_loss base_model method workspace"
    rows.sort(key=lambda row: row["order"], reverse=True)
    newest_first: pd.DataFrame = pd.DataFrame(rows, columns=columns.split())
    return newest_first


def attach(workspace: str | Path | None = None) -> Run:
    """Show the newest run of a workspace in this kernel, say how it ended, and give it.

    `attach().resume()` goes on from its last backup, exactly. A run that is live in another process
    is shown as it goes on; `trainer().stop()` asks that process to end it.

    Args:
        workspace: its folder; else the newest of all in and below the current folder.

    Raises:
        FileNotFoundError: if there is no run there.
        CommandRefused: while a run is live in this kernel.
    """
    from ot_notebook.services.trainer_service import trainer

    table = runs(workspace)
    if table.empty:
        where = Path(workspace or Path.cwd())
        raise FileNotFoundError(f"No run in {where}. Name its workspace: ot.attach('folder').")
    newest = table.iloc[0]
    found = run(newest["id"], newest["workspace"])
    trainer().show(found)
    return found


def _time(seconds: float | None) -> Any:
    """A moment in the local time zone, as a data frame holds it."""
    import pandas as pd

    return pd.NaT if seconds is None else pd.Timestamp(datetime.fromtimestamp(int(seconds)))


def run(run_id: str, workspace: str | Path | None = None) -> Run:
    """The run of that id, from `runs`.

    Raises:
        KeyError: if there is none; says where it was looked for.
    """
    for store, each in _stored_runs(workspace):
        if each.id == run_id:
            return Run(run_id, store)
    where = f"any {FILE} below {Path.cwd()}" if workspace is None else Path(workspace) / FILE
    raise KeyError(f"No run {run_id!r} in {where}. ot.runs() lists those that exist.")
