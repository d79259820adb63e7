"""A run's numbers and samples as TensorBoard logs, under OneTrainer's names."""

from __future__ import annotations

import importlib.util
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from modules.training.events import Event, LossUpdate, SampleImage, TrainingState, ValidationLoss


def tensorboard_installed() -> bool:
    """Whether logs can be written here."""
    return importlib.util.find_spec("tensorboard") is not None


HAND_OVER_SECONDS = 1.0
"""How long events wait: to wake the writing thread at each step costs more than the rest of it."""
MOST_WAITING = 10_000
"""Records that may wait for the disk."""


class TensorBoardLog:
    """Writes one log folder. Its own thread writes to disk.

    Args:
        folder: of this run's log.
        with_samples: whether sample images are part of it.
    """

    def __init__(self, folder: Path, with_samples: bool) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(folder), max_queue_size=MOST_WAITING)
        self._with_samples = with_samples
        self._waiting: list[tuple[float, LossUpdate | ValidationLoss | SampleImage]] = []
        self._handed_over = time.monotonic()

    def write(self, event: Event) -> None:
        """Log what an event says, if it is one that TensorBoard shows."""
        if isinstance(event, LossUpdate | ValidationLoss | SampleImage):
            self._waiting.append((time.time(), event))
        waited = time.monotonic() - self._handed_over
        if waited >= HAND_OVER_SECONDS or isinstance(event, SampleImage | TrainingState):
            self._hand_over()

    def close(self) -> None:
        """Write what is left."""
        try:
            self._hand_over()
        finally:
            self._writer.close()

    def _hand_over(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._handed_over = time.monotonic()
        for moment, event in waiting:
            if values := list(self._values(event)):
                summary = self._summary(value=values)
                record = self._event(wall_time=moment, step=event.step, summary=summary)
                self._writer.add_event(record)

    def _values(self, event: LossUpdate | ValidationLoss | SampleImage) -> Iterator[Any]:
        if isinstance(event, SampleImage):
            if self._with_samples and event.index >= 0:
                tag = f"sample{event.index} - {event.prompt}"
                yield self._summary.Value(tag=tag, image=self._picture(event.path))
            return
        for tag, number in _numbers(event).items():
            yield self._summary.Value(tag=tag, simple_value=number)

    def _picture(self, path: Path) -> Any:
        with Image.open(path) as image:
            width, height = image.size
            encoded = io.BytesIO()
            image.save(encoded, "PNG")
        return self._summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue()
        )


def _numbers(event: LossUpdate | ValidationLoss) -> dict[str, float]:
    if isinstance(event, LossUpdate):
        return {
            "loss/train_step": event.loss,
            "smooth_loss/train_step": event.smooth_loss,
            **{f"lr/{part}": rate for part, rate in event.learning_rate.items()},
        }
    return {
        **{f"loss/validation_step/{concept}": loss for concept, loss in event.by_concept.items()},
        "loss/validation_step/total_average": event.loss,
        **({} if event.raw is None else {"loss/validation_step/without_ema": event.raw}),
    }
