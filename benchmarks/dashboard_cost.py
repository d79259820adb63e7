"""A training step with the studio on the page against the same step without, in a live kernel.

One run, in which the studio is displayed and closed in turn, every few seconds: this machine's mood
changes more slowly than that. This process is the front end: it reads every message, and its
hearts ask for news as the page's do, that of the dashboard twice a second. The kernel's main thread
is idle, as it is while a person watches. `python benchmarks/dashboard_cost.py`.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import threading
import time
import traceback
from pathlib import Path
from queue import Empty
from typing import Any

import typer
from jupyter_client import KernelManager

SETTLE = 20
"""Steps after each change that are not counted: showing the studio takes a second or two."""

KINDS = ("wall", "CPU of the training thread", "CPU of all other threads")


def measure(rounds: int, steps: int, folder: str) -> None:
    """In the kernel: train, show and close the studio in turn, print JSON lines of the times."""
    import torch
    from IPython.display import display

    import ot_notebook as ot
    from ot_notebook.services.executors.thread import ThreadExecutor
    from ot_notebook.services.trainer_service import TrainerService

    torch.set_num_threads(1)
    block = SETTLE + steps
    job = ot.JobConfig("emoji LoRA", mode="rich")
    job.update(
        workspace_dir=folder,
        cache_dir=f"{folder}/cache",
        output_model_destination=f"{folder}/lora.safetensors",
        sample_after_unit="NEVER",
        backup_before_save=False,
        tensorboard=False,
        epochs=2 * rounds * block // 12 + 10,  # it is stopped before that
    )
    marks: list[tuple[float, float, float]] = []

    def execute(config: Any, emit: Any, commands: Any, done: Any) -> Any:
        def read(event: Any) -> None:
            emit(event)
            if type(event).__name__ == "LossUpdate":
                own = time.thread_time()
                marks.append((time.perf_counter(), own, time.process_time() - own))

        return ThreadExecutor(config, read, commands, done)

    service = TrainerService(execute)
    run = service.start(job.config)
    times: dict[str, list[list[float]]] = {"without": [], "with": []}
    for number in range(2 * rounds + 1):  # the first block warms up
        attached = number % 2 == 1
        studio = ot.studio(job, service=service, mode="rich") if attached else None
        if studio is not None:
            display(studio)
            hearts = {
                studio.dashboard._panel.model_id: 0.5,
                studio.gallery._gallery.model_id: 1.0,
                job._front.model_id: 1.0,
                studio._bar._front.model_id: 2.0,
            }
            print(json.dumps({"hearts": hearts}), flush=True)
        begin = len(marks) + SETTLE
        while len(marks) <= begin:
            time.sleep(0.02)
        print(json.dumps({"watch": attached}), flush=True)
        while len(marks) <= begin + steps:
            time.sleep(0.02)
        print(json.dumps({"watch": False}), flush=True)
        if studio is not None:
            print(json.dumps({"hearts": {}}), flush=True)
            studio.close()
        if number:
            ends = zip(marks[begin], marks[begin + steps], strict=True)
            times["with" if attached else "without"].append([(b - a) / steps for a, b in ends])
    service.stop()
    run.wait()
    print(json.dumps({"times": times}), flush=True)


def begin(*arguments: Any) -> None:
    """Measure on a thread, so that the kernel's main thread serves the page."""

    def run() -> None:
        try:
            measure(*arguments)
        except Exception:  # noqa: BLE001 - told to the process that waits
            print(json.dumps({"failed": traceback.format_exc()}), flush=True)

    threading.Thread(target=run).start()


def main(rounds: int = 12, steps: int = 24) -> None:
    """Print the step time with and without the studio, and their ratio."""
    manager = KernelManager(transport="ipc")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    hearts: dict[str, float] = {}
    times: dict[str, list[list[float]]] = {}
    watch, messages = False, 0
    beaten: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        here = str(Path(__file__).parent)
        client.execute(
            f"import sys; sys.path.insert(0, {here!r}); import dashboard_cost; "
            f"dashboard_cost.begin({rounds}, {steps}, {folder!r})"
        )
        while not times:
            for comm, period in hearts.items():
                if time.monotonic() - beaten.get(comm, 0.0) < period:
                    continue
                beaten[comm] = time.monotonic()
                beat = {"method": "custom", "content": {"op": "beat", "client": "bench"}}
                content = {"comm_id": comm, "data": beat}
                client.shell_channel.send(client.session.msg("comm_msg", content))
            try:
                message = client.get_iopub_msg(timeout=0.1)
            except Empty:
                continue
            messages += watch and message["msg_type"] == "comm_msg"
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                for line in message["content"]["text"].splitlines():
                    said = json.loads(line)
                    if "failed" in said:
                        raise RuntimeError(said["failed"])
                    hearts, times = said.get("hearts", hearts), said.get("times", times)
                    watch = said.get("watch", watch)
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    watched = sum(wall for wall, *_ in times["with"]) * steps
    print(f"machine  {platform.machine()}, 1 torch thread, {rounds} rounds of {steps} steps")
    print(f"{messages / watched:.1f} messages to the page a second")
    for index, kind in enumerate(KINDS):
        shown = [block[index] for block in times["with"]]
        bare = [block[index] for block in times["without"]]
        ratios = [a / b for a, b in zip(shown, bare, strict=True)]
        print(
            f"{kind}: without {statistics.median(bare) * 1e3:.2f}, with "
            f"{statistics.median(shown) * 1e3:.2f} ms/step, ratio {statistics.median(ratios):.3f} "
            f"(least {min(ratios):.3f}, most {max(ratios):.3f})"
        )


if __name__ == "__main__":
    typer.run(main)
