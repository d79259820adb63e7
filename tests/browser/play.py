"""A run that a test can play in a kernel in no time: same events, same commands, no model."""

from __future__ import annotations

import math
import threading
import time

import ot_notebook as ot
from modules.training import events as e
from ot_notebook.services.trainer_service import TrainerService

PROMPTS = (
    "a fox, line art",
    "an alarm clock, line art",
    "a sailboat, line art",
    "a cake, line art",
)


class PlayedRun:
    """Loads, caches, takes steps, draws samples; answers stop, pause and sample."""

    trainer = None

    def __init__(self, emit, commands, done, steps, seconds):
        self._emit, self._commands, self._done = emit, commands, done
        self._steps, self._pause = steps, seconds / steps
        colour, line = (
            sorted(ot.assets.dataset(n).glob("*.png")) for n in ("pixel art", "line art")
        )
        self._pictures = (colour, line)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, timeout=None):
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self):
        self._emit(e.TrainingState("caching"))
        for number in range(10):
            self._emit(e.TaskProgress("caching", number + 1, 10))
        self._emit(e.TrainingState("training"))
        self._emit(e.StatusLine("Training"))
        self._sample(0)
        smooth = 0.3
        for step in range(1, self._steps + 1):
            if self._commands.pause_requested:
                self._emit(e.TrainingState("paused"))
                self._commands.wait_while_paused()
                self._emit(e.TrainingState("training"))
            if self._commands.stop_requested:
                break
            loss = 0.05 + 0.25 * math.exp(-3 * step / self._steps) + 0.03 * math.sin(step * step)
            smooth += 0.05 * (loss - smooth)
            self._step(step, loss, smooth)
            if step % 50 == 0 or self._commands.take() is not None:
                self._sample(step)
            time.sleep(self._pause)
        state = "stopped" if self._commands.stop_requested else "finished"
        self._emit(e.StatusLine(f"{state.capitalize()} after {step} steps"))
        self._emit(e.TrainingState(state))
        self._done()

    def _step(self, step, loss, smooth):
        rate, speed, left = 1e-3, 1 / self._pause, (self._steps - step) * self._pause
        epochs, (epoch, done) = -(-self._steps // 10), divmod(step - 1, 10)
        self._emit(e.LossUpdate(step, epoch + 1, loss, smooth, {"unet": rate}, 1.0, 8 * speed, 0))
        place = (step, self._steps, epoch + 1, epochs, done + 1, 10)
        self._emit(e.Progress(*place, loss, smooth, rate, speed, left))

    def _sample(self, step):
        for index, prompt in enumerate(PROMPTS):
            pictures = self._pictures[0 if step == 0 else 1]
            path = pictures[(index * 7 + step) % len(pictures)]
            self._emit(
                e.SampleImage("default", path, prompt, 42 + index, step, step // 10 + 1, index)
            )


def service(steps=300, seconds=6.0):
    """A trainer service whose runs are played."""
    return TrainerService(
        lambda _config, emit, commands, done: PlayedRun(emit, commands, done, steps, seconds)
    )
