"""A run's numbers and samples as TensorBoard logs, under OneTrainer's names."""

from __future__ import annotations

import importlib.util
import io
import time
from pathlib import Path
from typing import Any

from PIL import Image

from modules.training.events import Event, LossUpdate, SampleImage, ValidationLoss


def tensorboard_installed() -> bool:
    """Whether logs can be written here."""
    return importlib.util.find_spec("tensorboard") is not None


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
        self._writer = EventFileWriter(str(folder))
        self._with_samples = with_samples

    def write(self, event: Event) -> None:
        """Log what an event says, if it is one that TensorBoard shows."""
        value = self._summary.Value
        if isinstance(event, LossUpdate):
            numbers = {
                "loss/train_step": event.loss,
                "smooth_loss/train_step": event.smooth_loss,
                **{f"lr/{part}": rate for part, rate in event.learning_rate.items()},
            }
            self._add(event.step, [value(tag=k, simple_value=v) for k, v in numbers.items()])
        elif isinstance(event, ValidationLoss):
            numbers = {
                **{f"loss/validation_step/{k}": v for k, v in event.by_concept.items()},
                "loss/validation_step/total_average": event.loss,
            }
            self._add(event.step, [value(tag=k, simple_value=v) for k, v in numbers.items()])
        elif isinstance(event, SampleImage) and self._with_samples and event.index >= 0:
            tag = f"sample{event.index} - {event.prompt}"
            self._add(event.step, [value(tag=tag, image=self._picture(event.path))])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _add(self, step: int, values: list[Any]) -> None:
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def _picture(self, path: Path) -> Any:
        with Image.open(path) as image:
            width, height = image.size
            encoded = io.BytesIO()
            image.save(encoded, "PNG")
        return self._summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue()
        )
