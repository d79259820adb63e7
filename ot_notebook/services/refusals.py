"""Which command makes sense in which state of a run, and why another does not."""

from __future__ import annotations

from modules.training.events import State

LIVE: tuple[State, ...] = ("loading", "caching", "training", "paused", "sampling", "saving")
STEPPING: tuple[State, ...] = ("training", "paused", "sampling", "saving")


class CommandRefused(RuntimeError):  # noqa: N818 - an answer, not a defect
    """A command that makes no sense in the state the run is in; the text says why."""


def refusal(command: str, state: State) -> CommandRefused:
    """Why `command` is refused in `state`."""
    reason = {
        "idle": "no run has been started. Start one with start(config)",
        "stopping": "the run is stopping. Wait for its end",
        "paused": "the run is paused already",
        "loading": "the model is loading; no step has been taken. Wait, or stop the run",
        "caching": "the training set is being cached; no step has been taken. Wait, or "
        "stop the run",
    }.get(state, f"the run has {state}. Start another with start(config)")
    if command == "resume" and state in STEPPING:
        reason = "the run is not paused"
    return CommandRefused(f"{command} is refused: {reason}.")
