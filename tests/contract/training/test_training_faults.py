"""What goes wrong in the night: no numbers, no memory, no room on the disk."""

import itertools
import resource
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from modules.training import attempts
from modules.training import events as e
from modules.training.update import Update

SAMPLE = {"prompt": "a card", "height": 64, "width": 64, "diffusion_steps": 2, "seed": 1}


def poison(run, steps, value=float("nan")):
    """Make the loss of these steps no number."""
    forward = run.trainer._forward
    real = forward.loss

    def loss(draw):
        bad = run.trainer.step + 1 in steps
        return real(draw) * (value if bad else 1.0)

    forward.loss = loss


def poisoned(make_run, config, steps, **more):
    def react(event, _commands):
        if event == e.TrainingState("training") and not run.losses:
            poison(run, steps, **more)

    run = make_run(config, react)
    return run


@pytest.mark.parametrize("optimizer", ["ADAMW", "LION"])
def test_a_step_that_is_no_number_changes_nothing_and_is_said(make_config, make_run, optimizer):
    config = make_config(epochs=2, **{"optimizer.optimizer": optimizer})
    run = poisoned(make_run, config, {3, 4}).go()
    assert run.states[-1] == "finished"
    assert list(run.losses) == [1, 2, 5, 6]
    skipped = [warning for warning in run.warnings if "was skipped" in warning]
    assert [warning.split()[1] for warning in skipped] == ["3", "4"]
    assert "loss nan" in skipped[0]
    assert all(loss == loss for loss in run.losses.values())


def test_a_run_that_has_no_numbers_left_keeps_the_last_good_files(make_config, make_run):
    config = make_config(epochs=20, backup_after=2, backup_after_unit="STEP")
    run = poisoned(make_run, config, set(range(5, 100)), value=float("inf"))
    with pytest.raises(FloatingPointError, match="20 steps in a row"):
        run.go()
    assert run.states[-1] == "failed"
    assert run.of(e.ModelSaved) == []  # the last good output stays
    assert "learning_rate" in run.of(e.RunFailed)[0].error
    assert "Nothing was saved over" in run.of(e.RunFailed)[0].advice


def test_a_skipped_step_leaves_weights_and_moments():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"name": "unet", "params": [parameter]}], fused=True)
    update = Update(optimizer, [parameter], 1.0, torch.amp.GradScaler("cpu", enabled=False))
    parameter.grad = torch.ones(3)
    update(0)
    before = parameter.detach().clone(), optimizer.state_dict()["state"][0]["exp_avg"].clone()
    parameter.grad = torch.tensor([1.0, float("nan"), 1.0])
    assert not update(1).isfinite()
    assert torch.equal(parameter, before[0])
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], before[1])
    assert parameter.grad is None


@contextmanager
def memory_for(unet, images):
    """An allocator that holds so many images at a time."""

    def check(_module, arguments, keywords):
        noisy = arguments[0] if arguments else keywords["sample"]
        if len(noisy) > images:
            raise torch.OutOfMemoryError(f"no room for {len(noisy)} images")

    handle = unet.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def limited(make_run, config, images):
    def react(event, _commands):
        if event == e.TrainingState("training") and not run.losses:
            run.memory = memory_for(run.trainer.model.unet, images)
            run.memory.__enter__()

    run = make_run(config, react)
    return run


def test_out_of_memory_halves_the_pass_and_keeps_the_batch(make_config, make_run, train):
    plain = train(make_config(batch_size=6, epochs=1))
    run = limited(make_run, make_config(batch_size=6, epochs=1), 2).go()
    assert run.losses == pytest.approx(plain.losses, rel=1e-4)
    said = [warning for warning in run.warnings if "Out of memory" in warning]
    assert len(said) == 3
    assert "emptied the caches" in said[0]
    assert "3 of 6 images at a time" in said[1]
    assert "2 of 6 images at a time" in said[2]


def test_out_of_memory_with_no_way_left_ends_the_run_with_advice(make_config, make_run):
    run = limited(make_run, make_config(), 0)
    with pytest.raises(torch.OutOfMemoryError):
        run.go()
    assert any("gradient_checkpointing" in warning for warning in run.warnings)
    failure = run.of(e.RunFailed)[0]
    assert "memory is full" in failure.advice
    assert "batch_size" in failure.advice


