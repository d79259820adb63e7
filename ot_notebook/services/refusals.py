"""Which command makes sense in which state of a run, and why another does not."""

from __future__ import annotations

from modules.training.events import State

LIVE: tuple[State, ...] = ("loading", "caching", "training", "paused", "sampling", "saving")
STEPPING: tuple[State, ...] = ("training", "paused", "sampling", "saving")


class CommandRefused(RuntimeError):  # noqa: N818 - an answer, not a defect
    """A command that makes no sense in the state the run is in; the text says why."""


def refusal(command: str, state: State, of_model: bool = False) -> CommandRefused:
    """Why `command` is refused in `state`.

    Args:
        command: what was asked, as people write it.
        state: that of the run.
        of_model: whether the model that trains was asked for.
    """
    waits = "no step has been taken. Wait, or stop the run"
    if of_model:
        waits = "its model can be used once it takes steps"
    reason = {
        "idle": "no run has been started. Start one with start(config)",
        "stopping": "the run is stopping. Wait for its end",
        "paused": "the run is paused already",
        "loading": f"the run is still loading; {waits}",
        "caching": f"the run is still caching its training set; {waits}",
    }.get(state, f"the run has {state}. Start another with start(config)")
    if command == "resume" and state in STEPPING:
        reason = "the run is not paused"
    return CommandRefused(f"{command} is refused: {reason}.")
