"""A training step with the studio attached against the same step headless, in a live kernel.

Runs alternate in one kernel: a bare trainer on a thread, and this kernel's service with the whole
studio displayed. This process is the front end: it reads every message, and its heartbeat asks for
news twice a second, as the page's does. `python benchmarks/dashboard_cost.py`.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path
from queue import Empty
from typing import Any

import typer
from jupyter_client import KernelManager

WARM_STEPS = 20
"""Steps at the beginning of a run that are not counted."""


class Marks:
    """Notes wall time and the training thread's own CPU time at two steps of a run."""

    def __init__(self, last: int) -> None:
        self._last = last
        self._at: list[tuple[float, float]] = []

    def read(self, event: Any) -> None:
        """A callback, called on the training thread."""
        if type(event).__name__ == "LossUpdate" and event.step in (WARM_STEPS, self._last):
            self._at.append((time.perf_counter(), time.thread_time()))

    def per_step(self) -> tuple[float, float]:
        """Seconds of wall time and of CPU time a step took."""
        (wall, cpu), (wall_end, cpu_end) = self._at
        steps = self._last - WARM_STEPS
        return (wall_end - wall) / steps, (cpu_end - cpu) / steps


def measure(rounds: int, steps: int, folder: str) -> None:
    """In the kernel: run both in turn and print a JSON line of their times."""
    import torch
    from IPython.display import display

    import ot_notebook as ot
    from modules import GenericTrainer, TrainCallbacks, TrainCommands
    from ot_notebook.services.executors.thread import ThreadExecutor
    from ot_notebook.services.trainer_service import TrainerService

    torch.set_num_threads(1)
    total = WARM_STEPS + steps
    job = ot.JobConfig("emoji LoRA")
    # a generous number of epochs: each run is stopped at its last step
    job.update(
        workspace_dir=folder,
        cache_dir=f"{folder}/cache",
        output_model_destination=f"{folder}/lora.safetensors",
        sample_after_unit="NEVER",
        backup_before_save=False,
        tensorboard=False,
        epochs=max(1, total // 12 + 1),
    )

    def headless() -> tuple[float, float]:
        marks, commands = Marks(total), TrainCommands()

        def read(event: Any) -> None:
            marks.read(event)
            if type(event).__name__ == "LossUpdate" and event.step >= total:
                commands.stop()

        trainer = GenericTrainer(job.config, TrainCallbacks(on_event=read), commands)
        thread = threading.Thread(target=trainer.run)
        thread.start()
        thread.join()
        return marks.per_step()

    marks = Marks(total)

    def execute(config: Any, emit: Any, commands: Any, done: Any) -> Any:
        def read(event: Any) -> None:
            emit(event)
            marks.read(event)
            if type(event).__name__ == "LossUpdate" and event.step >= total:
                commands.stop()

        return ThreadExecutor(config, read, commands, done)

    service = TrainerService(execute)
    studio = ot.studio(job, service=service, mode="rich")
    display(studio)
    print(json.dumps({"comm": studio.dashboard._panel.model_id}), flush=True)

    def attached() -> tuple[float, float]:
        nonlocal marks
        marks = Marks(total)
        service.start(job.config).wait()
        return marks.per_step()

    times: dict[str, list[tuple[float, float]]] = {"headless": [], "attached": []}
    for number in range(rounds):
        both = [("headless", headless), ("attached", attached)]
        for name, block in both if number % 2 else reversed(both):
            times[name].append(block())
    print(json.dumps(times), flush=True)


def main(rounds: int = 6, steps: int = 120) -> None:
    """Print the step time with and without the studio, and their ratio."""
    manager = KernelManager(transport="ipc")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    answers: list[dict[str, Any]] = []
    messages = 0
    with tempfile.TemporaryDirectory() as folder:
        here = str(Path(__file__).parent)
        client.execute(
            f"import sys; sys.path.insert(0, {here!r}); import dashboard_cost; "
            f"dashboard_cost.measure({rounds}, {steps}, {folder!r})"
        )
        beaten = time.monotonic()
        while len(answers) < 2:
            if answers and time.monotonic() - beaten > 0.5:
                beaten = time.monotonic()
                beat = {"method": "custom", "content": {"op": "beat", "client": "bench"}}
                content = {"comm_id": answers[0]["comm"], "data": beat}
                client.shell_channel.send(client.session.msg("comm_msg", content))
            try:
                message = client.get_iopub_msg(timeout=0.1)
            except Empty:
                continue
            messages += message["msg_type"] == "comm_msg"
            if message["msg_type"] == "error":
                raise RuntimeError("\n".join(message["content"]["traceback"]))
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                lines = message["content"]["text"].splitlines()
                answers += [json.loads(line) for line in lines if line.startswith("{")]
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    times = answers[1]
    print(f"machine  {platform.machine()}, 1 torch thread, {messages} messages to the page")
    for index, kind in enumerate(("wall", "CPU of the training thread")):
        with_it = [pair[index] for pair in times["attached"]]
        without = [pair[index] for pair in times["headless"]]
        ratios = [a / b for a, b in zip(with_it, without, strict=True)]
        print(
            f"{kind}: headless {statistics.median(without) * 1e3:.2f}, attached "
            f"{statistics.median(with_it) * 1e3:.2f} ms/step, ratio "
            f"{statistics.median(ratios):.3f} (least {min(ratios):.3f}, most {max(ratios):.3f}, "
            f"{rounds} rounds of {steps} steps)"
        )


if __name__ == "__main__":
    typer.run(main)
