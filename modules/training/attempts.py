"""Work that may fail without taking the run with it."""

from __future__ import annotations

from collections.abc import Callable

from modules.training.advice import advice_for, is_disk_full
from modules.training.events import Event, Warned

TRIES, WAIT = 20, 30.0
"""How often, and seconds apart, the final model is written to a disk that is full."""


def attempt(action: Callable[[], None], words: str, emit: Callable[[Event], None]) -> bool:
    """Do something and report a failure as a warning; whether it was done.

    Raises:
        FloatingPointError: passed on; the steps so far were no numbers, and the run gives up.
    """
    try:
        action()
    except FloatingPointError:
        raise
    except Exception as error:  # noqa: BLE001 - no night of training ends over a picture
        what = f"{type(error).__name__}: {error}".rstrip(".")
        emit(Warned(f"Could not {words}: {what}. {advice_for(error)} Training goes on."))
        return False
    return True


def patiently(
    action: Callable[[], None], emit: Callable[[Event], None], wait: Callable[[float], object]
) -> None:
    """Write what must not be lost: while the disk is full, again and again for some minutes.

    Args:
        action: the writing.
        emit: is told of each failure.
        wait: waits so many seconds.

    Raises:
        Exception: what the last try, or a failure of another kind, raised.
    """
    for left in reversed(range(TRIES)):
        try:
            action()
        except Exception as error:
            if not (is_disk_full(error) and left):
                raise
            emit(
                Warned(
                    f"The final model could not be written: {error}. Free some space: it is tried "
                    f"again in {WAIT:.0f} seconds, {left} more times."
                )
            )
            wait(WAIT)
        else:
            return
