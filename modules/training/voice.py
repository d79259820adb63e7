"""What a run says: events to its callbacks and its log, and each state and status line once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modules.training.advice import advice_for
from modules.training.callbacks import TrainCallbacks
from modules.training.events import Event, State, StatusLine, TrainingState, Warned
from modules.training.tensorboard import TensorBoardLog


class Voice:
    """The one mouth of a run.

    Args:
        callbacks: receive every event.
    """

    def __init__(self, callbacks: TrainCallbacks) -> None:
        self._tell = callbacks.emit
        self._log: TensorBoardLog | None = None
        self._state: State = "idle"
        self._status = ""

    def emit(self, event: Event) -> None:
        """Hand an event to the callbacks and the log; a log that cannot be written ends there."""
        self._tell(event)
        if self._log is not None:
            self._log_with(self._log.write, event)

    def warn(self, text: str) -> None:
        """Say what went otherwise than the settings say."""
        self.emit(Warned(text))

    def enter(self, state: State, text: str) -> None:
        """Say which state the run is in and what it does; nothing of what was said last."""
        if state != self._state:
            self._state = state
            self.emit(TrainingState(state))
        if text != self._status:
            self._status = text
            self.emit(StatusLine(text))

    def log_to(self, folder: Path, with_samples: bool) -> None:
        """Write a TensorBoard log of what is said from now on."""
        self._log = TensorBoardLog(folder, with_samples)

    def close(self) -> None:
        """End the log, if there is one."""
        if self._log is not None:
            self._log_with(self._log.close)
            self._log = None

    def _log_with(self, action: Callable[..., None], *event: Event) -> None:
        try:
            action(*event)
        except OSError as error:
            self._log = None
            self._tell(Warned(f"TensorBoard's log ends here: {error}. {advice_for(error)}"))
