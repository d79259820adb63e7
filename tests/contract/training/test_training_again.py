"""Several runs in one process: each the same, and nothing stays behind."""

import gc
import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import modules
from modules.training import events as e


def weights(run):
    return load_file(run.of(e.ModelSaved)[0].path)


def assert_same_run(found, expected):
    assert found.losses == expected.losses
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_two_runs_in_one_kernel_are_the_same_to_the_bit(make_config, train):
    """Whatever the notebook drew and set in between."""
    config = make_config(epochs=2, dropout_probability=0.3)
    first = train(config)
    torch.manual_seed(99)
    torch.rand(1000)
    second = train(make_config(epochs=2, dropout_probability=0.3))
    assert_same_run(second, first)


def test_a_run_leaves_the_generators_of_a_notebook_alone(make_config, train):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(make_config(epochs=1, dropout_probability=0.3))
    assert torch.equal(torch.rand(3), expected)


AUTORELOAD = """
import json, pathlib, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
shell.run_line_magic("load_ext", "autoreload")
shell.run_line_magic("autoreload", "2")
RUN = '''
config, _ = modules.TrainConfig.load(sys.argv[1])
losses = []
def note(event):
    if type(event).__name__ == "LossUpdate":
        losses.append(event.loss)
modules.GenericTrainer(config, modules.TrainCallbacks(on_event=note)).run()
'''
shell.run_cell("import sys, modules").raise_error()
seen = []
for turn in range(2):
    shell.run_cell(RUN).raise_error()
    seen.append(shell.user_ns["losses"])
    for file in pathlib.Path(sys.argv[2]).rglob("*.py"):
        file.write_text(file.read_text() + f"\\nSAVED_{turn} = True\\n")
reloaded = sum(hasattr(each, "SAVED_0") for each in sys.modules.values())
print(json.dumps([seen, reloaded, shell.user_ns["modules"].__file__]))
"""


@pytest.mark.slow
def test_a_run_after_autoreload_is_the_same(make_config, tmp_path):
    """Each file of the engine's training was saved anew between two cells."""
    engine = Path(modules.__file__).parent
    shutil.copytree(engine, tmp_path / "modules", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "config.json"
    make_config(epochs=1).save(path)
    command = [sys.executable, "-c", AUTORELOAD, str(path), str(tmp_path / "modules" / "training")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (first, second), reloaded, used = json.loads(done.stdout.splitlines()[-1])
    assert used == str(tmp_path / "modules" / "__init__.py")
    assert reloaded > 20
    assert "autoreload of" not in done.stdout + done.stderr  # how it says that one failed
    assert len(first) == 3
    assert first == second


def cycles(train, make_config, count):
    """Start and stop a run so often: at its second step, and once in the middle of loading."""

    def stop_soon(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.stop()

    def stop_at_once(event, commands):
        if event == e.TrainingState("loading"):
            commands.stop()

    for number in range(count):
        react = stop_at_once if number % 5 == 4 else stop_soon
        run = train(make_config(epochs=1), react)
        assert run.states[-1] == "stopped"


@pytest.mark.slow
def test_twenty_starts_and_stops_leave_nothing_behind(make_config, train):
    def left():
        gc.collect()
        objects = gc.get_objects()
        networks = sum(issubclass(type(each), torch.nn.Module) for each in objects)
        return networks, process.num_threads(), process.num_fds(), len(objects)

    process = psutil.Process()
    cycles(train, make_config, 5)  # caches of libraries fill up
    before, memory = left(), process.memory_info().rss
    cycles(train, make_config, 20)
    networks, threads, files, objects = left()
    assert networks == before[0]
    assert threads <= before[1]
    assert files <= before[2]
    assert objects < before[3] + 2000  # a run itself makes 50 times as many
    assert process.memory_info().rss < memory + 30e6


WHOLE = {
    "training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS", "epochs": 1,
    "layer_filter": "attn2", "unet.gradient_checkpointing": True,
}  # fmt: skip
FUSED = {"optimizer": "ADAFACTOR", "fused_back_pass": True}


@pytest.mark.parametrize("changes", [{"optimizer": FUSED}, {"unet.offload_fraction": 0.5}])
def test_weights_go_with_the_run_that_changed_them_in_its_backward_passes(
    make_config, make_run, changes
):
    held = []

    def react(event, _commands):
        if isinstance(event, e.LossUpdate):
            held.extend(weakref.ref(p) for p in run.trainer.model.unet.parameters())

    run = make_run(make_config(**WHOLE, **changes), react)
    run.go()
    gc.collect()
    assert held
    assert not [weight for weight in held if weight() is not None]
