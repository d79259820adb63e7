"""What runs have said, on disk: `run.db`, one SQLite file in each workspace.

Every event is kept. Steps, by far the most, have a table with a column for each number; the others
are rows of JSON. A process that is killed leaves all that was delivered before.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from modules.training.events import ENDED, EVENT_TYPES, Event, LossUpdate, Progress, TrainingState
from ot_notebook.services.network_drive import LocalCopy, is_network
from ot_notebook.services.store_file import APPLICATION, SCHEMA, VERSION, check, upgrade
from ot_notebook.services.store_file import FILE as FILE
from ot_notebook.services.store_file import StoreError as StoreError

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import TypeAdapter

Floats = npt.NDArray[np.float64]

SERIES = (
    "loss",
    "smooth_loss",
    "corrected_loss",
    "learning_rate",
    "grad_norm",
    "images_per_second",
)
"""Curves that `RunStore.curves` gives."""

METRICS = ("step", "epoch", "time", *SERIES, "steps_per_second", "peak_memory")
"""Columns of `RunStore.metrics`, in order."""

NEWS = 5000
"""Steps that `RunStore.since` gives at once."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the store knows it."""

    id: str
    started: float
    """Seconds since 1970."""
    ended: float | None
    state: str
    config: dict[str, Any]
    workspace: Path
    parent: str | None
    """The run that it went on from."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in what a run has said."""

    number: int
    """Of an event that is no step."""
    step: int


