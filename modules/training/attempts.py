"""Work that may fail without taking the run with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from modules.config import ConfigError
from modules.training.advice import advice_for, is_disk_full
from modules.training.events import Event, Warned

Result = TypeVar("Result")

TRIES, WAIT = 20, 30.0
"""How often, and seconds apart, what must be written is written to a disk that is full."""


def attempt(action: Callable[[], None], words: str, emit: Callable[[Event], None]) -> bool:
    """Do something and report a failure as a warning; whether it was done.

    Raises:
        FloatingPointError: passed on; the steps so far were no numbers, and the run gives up.
    """
    try:
        action()
    except FloatingPointError:
        raise
    except ConfigError as error:
        emit(Warned(f"Could not {words}: {error} Training goes on."))
        return False
    except Exception as error:  # noqa: BLE001 - no night of training ends over a picture
        what = f"{type(error).__name__}: {error}".rstrip(".")
        emit(Warned(f"Could not {words}: {what}. {advice_for(error)} Training goes on."))
        return False
    return True


def patiently(
    action: Callable[[], Result],
    what: str,
    emit: Callable[[Event], None],
    wait: Callable[[float], bool],
) -> Result:
    """Write what a run cannot do without: while the disk is full, again and again for some minutes.

    Args:
        action: the writing.
        what: is written, in words that begin a sentence.
        emit: is told of each failure.
        wait: waits so many seconds; whether it was told to wait no more, so that one try is left.

    Raises:
        Exception: what the last try, or a failure of another kind, raised.
    """
    left = TRIES - 1
    while True:
        try:
            return action()
        except Exception as error:
            if not (is_disk_full(error) and left):
                raise
            reason = str(error).rstrip(".")
            emit(
                Warned(
                    f"{what} could not be written: {reason}. Free some space: it is tried again in "
                    f"{WAIT:.0f} seconds, {left} more times. Stop ends the wait."
                )
            )
        left = 0 if wait(WAIT) else left - 1