@contextmanager
def full_disk():
    """No file may grow beyond 2 KB: the system refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_in_the_middle_costs_nothing_but_files(make_config, make_run, train):
    straight = train(make_config(epochs=2))
    disk = full_disk()

    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 3:
            disk.__enter__()
            commands.backup()
            commands.save()
            commands.sample_default()
        if isinstance(event, e.LossUpdate) and event.step == 4:
            disk.__exit__(None, None, None)
            commands.backup()

    run = make_run(make_config(samples=[SAMPLE], epochs=2), react).go()
    failed = [warning for warning in run.warnings if "Could not" in warning]
    assert len(failed) == 3
    assert all("at step 3" in warning for warning in failed)
    assert all("The disk is full" in warning for warning in failed)
    assert run.losses == straight.losses
    assert [backup.step for backup in run.of(e.BackupCreated)] == [4]
    left = {path.name for path in (run.trainer._workspace.folder / "backup").iterdir()}
    assert left == {run.of(e.BackupCreated)[0].path.name}  # nothing half written


def test_the_final_model_waits_for_room(make_config, make_run, monkeypatch):
    monkeypatch.setattr(attempts, "WAIT", 0.01)
    disk = full_disk()

    def react(event, _commands):
        if isinstance(event, e.LossUpdate) and event.step == 3:
            disk.__enter__()
        if isinstance(event, e.Warned) and "could not be written" in event.message:
            disk.__exit__(None, None, None)

    run = make_run(make_config(epochs=1), react).go()
    assert run.states[-1] == "finished"
    assert run.of(e.ModelSaved)[0].final
    assert sum("tried again" in warning for warning in run.warnings) == 1


def test_a_stopped_run_waits_for_room_too_until_it_is_stopped_again(
    make_config, make_run, monkeypatch
):
    monkeypatch.setattr(attempts, "WAIT", 0.2)
    disk, began = full_disk(), []

    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            disk.__enter__()
            commands.stop()
        if isinstance(event, e.Warned) and "tried again" in event.message:
            began.append(time.monotonic())
            if len(began) == 3:
                threading.Timer(0.05, commands.stop).start()

    run = make_run(make_config(epochs=1), react)
    try:
        with pytest.raises(Exception, match=r"large|space"):
            run.go()
    finally:
        disk.__exit__(None, None, None)
    assert len(began) == 3  # of twenty
    assert min(b - a for a, b in itertools.pairwise(began)) >= 0.2
    assert run.of(e.ModelSaved) == []


@pytest.mark.parametrize("frees", [True, False])
def test_a_full_disk_while_the_cache_fills(make_config, make_run, tmp_path, monkeypatch, frees):
    """The run waits for room; where none comes it ends and keeps what is there."""
    monkeypatch.setattr(attempts, "WAIT", 0.01)
    monkeypatch.setattr(attempts, "TRIES", 4)
    disk = full_disk()

    def react(event, _commands):
        begun = isinstance(event, e.TaskProgress) and event.task == "caching"
        if begun and not entered:
            disk.__enter__()
            entered.append(event)
        if isinstance(event, e.Warned) and "tried again" in event.message and frees:
            disk.__exit__(None, None, None)

    entered = []
    run = make_run(make_config(epochs=1, cache_dir=str(tmp_path / "cache")), react)
    try:
        if frees:
            run.go()
            assert run.states[-1] == "finished"
            assert len(run.losses) == 3
            assert len(run.warnings) == 1
            assert "The cache could not be written: " in run.warnings[0]
            return
        with pytest.raises(Exception, match=r"large|space"):
            run.go()
        assert len([w for w in run.warnings if "tried again" in w]) == 3
        assert "The disk is full" in run.of(e.RunFailed)[0].advice
    finally:
        disk.__exit__(None, None, None)


def test_a_failed_run_leaves_the_old_output(make_config, make_run, train):
    config = make_config(epochs=1)
    path = train(config).of(e.ModelSaved)[0].path
    before = path.read_bytes()

    def react(event, _commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            run.trainer._forward.loss = None

    run = make_run(config, react)
    with pytest.raises(TypeError):
        run.go()
    assert path.read_bytes() == before
    assert run.states[-1] == "failed"
