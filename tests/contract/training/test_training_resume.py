"""A run that was killed goes on as if it had not been: every bit of it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from toys import assert_same_backup

from modules.config import ConfigError
from modules.training import events as e
from modules.training import places
from modules.training.randomness import Randomness

KILLED = """
import json, os, signal, sys
import torch
from modules import GenericTrainer, TrainCallbacks, TrainConfig

torch.set_num_threads(1)
config, _ = TrainConfig.load(json.loads(sys.argv[1]))

def on_step(update):
    print(json.dumps([update.step, update.loss]), flush=True)
    if update.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

GenericTrainer(config, TrainCallbacks(on_step=on_step)).run()
"""

EVERYTHING = {
    "gradient_accumulation_steps": 2,  # windows that straddle epochs of three batches
    "epochs": 6,
    "dropout_probability": 0.2,
    "ema": "GPU",
    "ema_update_step_interval": 1,
    "learning_rate_scheduler": "COSINE",
    "timestep_distribution": "LOGIT_NORMAL",
    "offset_noise_weight": 0.1,
    "text_encoder.train": True,
    "text_encoder.dropout_probability": 0.3,
}
CASES = {
    "plain": {},
    "everything": EVERYTHING,
    "schedule-free": {"optimizer.optimizer": "SCHEDULE_FREE_ADAMW"},
    "fine-tune": {
        "training_method": "FINE_TUNE",
        "output_model_format": "DIFFUSERS",
        "layer_filter": "",
    },
    "embedding": {
        "training_method": "EMBEDDING",
        "output_model_format": "SAFETENSORS",
        "embedding": {"placeholder": "card", "token_count": 3},
        "preserve_embedding_norm": True,
    },
    "vae": {"training_method": "FINE_TUNE_VAE", "output_model_format": "DIFFUSERS"},
    "bfloat16": {
        "training_method": "FINE_TUNE",
        "output_model_format": "DIFFUSERS",
        "optimizer.optimizer": "ADAFACTOR",  # rounds at random
        "unet.weight_dtype": "BFLOAT_16",
    },
}


def killed(config, step):
    """Train in a process that is killed after a step; the losses it had."""
    process = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(config.to_dict()), str(step)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    return dict(json.loads(line) for line in process.stdout.splitlines() if line.startswith("["))


def last_backup(run):
    return run.of(e.BackupCreated)[-1].path


@pytest.mark.parametrize(
    "case",
    [
        "everything",
        *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "everything"),
    ],
)
def test_killed_and_resumed_is_straight(make_config, train, tmp_path, case):
    """Straight to the end, against a backup after 4 steps, kill -9 after 6, resume."""
    end = {"backup_before_save": True, **CASES[case]}
    straight = train(make_config(**end))
    broken = make_config(
        workspace_dir=tmp_path / "broken", backup_after=4, backup_after_unit="STEP", **end
    )
    before = killed(broken, 6)
    resumed = train(broken.update(continue_last_backup=True))

    assert min(resumed.losses) == 5
    assert before == {step: straight.losses[step] for step in range(1, 7)}
    assert resumed.losses == {s: loss for s, loss in straight.losses.items() if s > 4}
    assert_same_backup(last_backup(straight), last_backup(resumed))


def test_interruptions_change_no_bit(make_config, train):
    """Samples, saves, backups, a pause and refused requests in between, against none."""
    sample = {
        "prompt": "a red card", "height": 64, "width": 64, "diffusion_steps": 2, "seed": 1,
    }  # fmt: skip

    def disturb(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 3:
            commands.sample_default()
            commands.save()
            commands.backup()
            commands.set("resolution", "32")  # fixed at the start
            commands.pause()
        if isinstance(event, e.TrainingState) and event.state == "paused":
            commands.resume()

    quiet = train(make_config(backup_before_save=True, **EVERYTHING))
    noisy = train(
        make_config(
            backup_before_save=True, samples=[sample], sample_after=2, sample_after_unit="STEP",
            save_every=2, save_every_unit="STEP", **EVERYTHING,
        ),
        disturb,
    )  # fmt: skip
    assert noisy.losses == quiet.losses
    # steps 0, 2, 4, 6, 8 and once by request, of the average and of the weights
    assert len(noisy.of(e.SampleImage)) == 2 * 6
    assert "paused" in noisy.states
    assert any("resolution is fixed" in warning for warning in noisy.warnings)
    assert_same_backup(last_backup(quiet), last_backup(noisy))


@pytest.mark.slow
def test_a_stop_in_the_middle_of_an_epoch_goes_on_exactly(make_config, train, tmp_path):
    straight = train(make_config(**EVERYTHING))
    config = make_config(workspace_dir=tmp_path / "halves", backup_before_save=True, **EVERYTHING)

    def stop(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 4:
            commands.stop()

    first = train(config, stop)
    assert first.states[-1] == "stopped"
    second = train(config.update(continue_last_backup=True))
    assert {**first.losses, **second.losses} == straight.losses
    assert [event.step for event in second.of(e.LossUpdate)] == list(range(5, 10))


def test_a_damaged_newest_backup_is_passed_over(make_config, train, tmp_path):
    config = make_config(
        workspace_dir=tmp_path / "run", backup_after=2, backup_after_unit="STEP", epochs=2
    )
    straight = train(config)
    newest = sorted((tmp_path / "run" / "backup").iterdir())[-1]
    file = newest / "lora" / "lora.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # one bit, which safetensors itself would not notice
    file.write_bytes(content)
    resumed = train(config.update(continue_last_backup=True))
    assert any("lora.safetensors" in warning for warning in resumed.warnings)
    assert resumed.losses == {s: loss for s, loss in straight.losses.items() if s > 4}


def test_backups_of_which_none_can_be_read_are_not_called_missing(make_config, train, tmp_path):
    config = make_config(
        workspace_dir=tmp_path / "run", backup_after=1, backup_after_unit="STEP", epochs=1
    )
    train(config)
    folder = tmp_path / "run" / "backup"
    damaged = list(folder.iterdir())
    for backup in damaged:
        (backup / "ot" / "state.pt").write_bytes(b"")
    run = train(config.update(continue_last_backup=True))
    assert len(damaged) > 1
    assert sum("Passed over a damaged backup" in each for each in run.warnings) == len(damaged)
    assert (
        f"There are backups in {folder} ({len(damaged)}), but none can be read; the run begins "
        f"anew." in run.warnings
    )
    assert not any("No backup in" in each for each in run.warnings)
    assert list(run.losses) == [1, 2, 3]


def test_any_backup_can_be_gone_on_from(make_config, train, tmp_path):
    """By its name, or into another workspace by its path; a damaged one is not passed over."""
    config = make_config(
        workspace_dir=tmp_path / "run", backup_after=2, backup_after_unit="STEP", epochs=2
    )
    straight = train(config)
    oldest = straight.of(e.BackupCreated)[0].path
    after = {s: loss for s, loss in straight.losses.items() if s > 2}
    again = config.update(continue_last_backup=True, **{"ot.resume_from": oldest.name})
    first = train(again)
    assert first.losses == after
    assert max(oldest.parent.iterdir()) == last_backup(first)  # and the newest is now of this one
    elsewhere = make_config(continue_last_backup=True, epochs=2, **{"ot.resume_from": str(oldest)})
    assert train(elsewhere).losses == after
    (oldest / "ot" / "state.pt").unlink()
    with pytest.raises(ConfigError, match=r"state\.pt cannot be read"):
        train(again)


def test_moments_of_a_gpu_that_is_not_here_come_to_the_device_that_is(
    make_config, train, tmp_path, monkeypatch
):
    config = make_config(
        workspace_dir=tmp_path / "run", backup_after=4, backup_after_unit="STEP", epochs=2
    )
    straight = train(config)
    folder = last_backup(straight)
    file, sums = folder / "optimizer" / "optimizer.pt", folder / "ot" / "checksums.json"
    moments = torch.load(file, weights_only=True)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:1")
    torch.save(moments, file)
    known = json.loads(sums.read_text())
    known["optimizer/optimizer.pt"] = hashlib.sha256(file.read_bytes()).hexdigest()
    sums.write_text(json.dumps(known))
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(file, weights_only=True)
    monkeypatch.undo()
    resumed = train(config.update(continue_last_backup=True, backup_after_unit="NEVER"))
    assert resumed.warnings == []
    assert resumed.losses == {s: loss for s, loss in straight.losses.items() if s > 4}


def test_generators_of_another_kind_of_device_are_said():
    random = Randomness(torch.device("cpu"), 1)
    state = {"generator": torch.zeros(16, dtype=torch.uint8)}  # as one of a GPU has it
    assert "another kind of device" in random.load_state_dict({**state, "rounding": state})
    assert random.load_state_dict(Randomness(torch.device("cpu"), 2).state_dict()) is None


@pytest.mark.parametrize("back", [3600, 0])
def test_a_clock_that_goes_back_costs_no_backup(make_config, train, monkeypatch, back):
    """In autumn, or where many fall into one second, of steps 9 and 10: the newest is kept."""

    class Clock(datetime):
        seconds = 0

        @classmethod
        def now(cls):
            cls.seconds += back
            return cls(2026, 10, 25, 12) - timedelta(seconds=cls.seconds)

    monkeypatch.setattr(places, "datetime", Clock)
    run = train(
        make_config(
            epochs=4,
            backup_after=1,
            backup_after_unit="STEP",
            rolling_backup=True,
            rolling_backup_count=1,
        )
    )
    (left,) = (Path(run.config.workspace_dir) / "backup").iterdir()
    assert left == last_backup(run)
    assert "-backup-12-" in left.name


def test_settings_changed_during_the_run_come_back_with_it(make_config, train, tmp_path):
    config = make_config(workspace_dir=tmp_path / "run", backup_before_save=True)

    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.set("unet.learning_rate", 5e-4)
        if isinstance(event, e.LossUpdate) and event.step == 4:
            commands.stop()

    first = train(config, react)
    assert first.of(e.SettingChanged) == [e.SettingChanged("unet.learning_rate", None, 5e-4, 2)]
    rates = [event.learning_rate["unet"] for event in first.of(e.LossUpdate)]
    assert rates == [1e-3, 1e-3, 5e-4, 5e-4]
    resumed = config.update(continue_last_backup=True)
    second = train(resumed)
    assert {event.learning_rate["unet"] for event in second.of(e.LossUpdate)} == {5e-4}
    noted = [{"setting": "unet.learning_rate", "old": None, "value": 5e-4, "step": 2}]
    assert second.trainer._changes == noted


@pytest.mark.parametrize(("edited", "told"), [(2e-4, 1), (4e-4, 0)])
def test_a_setting_that_was_edited_since_is_not_taken_back_to_what_the_run_had(
    make_config, train, tmp_path, edited, told
):
    config = make_config(workspace_dir=tmp_path / "run", backup_before_save=True)

    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.set("unet.learning_rate", 5e-4)
            commands.set("unet.learning_rate", 4e-4)
            commands.set("clip_grad_norm", 0.5)
        if isinstance(event, e.LossUpdate) and event.step == 3:
            commands.stop()

    train(config, react)
    edits = {"continue_last_backup": True, "unet.learning_rate": edited}
    run = train(config.update(**edits))
    assert {event.learning_rate["unet"] for event in run.of(e.LossUpdate)} == {edited}
    assert [event.setting for event in run.of(e.SettingChanged)] == ["clip_grad_norm"]
    words = "unet.learning_rate is 0.0002, as its settings now say; it was 0.0004."
    assert run.warnings.count(words) == told


def test_edits_of_a_list_and_of_what_is_in_it_come_back_together(make_config, train, tmp_path):
    drawn = {"prompt": "a", "height": 64, "width": 64, "diffusion_steps": 1}
    config = make_config(
        workspace_dir=tmp_path / "run", backup_before_save=True, samples=[drawn], sample_after=100
    )

    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.set("samples.0.prompt", "b")
            commands.set("samples", [drawn, {**drawn, "prompt": "c"}])
            commands.set("samples.1.prompt", "d")
        if isinstance(event, e.LossUpdate) and event.step == 3:
            commands.stop()

    first = train(config, react)
    second = train(config.update(continue_last_backup=True))
    assert [one.prompt for one in first.trainer.config.samples] == ["a", "d"]
    assert second.trainer.config.samples == first.trainer.config.samples
    assert second.warnings == first.warnings


def test_nothing_to_resume_is_said(make_config, train):
    run = train(make_config(continue_last_backup=True, epochs=1))
    assert any("No backup" in warning for warning in run.warnings)
    assert list(run.losses) == [1, 2, 3]


@pytest.mark.slow
def test_a_finished_run_can_be_extended(make_config, train, tmp_path):
    config = make_config(workspace_dir=tmp_path / "run", backup_before_save=True, epochs=1)
    train(config)
    more = train(config.update(continue_last_backup=True, epochs=2))
    assert list(more.losses) == [4, 5, 6]
    assert more.losses == {
        step: loss for step, loss in train(make_config(epochs=2)).losses.items() if step > 3
    }
