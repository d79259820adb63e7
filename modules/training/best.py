"""The validation loss as a judge: when no better model comes, and which were the best."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modules.config import TrainConfig
from modules.training.events import Event, ModelSaved, StatusLine
from modules.training.places import Place, Workspace


class Best:
    """Remembers the lowest validation losses of a run, and keeps the models that had them.

    Args:
        workspace: where they are kept, in the folder `best`.
        write: writes the model as it is to the path that it is given.
        emit: is told what is kept, and why the run ends.
    """

    def __init__(
        self, workspace: Workspace, write: Callable[[Path], None], emit: Callable[[Event], None]
    ) -> None:
        self._workspace, self._write, self._emit = workspace, write, emit
        self._loss, self._step = math.inf, 0
        self._since = 0
        self._kept: list[tuple[float, str]] = []

    def judge(self, loss: float, place: Place, config: TrainConfig) -> None:
        """Note a validation loss, and keep the model if it is among the lowest.

        Args:
            loss: mean over the concepts.
            place: where in the run it was measured.
            config: says what counts as better, and how many models are kept.
        """
        own = config.ot
        if loss < self._loss - own.early_stop_min_delta or math.isinf(self._loss):
            self._loss, self._step, self._since = loss, place.step, 0
        else:
            self._since += 1
        if place.step and self._among_the_lowest(loss, own.keep_best):
            path = self._workspace.best(place)
            self._write(path)
            self._kept = sorted([*self._kept, (loss, path.name)])
            for _, name in self._kept[own.keep_best :]:
                _remove(path.with_name(name))
            self._kept = self._kept[: own.keep_best]
            kind = config.output_model_format.value
            self._emit(ModelSaved(path, kind, place.step, final=False))
        if self.over(own.early_stop_patience):
            self._emit(
                StatusLine(
                    f"The run ends at step {place.step}: the last {self._since} validations were "
                    f"no better than {self._loss:.5g} at step {self._step}"
                )
            )

    def over(self, patience: int) -> bool:
        """Whether so many validations in a row brought nothing better; never for 0."""
        return 0 < patience <= self._since

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to judge as the straight one."""
        return {"loss": self._loss, "step": self._step, "since": self._since, "kept": self._kept[:]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on judging from there."""
        self._loss, self._step, self._since = state["loss"], state["step"], state["since"]
        self._kept = [(loss, name) for loss, name in state["kept"]]

    def _among_the_lowest(self, loss: float, count: int) -> bool:
        if len(self._kept) < count:
            return not math.isnan(loss)
        return count > 0 and loss < self._kept[count - 1][0]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
