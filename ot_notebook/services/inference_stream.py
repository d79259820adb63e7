"""A picture as a loop sees it: what there is of it after each step, and then the whole."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ot_notebook.services.inference_request import refused
from ot_notebook.services.inference_result import Preview, Result

if TYPE_CHECKING:
    from ot_notebook.services.inference_service import InferenceService


def stream(
    service: InferenceService, prompt: str, every: int, settings: Mapping[str, Any]
) -> Iterator[Preview | Result]:
    """Draw on a thread of its own, and give what comes; leaving the loop cancels the picture."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise refused("every", f"every is {every!r}, but must be a count of steps.", "Use 1.")
    found: queue.SimpleQueue[Preview | Result | BaseException] = queue.SimpleQueue()
    shown: Preview | Result | BaseException | None = None

    started, left = threading.Event(), threading.Event()

    def seen(preview: Preview) -> None:
        started.set()
        if left.is_set():
            service.cancel()
        elif preview.step % every == 0:
            found.put(preview)

    def draw() -> None:
        try:
            found.put(service.generate(prompt, preview=seen, **settings))
        except BaseException as error:  # noqa: BLE001 - raised where the loop is
            found.put(error)

    worker = threading.Thread(target=draw, name="ot-inference-stream", daemon=True)
    worker.start()
    try:
        while isinstance(shown := found.get(), Preview):
            yield shown
        if isinstance(shown, BaseException):
            raise shown
        yield shown
    finally:
        left.set()  # not a cancel: while this picture waits in line, that would end another's
        if started.is_set():
            worker.join()