class RunStore:
    """The runs of one workspace. Any thread may call it; another process may read meanwhile.

    Args:
        path: the file; its folder exists. It is made with the first run. On a network drive it is
            a copy, renewed twice a minute and on `close`, of a file on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._copy = LocalCopy(self.path) if is_network(self.path.parent) else None
        self.behind = ""
        """Why the file on a network drive is not up to date, in words; empty if it is."""
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._keys: dict[str, int] = {}

    # ---------------------------------------------------------------- writing

    def begin(
        self, run: str, config: dict[str, Any], now: float, parent: str | None = None
    ) -> None:
        """Enter a run; `parent` is the one it goes on from.

        Raises:
            StoreError: if the file is no store of ours or cannot be written.
        """
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO runs (id, started, state, config, parent) VALUES (?, ?, 'idle', ?, ?)",
                (run, now, json.dumps(config), parent),
            )

    def append(self, run: str, events: Sequence[tuple[float, Event]]) -> None:
        """Keep events of a run with their times: all of them, or none and an error.

        Raises:
            StoreError: if they cannot be written; the caller still has them.
        """
        with self._writing() as connection:
            key = self._key(run, connection)
            steps: dict[int, dict[str, Any]] = {}
            others = []
            for at, event in events:
                if isinstance(event, (LossUpdate, Progress)):
                    row = steps.setdefault(event.step, dict.fromkeys(_COLUMNS))
                    row |= {"run": key, "time": at, **_numbers(event)}
                else:
                    others.append((key, at, event.name, self._dump(event)))
                if isinstance(event, TrainingState):
                    ended = at if event.state in ENDED else None
                    connection.execute(
                        "UPDATE runs SET state = ?, ended = ? WHERE key = ?",
                        (event.state, ended, key),
                    )
            connection.executemany(_INSERT_STEP, steps.values())
            connection.executemany(
                "INSERT INTO events (run, time, name, body) VALUES (?, ?, ?, ?)", others
            )

    def delete(self, run: str) -> None:
        """Forget a run; its samples, backups and models stay.

        Raises:
            KeyError: if there is no such run.
        """
        with self._writing() as connection:
            key = self._key(run, connection)
            for table in ("metrics", "events", "curves"):
                connection.execute(f"DELETE FROM {table} WHERE run = ?", (key,))  # noqa: S608
            connection.execute("DELETE FROM runs WHERE key = ?", (key,))
            del self._keys[run]

    def close(self) -> None:
        """Let go of the file; a later call opens it again."""
        with self._lock, self._plain_errors():
            if self._connection is None:
                return
            try:
                if self._copy is not None:
                    self._copy.push(self._connection, now=True)
                with suppress(sqlite3.OperationalError):  # somebody reads: the last to leave tidies
                    self._connection.execute("PRAGMA journal_mode = DELETE")  # one plain file
            finally:
                self._connection.close()
                self._connection = None

    # ---------------------------------------------------------------- reading

    def runs(self) -> list[StoredRun]:
        """Every run, oldest first; none if there is no file yet."""
        if not self.path.exists():
            return []
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT id, started, ended, state, config, parent FROM runs ORDER BY key"
            ).fetchall()
        return [
            StoredRun(name, started, ended, state, json.loads(config), self.path.parent, parent)
            for name, started, ended, state, config, parent in rows
        ]

    def run(self, run: str) -> StoredRun:
        """One run.

        Raises:
            KeyError: if there is no such run; names those that exist.
        """
        found = {each.id: each for each in self.runs()}
        if run not in found:
            raise KeyError(f"No run {run!r} in {self.path}; it holds {', '.join(found) or 'none'}.")
        return found[run]

    def has(self, run: str) -> bool:
        """Whether there is such a run."""
        return any(each.id == run for each in self.runs())

    def events(self, run: str, *names: str) -> list[tuple[float, Event]]:
        """Events of a run with their times, in order: all but steps, or the kinds named."""
        wanted = f"AND name IN ({', '.join('?' * len(names))})" if names else ""
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT time, name, body FROM events WHERE run = ? {wanted} ORDER BY number",  # noqa: S608
                (self._key(run, connection), *names),
            ).fetchall()
        return [(at, self._load(name, body)) for at, name, body in rows]

    def metrics(self, run: str) -> pd.DataFrame:
        """One row a step, with the columns `METRICS`.

        Where several parts train there is a column `learning_rate.<part>` for each of them, too.
        """
        import pandas as pd

        columns = ", ".join(METRICS)
        with self._reading() as connection:
            key = self._key(run, connection)
            frame: pd.DataFrame = pd.read_sql_query(
                f"SELECT {columns}, learning_rates FROM metrics WHERE run = ? ORDER BY step",  # noqa: S608
                connection,
                params=(key,),
            )
        several = frame.pop("learning_rates")
        if len(several) and several.notna().all():
            parts = pd.json_normalize(several.map(json.loads).tolist())
            frame = frame.join(parts.add_prefix("learning_rate."))
        return frame

    def first_step(self, run: str) -> int | None:
        """The first step that a run took."""
        with self._reading() as connection:
            key = self._key(run, connection)
            row = connection.execute("SELECT min(step) FROM metrics WHERE run = ?", (key,))
            step: int | None = row.fetchone()[0]
        return step

    def save_curves(self, run: str, curves: Mapping[str, tuple[Floats, Floats]]) -> None:
        """Keep curves of a long run as they are drawn, so that `curves` need not read every step.

        Raises:
            StoreError: if they cannot be written; nothing is lost but time.
        """
        with self._writing() as connection:
            key = self._key(run, connection)
            connection.executemany(
                "INSERT OR REPLACE INTO curves VALUES (?, ?, ?, ?, ?)",
                [
                    (key, name, int(steps[-1]), steps.tobytes(), values.tobytes())
                    for name, (steps, values) in curves.items()
                    if len(steps)
                ],
            )

    def curves(self, run: str) -> Iterator[tuple[str, Floats, Floats]]:
        """Name, steps and values of each series: those kept, and the steps taken since."""
        with self._reading() as connection:
            key = self._key(run, connection)
            last = 0
            for name, last_step, steps, values in connection.execute(
                'SELECT name, last_step, steps, "values" FROM curves WHERE run = ?', (key,)
            ):
                last = last_step
                yield name, np.frombuffer(steps), np.frombuffer(values)
            rows = connection.execute(
                f"SELECT step, {', '.join(SERIES)}, learning_rates FROM metrics "  # noqa: S608
                "WHERE run = ? AND step > ? AND loss IS NOT NULL ORDER BY step",
                (key, last),
            ).fetchall()
        if not rows:
            return
        numbers = np.array([row[:-1] for row in rows], float)
        for place, name in enumerate(SERIES, start=1):
            if not np.isnan(numbers[:, place]).all():
                yield name, numbers[:, 0], numbers[:, place]
        if rows[0][-1] is not None:
            rates = [json.loads(row[-1]) for row in rows]
            for part in rates[0]:
                values = np.array([rate.get(part, np.nan) for rate in rates], float)
                yield f"learning_rate.{part}", numbers[:, 0], values

    def last_progress(self, run: str) -> tuple[float, Progress] | None:
        """Where a run was when it was last heard of, and when that was."""
        names = ", ".join(_PROGRESS)
        with self._reading() as connection:
            row = connection.execute(
                f"SELECT time, {names} FROM metrics "  # noqa: S608
                "WHERE run = ? AND max_step IS NOT NULL ORDER BY step DESC LIMIT 1",
                (self._key(run, connection),),
            ).fetchone()
        return (row[0], Progress(*row[1:])) if row else None

    def since(self, run: str, mark: Mark) -> tuple[list[tuple[float, Event]], Mark]:
        """What a run has said since `mark`, steps first and `NEWS` at most; and the next mark."""
        own = ("grad_norm", "images_per_second", "peak_memory", "learning_rates", "corrected_loss")
        columns = (*_PROGRESS, *own)
        with self._reading() as connection:
            key = self._key(run, connection)
            rows = connection.execute(
                f"SELECT time, {', '.join(columns)} FROM metrics WHERE run = ? AND step > ? "  # noqa: S608
                "AND loss IS NOT NULL AND max_step IS NOT NULL ORDER BY step LIMIT ?",
                (key, mark.step, NEWS),
            ).fetchall()
            said = connection.execute(
                "SELECT number, time, name, body FROM events WHERE run = ? AND number > ? "
                "ORDER BY number",
                (key, mark.number),
            ).fetchall()
        news = [(row[0], event) for row in rows for event in _step_events(columns, row[1:])]
        news += [(at, self._load(name, body)) for _, at, name, body in said]
        step = rows[-1][1] if rows else mark.step
        return news, Mark(said[-1][0] if said else mark.number, step)

    def mark(self, run: str) -> Mark:
        """The end of what a run has said so far."""
        with self._reading() as connection:
            key = self._key(run, connection)
            number, step = connection.execute(
                "SELECT (SELECT max(number) FROM events WHERE run = :run), "
                "(SELECT max(step) FROM metrics WHERE run = :run)",
                {"run": key},
            ).fetchone()
        return Mark(number or 0, step or 0)

    # Paths inside the workspace are kept relative to it: a copy on another machine finds its own.

    def _dump(self, event: Event) -> str:
        root = self.path.parent
        inside = {
            name: path.relative_to(root)
            for name, path in _paths(event).items()
            if path.is_relative_to(root)
        }
        return json.dumps(_adapters()[event.name].dump_python(_moved(event, inside), mode="json"))

    def _load(self, name: str, body: str) -> Event:
        event = _adapters()[name].validate_python(json.loads(body))
        root = self.path.parent
        return _moved(event, {name: root / path for name, path in _paths(event).items()})

    # ---------------------------------------------------------------- the file

    def _key(self, run: str, connection: sqlite3.Connection) -> int:
        if run not in self._keys:
            row = connection.execute("SELECT key FROM runs WHERE id = ?", (run,)).fetchone()
            if row is None:
                raise KeyError(f"No run {run!r} in {self.path}.")
            self._keys[run] = row[0]
        return self._keys[run]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction on the one connection that writes."""
        with self._lock, self._plain_errors():
            if self._connection is not None and not self.path.exists():
                self._connection.close()
                self._connection = None
                raise StoreError(
                    f"{self.path} was removed while it was in use. A new one begins here."
                )
            if self._connection is None:
                self._keys.clear()
                self._connection = self._open()
            with self._connection:  # commits, or rolls back on an error
                yield self._connection
            self._renew_copy(self._copy, self._connection)

    def _renew_copy(self, copy: LocalCopy | None, connection: sqlite3.Connection) -> None:
        if copy is None:
            return
        try:
            copy.push(connection)
            self.behind = ""
        except OSError as error:
            self.behind = f"{self.path} cannot be renewed: {error}. {copy.file} has everything."

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._plain_errors():
            if not self.path.exists():
                raise StoreError(f"{self.path} does not exist. No run has used this workspace yet.")
            if self._copy is None:
                uri = f"{self.path.as_uri()}?mode=ro"
            elif self._connection is not None:
                uri = f"{self._copy.file.as_uri()}?mode=ro"
            else:
                uri = f"{self.path.as_uri()}?immutable=1"  # replaced whole, never written to
            with closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
                check(connection, self.path)
                yield connection

    def _open(self) -> sqlite3.Connection:
        file = self.path
        if self._copy is not None:
            self._copy.fetch()
            file = self._copy.file
        connection = sqlite3.connect(file, timeout=5, check_same_thread=False)
        try:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                connection.executescript(
                    f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"
                    f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;"  # another may do so at once
                )
            upgrade(connection)
            check(connection, self.path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # with WAL a crash tears nothing
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                fix = "Free some disk space, or choose a workspace_dir that you may write to."
            else:
                fix = "Move that file away, or choose another workspace_dir."
            raise StoreError(f"{self.path} cannot be used: {error}. {fix}") from error
        except OSError as error:
            fix = "Free some space there, or choose another workspace_dir."
            raise StoreError(f"{self.path} cannot be written: {error}. {fix}") from error


_PROGRESS = tuple(field.name for field in fields(Progress))
_COLUMNS = (
    "run",
    "time",
    *_PROGRESS,
    "grad_norm",
    "images_per_second",
    "peak_memory",
    "learning_rates",
    "corrected_loss",
)

# A step's two events may come in different batches: the later one fills in what is missing.
_INSERT_STEP = (
    f"INSERT INTO metrics ({', '.join(_COLUMNS)}) "  # noqa: S608 - column names of this file
    f"VALUES ({', '.join(f':{name}' for name in _COLUMNS)}) ON CONFLICT (run, step) DO UPDATE SET "
    + ", ".join(f"{name} = coalesce(excluded.{name}, {name})" for name in _COLUMNS[1:])
)


def _numbers(event: LossUpdate | Progress) -> dict[str, Any]:
    """Columns of a step's event. Rates of parts are kept apart only where there are several."""
    if isinstance(event, Progress):
        return {name: getattr(event, name) for name in _PROGRESS}
    rates = event.learning_rate
    return {
        "step": event.step,
        "epoch": event.epoch,
        "loss": event.loss,
        "smooth_loss": event.smooth_loss,
        "corrected_loss": event.corrected_loss,
        "learning_rate": max(rates.values(), default=None),
        "grad_norm": event.grad_norm,
        "images_per_second": event.images_per_second,
        "peak_memory": event.peak_memory,
        "learning_rates": json.dumps(rates) if len(rates) > 1 else None,
    }


def _step_events(columns: Sequence[str], row: Sequence[Any]) -> tuple[Event, Event]:
    """A step's two events, from its columns."""
    values = dict(zip(columns, row, strict=True))
    several = values["learning_rates"]
    update = LossUpdate(
        values["step"],
        values["epoch"],
        values["loss"],
        values["smooth_loss"],
        json.loads(several) if several else {"all": values["learning_rate"] or 0.0},
        values["grad_norm"] or 0.0,
        values["images_per_second"] or 0.0,
        values["peak_memory"] or 0,
        values["corrected_loss"],
    )
    return update, Progress(*(values[name] for name in _PROGRESS))


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    """For each event name, what turns it into JSON and back."""
    from pydantic import TypeAdapter

    return {name: TypeAdapter(kind) for name, kind in EVENT_TYPES.items()}


def _paths(event: Event) -> dict[str, Path]:
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return {name: value for name, value in values.items() if isinstance(value, Path)}


def _moved(event: Any, paths: dict[str, Path]) -> Event:
    """`event` with other paths."""
    moved: Event = replace(event, **paths)
    return moved
