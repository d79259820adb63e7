"""Every architecture goes on from a backup as if nothing had been: to the last bit."""

import pytest
import torch
from toys import assert_same_backup, cards, config_for

from modules import GenericTrainer, TrainCallbacks, TrainCommands
from modules.config import MODELS, ModelType
from modules.config.supported import HONOURED
from modules.families import family_for
from modules.training import events as e

torch.set_num_threads(1)
QUICK = {
    (ModelType.STABLE_DIFFUSION_15_INPAINTING, "LORA"),
    (ModelType.FLUX_DEV_1, "FINE_TUNE"),
    (ModelType.PIXART_SIGMA, "LORA"),
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
    for method in ("LORA", "FINE_TUNE")
]


def run(config, stop_at=None):
    """Losses by step, and the folder of the last backup."""
    commands, losses, backups = TrainCommands(), {}, []

    def on_event(event):
        if isinstance(event, e.LossUpdate):
            losses[event.step] = event.loss
            if event.step == stop_at:
                commands.stop()
        elif isinstance(event, e.BackupCreated):
            backups.append(event.path)

    GenericTrainer(config, TrainCallbacks(on_event=on_event), commands).run()
    return losses, backups[-1]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_resumed_run_of_each_architecture_is_straight(kind, method, tmp_path):
    """Three steps with text encoders and dropped captions, whole, and with a stop after one."""
    (tmp_path / "pictures").mkdir()
    changes = {"training_method": method, "epochs": 3, "learning_rate": 1e-3}
    changes["output_model_format"] = "DIFFUSERS_LORA"
    if method == "FINE_TUNE":
        changes |= {"output_model_format": "DIFFUSERS", "learning_rate": 1e-4}
        changes["output_model_destination"] = str(tmp_path / "tuned")
    if MODELS[kind].text_training:
        changes |= {f"{name}.train": True for name in family_for(kind).trainable_encoders}
    if MODELS[kind].caption_dropout:
        changes["text_encoder.dropout_probability"] = 0.5
    config = config_for(kind, cards(tmp_path / "pictures"), tmp_path, **changes)
    straight, last = run(config)
    broken = config.update(workspace_dir=str(tmp_path / "broken"))
    before, _ = run(broken, stop_at=1)
    after, resumed = run(broken.update(continue_last_backup=True))
    assert set(straight) == {1, 2, 3}
    assert straight[3] != straight[2]
    assert {**before, **after} == straight
    assert 1 not in after
    assert_same_backup(last, resumed)
