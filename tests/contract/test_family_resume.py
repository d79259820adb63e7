"""Every architecture goes on from a backup as if nothing had been: to the last bit."""

import json
import multiprocessing
import os
import signal

import pytest
import torch
from toys import assert_same_backup, cards, config_for

from modules import GenericTrainer, TrainCallbacks
from modules.config import MODELS, ModelType, TrainingMethod
from modules.config.supported import HONOURED
from modules.families import family_for
from modules.training import events as e

torch.set_num_threads(1)
QUICK = {
    (ModelType.STABLE_DIFFUSION_15_INPAINTING, "LORA"),
    (ModelType.FLUX_DEV_1, "FINE_TUNE"),
    (ModelType.PIXART_SIGMA, "EMBEDDING"),
}
"""A UNet, a flow transformer, and one that learns its variance: the others take minutes."""
CASES = [
    pytest.param(
        kind,
        method,
        marks=[] if (kind, method) in QUICK else pytest.mark.slow,
        id=f"{kind.value}-{method}",
    )
    for kind in HONOURED["model_type"]
    for method in ("LORA", "FINE_TUNE", "EMBEDDING")
    if TrainingMethod[method] in MODELS[kind].methods
]
BY_METHOD = {
    "LORA": {"output_model_format": "DIFFUSERS_LORA", "learning_rate": 1e-3},
    "FINE_TUNE": {"output_model_format": "DIFFUSERS", "learning_rate": 1e-4},
    "EMBEDDING": {
        "output_model_format": "SAFETENSORS",
        "learning_rate": 1e-2,
        "embedding": {"placeholder": "card", "token_count": 2},
    },
}


def run(config, note=lambda step, loss: None):
    """Losses by step, and the folder of the last backup; `note` is told of each step."""
    losses, backups = {}, []

    def on_event(event):
        if isinstance(event, e.LossUpdate):
            losses[event.step] = event.loss
            note(event.step, event.loss)
        elif isinstance(event, e.BackupCreated):
            backups.append(event.path)

    GenericTrainer(config, TrainCallbacks(on_event=on_event)).run()
    return losses, backups[-1]


def killed(config, step, log):
    """Train in another process until the system kills it after a step; the losses that it had."""

    def note(done, loss):
        with log.open("a") as file:
            file.write(json.dumps([done, loss]) + "\n")
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=run, args=(config, note))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    return dict(map(json.loads, log.read_text().splitlines()))


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_resumed_run_of_each_architecture_is_straight(kind, method, tmp_path):
    """Three steps, whole; and with a backup after one, kill -9 after two, and a resume.

    Text encoders train beside the denoiser, and captions are dropped, where the model can.
    """
    (tmp_path / "pictures").mkdir()
    changes = {"training_method": method, "epochs": 3, **BY_METHOD[method]}
    if method == "FINE_TUNE":
        changes["output_model_destination"] = str(tmp_path / "tuned")
    if MODELS[kind].text_training and method != "EMBEDDING":
        changes |= {f"{name}.train": True for name in family_for(kind).trainable_encoders}
    if MODELS[kind].caption_dropout:
        changes["text_encoder.dropout_probability"] = 0.5
    config = config_for(kind, cards(tmp_path / "pictures"), tmp_path, **changes)
    straight, last = run(config)
    clocked = {"backup_after": 1, "backup_after_unit": "STEP"}
    broken = config.update(workspace_dir=str(tmp_path / "broken"), **clocked)
    before = killed(broken, 2, tmp_path / "losses")
    kept = list((tmp_path / "broken" / "backup").iterdir())
    assert [path.name.split("-")[-3] for path in kept if path.name[0] != "."] == ["1"]
    after, resumed = run(
        config.update(workspace_dir=broken.workspace_dir, continue_last_backup=True)
    )
    assert set(straight) == {1, 2, 3}
    assert straight[3] != straight[2]
    assert {**before, **after} == straight
    assert set(after) == {2, 3}
    assert_same_backup(last, resumed)
