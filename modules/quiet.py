"""Keeps libraries quiet while the engine uses them: it speaks through its events alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """A block in which diffusers and transformers draw no bars and log errors only.

    Their settings are of the whole process, so they are put back as they were.
    """
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    before = []
    for library in (diffusers, transformers):
        before.append((library, library.get_verbosity(), library.is_progress_bar_enabled()))
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
