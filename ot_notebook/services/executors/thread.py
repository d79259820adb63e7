"""Runs a trainer on a thread of this kernel: the only place that exposes the live model."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from modules.config import ConfigError, TrainConfig
from modules.training.callbacks import TrainCallbacks
from modules.training.commands import TrainCommands
from modules.training.events import ENDED, Event, RunFailed, StatusLine, TrainingState, Warned

if TYPE_CHECKING:
    from modules.training.trainer import GenericTrainer


class ThreadExecutor:
    """One run on one thread. It starts at once and says everything through `emit`.

    Args:
        config: what to train.
        emit: receives every event, on the training thread; the last one is an ended state.
        commands: requests to the run.
        done: called last of all, when the run has let go of its memory.
    """

    def __init__(
        self,
        config: TrainConfig,
        emit: Callable[[Event], None],
        commands: TrainCommands,
        done: Callable[[], None],
    ) -> None:
        self.trainer: GenericTrainer | None = None
        """The live trainer, from its construction to the end of the run."""
        self._config, self._commands = config, commands
        self._emit_on, self._done = emit, done
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="ot-training", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of the run; whether it has come."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            from modules.training.trainer import GenericTrainer  # brings torch: seconds, first time

            callbacks = TrainCallbacks(on_event=self._emit)
            self.trainer = GenericTrainer(self._config, callbacks, self._commands)
            self.trainer.run()
        except BaseException as error:  # noqa: BLE001 - the edge: it becomes a RunFailed
            self._report(error)
        finally:
            self.trainer = None
            self._done()

    def _emit(self, event: Event) -> None:
        if isinstance(event, TrainingState) and event.state in ENDED:
            self._ended = True
            while (late := self._commands.take()) is not None:
                words = f"{type(late).__name__} was asked for when the run had ended: not done."
                self._emit_on(Warned(words))
        self._emit_on(event)

    def _report(self, error: BaseException) -> None:
        """A failure that the trainer did not report itself: one before or after its run."""
        if self._ended:
            return
        if isinstance(error, ImportError):  # torch itself may be what is missing
            advice = "Install what is missing, restart the kernel and start again."
        else:
            from modules.training.advice import advice_for

            advice = advice_for(error)
        text = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        self._emit(RunFailed(text, advice, traceback.format_exc()))
        self._emit(StatusLine("Failed before the first step"))
        self._emit(TrainingState("failed"))
