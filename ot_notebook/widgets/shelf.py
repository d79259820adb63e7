"""Samples of the run that is shown, and of others beside it, each under a number of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from PIL import Image, ImageChops

from modules.config import ConfigError, SampleConfig, TrainConfig
from modules.training.events import SampleImage
from ot_notebook.services.run import find_stores
from ot_notebook.services.run_store import StoreError
from ot_notebook.widgets.texts import MAX_PROMPT, brief
from ot_notebook.widgets.thumbnails import is_raw

if TYPE_CHECKING:
    import pandas as pd

    from ot_notebook.services.run import Run

PER_RUN = 1_000_000
"""Numbers that a run has; its samples are numbered in the order in which they came."""

MAX_RUNS = 60
"""Other runs that a page offers, newest first."""

MAX_LISTED = 20_000
"""Samples of a run that a page lists, newest first."""

Settings = Callable[[], TrainConfig]

COLUMNS = ("run", "step", "epoch", "prompt", "seed", "kind", "index", "path")


class Listed(TypedDict):
    """A sample as the page lists it; its picture is fetched when it comes into sight."""

    id: int
    prompt: str
    step: int
    epoch: int
    seed: int
    raw: bool


class OtherRun(TypedDict):
    """A run whose samples may be laid beside those that are shown."""

    key: str
    label: str


def listed(sample: SampleImage, number: int) -> Listed:
    """What a page needs to know of a sample before its picture."""
    return Listed(
        id=number,
        prompt=brief(sample.prompt, MAX_PROMPT),
        step=sample.step,
        epoch=sample.epoch,
        seed=sample.seed,
        raw=is_raw(sample),
    )


class Shelf:
    """Runs in the order in which they were put here, and their samples by number."""

    def __init__(self) -> None:
        self._runs: list[tuple[str, Sequence[SampleImage], Settings]] = []

    def put(self, run: str, samples: Sequence[SampleImage], settings: Settings) -> int:
        """Add a run, or its newer samples; gives the number of its first one.

        Args:
            run: its id.
            samples: oldest first; of a run that is here already, the same and those since.
            settings: gives what it was trained with.
        """
        for place, (name, *_) in enumerate(self._runs):
            if name == run:
                self._runs[place] = (run, samples, settings)
                return place * PER_RUN
        self._runs.append((run, samples, settings))
        return (len(self._runs) - 1) * PER_RUN

    def __getitem__(self, number: int) -> SampleImage:
        """The sample of a number.

        Raises:
            KeyError: if there is none.
        """
        return self._find(number)[1]

    def definition(self, number: int) -> SampleConfig:
        """The settings that a sample was drawn with, as far as its run tells.

        Raises:
            KeyError: if there is no such sample.
        """
        place, sample = self._find(number)
        try:
            samples = self._runs[place][2]().samples or ()
        except ConfigError:  # of another version: prompt and seed are known all the same
            samples = ()
        known = samples[sample.index] if 0 <= sample.index < len(samples) else SampleConfig()
        return known.update(prompt=sample.prompt, seed=sample.seed, random_seed=False, enabled=True)

    def frame(self, numbers: Iterable[int]) -> pd.DataFrame:
        """One row a sample, with the columns `COLUMNS`."""
        import pandas as pd

        rows = []
        for number in numbers:
            place, sample = self._find(number)
            values = {**asdict(sample), "run": self._runs[place][0], "path": str(sample.path)}
            rows.append({name: values[name] for name in COLUMNS})
        frame: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
        return frame

    def _find(self, number: int) -> tuple[int, SampleImage]:
        place, index = divmod(number, PER_RUN)
        if not 0 <= place < len(self._runs) or index >= len(self._runs[place][1]):
            raise KeyError(f"There is no sample {number} here.")
        return place, self._runs[place][1][index]


def other_runs(shown: Run | None) -> list[OtherRun]:
    """Runs with samples: those of the workspace of `shown`, and those below the current folder."""
    stores = {store.path: store for store in find_stores()}
    if shown is not None:
        stores[shown.store.path] = shown.store
    found = []
    for store in stores.values():
        try:
            runs = [run for run in store.runs() if store.events(run.id, "sample")]
        except StoreError:
            continue  # `ot.runs` says what is amiss with it
        found += [(run.started, run.workspace, run.id) for run in runs]
    found.sort(reverse=True, key=lambda one: one[0])
    return [
        OtherRun(key=f"{folder}|{name}", label=brief(f"{name} in {folder.name}", 120))
        for _, folder, name in found[:MAX_RUNS]
        if shown is None or name != shown.id
    ]


def samples_of(key: str) -> tuple[str, list[SampleImage], Settings]:
    """Id, samples and settings of a run that `other_runs` named.

    Raises:
        KeyError, FileNotFoundError, StoreError: if it is gone.
    """
    folder, _, name = key.rpartition("|")
    (store,) = find_stores(folder)
    run = store.run(name)
    events = (event for _, event in store.events(name, "sample"))
    samples = [event for event in events if isinstance(event, SampleImage)]
    return name, samples, lambda: TrainConfig.load(run.config)[0]


def difference(one: Path, other: Path, gain: float = 4.0) -> Image.Image:
    """Where two pictures differ: the distance of each channel times `gain`, black where equal.

    The second is brought to the size of the first.

    Raises:
        OSError: if one of them cannot be read.
    """
    with Image.open(one) as a, Image.open(other) as b:
        first = a.convert("RGB")
        second = b.convert("RGB").resize(first.size)
    return ImageChops.difference(first, second).point(lambda value: min(255, value * gain))
