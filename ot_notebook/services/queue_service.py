"""Runs one after another: a list of jobs that survives the kernel."""

from __future__ import annotations

import atexit
import itertools
import json
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import traitlets as t

from modules.atomic import atomic_file
from modules.config import ConfigError, TrainConfig, validate
from modules.config.paths import resolve
from ot_notebook.services.heartbeat import Heartbeat, WorkspaceBusyError
from ot_notebook.services.readers import Handler, Readers
from ot_notebook.services.refusals import CommandRefused
from ot_notebook.services.run import Run, RunFailedError
from ot_notebook.services.run_store import FILE as DATABASE
from ot_notebook.services.run_store import RunStore, StoreError
from ot_notebook.services.trainer_service import TrainerService, trainer

FILE = "queue.json"
LOCK = "queue.live"

VERSION = 1

RETRY_SECONDS = 1.0
"""Time between two looks at a trainer that is busy with a run of its own."""

JobState = Literal["waiting", "running", "finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be."""

    id: str
    name: str
    config: dict[str, Any]
    state: JobState = "waiting"
    error: str = ""
    """Why it failed."""
    run: str = ""
    """Id of its latest run."""
    resume: bool = False
    """Whether it goes on from its last backup."""


class QueueError(ValueError):
    """Something the queue cannot do; the text says why and what would work."""


class QueueService(t.HasTraits):
    """Starts the next job when one ends. Every change is on disk before the call returns.

    Methods may be called from any thread. After the kernel died, the job that ran is `interrupted`:
    `retry` puts it back, from its backup or anew.

    Args:
        folder: where `queue.json` lies.
        service: what trains; this kernel's trainer by default.

    Example:
        >>> queue = ot.queue()
        >>> queue.add_grid(job.config, learning_rate=[1e-4, 5e-4], lora_rank=[8, 16])
        >>> queue.start()
    """

    jobs = t.Tuple(read_only=True, help="`Job`s in the order in which they run.")
    active = t.Bool(False, read_only=True, help="Whether it starts the next job.")

    def __init__(
        self, folder: str | Path = "workspace", service: TrainerService | None = None
    ) -> None:
        super().__init__()
        self.path = Path(folder).absolute() / FILE
        self._service = service or trainer()
        self._changed = threading.Condition(threading.RLock())
        self._readers = Readers(lambda text: self._service.history.note(text, "warning"))
        self._service.observe(lambda _change: self._readers.forget(), "run")  # a log of its own
        self._heartbeat: Heartbeat | None = None
        self._worker: threading.Thread | None = None
        self._closed = False
        self.set_trait("jobs", self._load())

    @property
    def service(self) -> TrainerService:
        """What trains its jobs."""
        return self._service

    # ---------------------------------------------------------------- the list

    def add(self, config: TrainConfig, name: str = "") -> Job:
        """Put a run at the end.

        Raises:
            ConfigError: if the config cannot run.
            QueueError: if it would write over the model of another job.
        """
        if blocking := [p for p in validate(config) if p.severity == "error"]:
            raise ConfigError(blocking)
        with self._changed:
            self._check_destination(config.output_model_destination, "")
            job = Job(secrets.token_hex(4), name or config.base_model_name, config.to_dict())
            self._write((*self.jobs, job))
            return job

    def add_grid(self, config: TrainConfig, **values: Sequence[Any]) -> list[Job]:
        """Put a run for each combination of values at the end, each in a workspace of its own.

        Args:
            config: what they share.
            values: for each setting, by name, what it takes. `learning_rate=[1e-4, 5e-4]`.

        Raises:
            ConfigError: if one of them cannot run; none is added then.
        """
        names = list(values)
        added = []
        destination = Path(config.output_model_destination)
        for chosen in itertools.product(*values.values()):
            settings = dict(zip(names, chosen, strict=True))
            label = ", ".join(f"{name} {value}" for name, value in settings.items())
            place = re.sub(r"[^\w.=-]+", "_", label)
            varied = config.update(
                **settings,
                workspace_dir=str(Path(config.workspace_dir) / place),
                output_model_destination=str(
                    destination.with_name(f"{destination.stem}-{place}{destination.suffix}")
                ),
            )
            if blocking := [p for p in validate(varied) if p.severity == "error"]:
                raise ConfigError(blocking)
            added.append((varied, label))
        with self._changed:
            return [self.add(varied, label) for varied, label in added]

    def remove(self, job_id: str) -> None:
        """Take a job out; its files stay.

        Raises:
            QueueError: if it runs, or there is no such job.
        """
        with self._changed:
            job = self._job(job_id)
            if job.state == "running":
                raise QueueError(f"Job {job.name!r} is running. Stop its run first.")
            self._write(other for other in self.jobs if other.id != job_id)

    def move(self, job_id: str, position: int) -> None:
        """Let a job run at another place; 0 is next.

        Raises:
            QueueError: if it does not wait, or there is no such job.
        """
        with self._changed:
            job = self._waiting(job_id, "moved")
            others = [other for other in self.jobs if other.id != job_id]
            waiting = [place for place, other in enumerate(others) if other.state == "waiting"]
            places = [*waiting, len(others)]
            others.insert(places[max(0, min(position, len(waiting)))], job)
            self._write(others)

    def edit(self, job_id: str, **settings: Any) -> Job:
        """Change settings of a job that waits.

        Raises:
            ConfigError: if it could not run then.
            QueueError: if it does not wait, or there is no such job.
        """
        with self._changed:
            job = self._waiting(job_id, "changed")
            return self._put(job, TrainConfig.load(job.config)[0].update(**settings))

    def replace(self, job_id: str, config: TrainConfig) -> Job:
        """Give a job that waits other settings altogether.

        Raises:
            ConfigError: if they cannot run.
            QueueError: if it does not wait, or there is no such job.
        """
        with self._changed:
            return self._put(self._waiting(job_id, "changed"), config)

    def retry(self, job_id: str, *, resume: bool = False) -> Job:
        """Let a job that has ended wait again, at the end.

        Args:
            job_id: the job.
            resume: go on from its last backup rather than begin anew.

        Raises:
            QueueError: if it has not ended, or there is no such job.
        """
        with self._changed:
            job = self._job(job_id)
            if job.state in ("waiting", "running"):
                raise QueueError(
                    f"Job {job.name!r} is {job.state}; only one that ended is retried."
                )
            again = replace(job, state="waiting", error="", resume=resume)
            self._write([*(other for other in self.jobs if other.id != job_id), again])
            return again

    # ---------------------------------------------------------------- running

    def start(self) -> None:
        """Run the jobs that wait, one after another, and those that come.

        Raises:
            QueueError: if another kernel runs this queue.
        """
        with self._changed:
            self._own()
            self.set_trait("active", True)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="ot-queue", daemon=True)
                self._worker.start()
            self._changed.notify_all()

    def pause(self) -> None:
        """Start no other job. The one that runs goes on."""
        with self._changed:
            self.set_trait("active", False)

    def close(self) -> None:
        """Start no other job and let go of the queue, for another kernel to take."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._heartbeat is not None:
                self._heartbeat.close()
            self._heartbeat = None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self.active and self._next()))
                job = self._next()
                if self._closed or job is None:
                    return
            self._run(job)

    def _run(self, job: Job) -> None:
        """Run one job to its end and note how it ended."""
        try:
            config = TrainConfig.load(job.config)[0]
            run = self._start(job, config)
        except CommandRefused:  # a run that somebody started by hand goes first
            with self._changed:
                self._changed.wait(RETRY_SECONDS)
            return
        except (ValueError, StoreError) as error:  # a ConfigError is a ValueError
            self._note(job.id, state="failed", error=str(error))
            return
        self._note(job.id, state="running", run=run.id, error="")
        state, error_text = _outcome(run)
        self._note(job.id, state=state, error=error_text)

    # ---------------------------------------------------------------- inside

    def observe(self, handler: Handler, names: Any = t.All, type: str = "change") -> None:  # noqa: A002
        """Call `handler` when traits change; see traitlets. If it raises, the log says so."""
        super().observe(self._readers.guarded(handler), names, type)

    def _start(self, job: Job, config: TrainConfig) -> Run:
        if not job.resume:
            return self._service.start(config)
        config = config.update(continue_last_backup=True, **{"ot.resume_from": ""})
        store = RunStore(Path(resolve(config.workspace_dir)) / DATABASE)
        before = Run(job.run, store) if store.has(job.run) else None
        return self._service.start(config, after=before)

    def _put(self, job: Job, config: TrainConfig) -> Job:
        if blocking := [p for p in validate(config) if p.severity == "error"]:
            raise ConfigError(blocking)
        self._check_destination(config.output_model_destination, job.id)
        return self._update(job, config=config.to_dict())

    def _next(self) -> Job | None:
        return next((job for job in self.jobs if job.state == "waiting"), None)

    def _note(self, job_id: str, **changes: Any) -> None:
        with self._changed:
            if self._closed:
                return  # the next kernel finds the job interrupted
            for job in self.jobs:
                if job.id == job_id:
                    self._update(job, **changes)

    def _update(self, job: Job, **changes: Any) -> Job:
        new: Job = replace(job, **changes)
        self._write(new if other.id == job.id else other for other in self.jobs)
        return new

    def _job(self, job_id: str) -> Job:
        found: dict[str, Job] = {job.id: job for job in self.jobs}
        if job_id in found:
            return found[job_id]
        known = ", ".join(f"{job.id} ({job.name})" for job in found.values()) or "none"
        raise QueueError(f"There is no job {job_id!r}. The queue holds {known}.")

    def _waiting(self, job_id: str, verb: str) -> Job:
        job = self._job(job_id)
        if job.state != "waiting":
            raise QueueError(f"Job {job.name!r} is {job.state}; only one that waits can be {verb}.")
        return job

    def _check_destination(self, destination: str, except_id: str) -> None:
        for job in self.jobs:
            same = job.config.get("output_model_destination") == destination
            if same and job.id != except_id and job.state in ("waiting", "running"):
                raise QueueError(
                    f"output_model_destination is {destination!r}, where job {job.name!r} will "
                    f"write its model. Give this one another."
                )

    def _own(self) -> None:
        """Take the queue for this kernel, before the first change."""
        if self._closed:
            raise QueueError("This queue is closed. Make another one of its folder.")
        if self._heartbeat is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._heartbeat = Heartbeat(self.path.parent, "queue", LOCK)
        except WorkspaceBusyError as error:
            raise QueueError(f"{error} Use the queue there, or close() it there first.") from error
        self.set_trait("jobs", self._load())  # what the other kernel left

    def _write(self, jobs: Any) -> None:
        """Put the list on disk, and then in the trait."""
        new = tuple(jobs)
        self._own()
        text = json.dumps({"version": VERSION, "jobs": [asdict(job) for job in new]}, indent=1)
        with atomic_file(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self.set_trait("jobs", new)
        self._changed.notify_all()

    def _load(self) -> tuple[Job, ...]:
        """The list on disk. A job that ran when its kernel died is interrupted."""
        if not self.path.exists():
            return ()
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                raise QueueError(f"it has version {content['version']}; this one reads {VERSION}")
            jobs = tuple(Job(**job) for job in content["jobs"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise QueueError(f"{self.path} cannot be read: {error}. Move it away.") from error
        return tuple(
            replace(job, state="interrupted") if job.state == "running" else job for job in jobs
        )


def _outcome(run: Run) -> tuple[JobState, str]:
    """Wait for a run; how it ended, and why if it failed."""
    try:
        return ("finished" if run.wait().state == "finished" else "stopped"), ""
    except RunFailedError as error:
        return "failed", str(error)


if "_queue" not in globals():  # `%autoreload` runs this file again
    _queue: QueueService | None = None


def queue(folder: str | Path = "workspace") -> QueueService:
    """This kernel's queue: always the same one, of the folder that was named first."""
    global _queue  # noqa: PLW0603 - a kernel has one trainer, and so one queue
    if _queue is None:
        _queue = QueueService(folder)
        atexit.register(_queue.close)
    return _queue
