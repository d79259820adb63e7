"""The one way into a running trainer: requests from any thread, taken at step boundaries."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modules.config import SampleConfig

if TYPE_CHECKING:
    from modules.families.base import Family, Parts

    Use = Callable[[Family, Parts], None]
    """What is done with the live networks."""


@dataclass(frozen=True, slots=True)
class SampleDefault:
    """Make the samples that the run's sample definitions describe."""


@dataclass(frozen=True, slots=True)
class SampleCustom:
    """Make one sample from a definition of its own."""

    sample: SampleConfig


@dataclass(frozen=True, slots=True)
class Backup:
    """Write a resumable checkpoint."""


@dataclass(frozen=True, slots=True)
class Save:
    """Write the model in its output format."""


@dataclass(frozen=True, slots=True)
class ChangeSetting:
    """Change one setting of the running config."""

    setting: str
    """Dotted name, such as "unet.learning_rate"."""
    value: Any


def nothing() -> None:
    """What is done where nobody asks to be told."""


@dataclass(frozen=True, slots=True)
class UseModel:
    """Do something with the live networks that leaves them as they are."""

    use: Use
    failed: Callable[[], None] = nothing
    """Called where it could not be done; the run has said why."""


Command = SampleDefault | SampleCustom | Backup | Save | ChangeSetting | UseModel


class TrainCommands:
    """Requests to a run. Every method returns at once and may be called from any thread.

    A stop is noticed within one step, also while the model loads and the cache is built. The other
    requests wait for the next step boundary and are served in order.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pending: deque[Command] = deque()
        self._stops = 0
        self._pause = self._waiting = False

    def stop(self) -> None:
        """End the run after the current step; a paused run ends at once.

        Asked again while the end waits for room on the disk, it gives up waiting.
        """
        with self._changed:
            self._stops += 1
            self._changed.notify_all()

    def sample_default(self) -> None:
        """Ask for the run's samples."""
        self._add(SampleDefault())

    def sample_custom(self, sample: SampleConfig) -> None:
        """Ask for one sample of your own."""
        self._add(SampleCustom(sample))

    def backup(self) -> None:
        """Ask for a resumable checkpoint."""
        self._add(Backup())

    def save(self) -> None:
        """Ask for the model file as it is now."""
        self._add(Save())

    def set(self, setting: str, value: Any) -> None:
        """Ask for another value of a setting, from the next step on.

        The run answers with `SettingChanged`, or with a warning that says why it cannot be.
        """
        self._add(ChangeSetting(setting, value))

    def use_model(self, use: Use, failed: Callable[[], None] = nothing) -> None:
        """Ask for a call of `use` with the live networks, on the thread that trains.

        Where they cannot be brought to the device, or `use` raises, the run warns, calls `failed`
        and goes on.
        """
        self._add(UseModel(use, failed))

    def pause(self) -> None:
        """Hold the run at the next step boundary; other requests are still served."""
        with self._changed:
            self._pause = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Let a paused run go on."""
        with self._changed:
            self._pause = False
            self._changed.notify_all()

    @property
    def stop_requested(self) -> bool:
        """Whether the run was asked to end."""
        return self._stops > 0

    @property
    def pause_requested(self) -> bool:
        """Whether the run was asked to hold."""
        return self._pause

    def take(self) -> Command | None:
        """The oldest pending request, or None. For the trainer."""
        with self._changed:
            return self._pending.popleft() if self._pending else None

    def wait_while_paused(self) -> None:
        """Block until there is something to do: a resume, a stop or a request. For the trainer."""
        with self._changed:
            self._changed.wait_for(lambda: self._stops or not self._pause or self._pending)

    @property
    def pending(self) -> bool:
        """Whether requests wait for the next step boundary."""
        return bool(self._pending)

    @property
    def waiting(self) -> bool:
        """Whether the run waits for room on the disk, which a further stop ends."""
        return self._waiting

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a stop is asked for meanwhile; whether it was. For the trainer."""
        with self._changed:
            before, self._waiting = self._stops, True
            try:
                return self._changed.wait_for(lambda: self._stops > before, seconds)
            finally:
                self._waiting = False

    def _add(self, command: Command) -> None:
        with self._changed:
            self._pending.append(command)
            self._changed.notify_all()
