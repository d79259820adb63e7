"""Settings that people set together: such a run, stopped and gone on with, is the straight one."""

import shutil

import pytest
from PIL import Image
from toys import assert_same_backup

from modules.training import events as e

FUSED = {"optimizer.fused": False, "optimizer.fused_back_pass": True}
BOTH = {"text_encoder.train": True}
CASES = {
    "average in main memory, accumulation, fused back pass": {
        "ema": "CPU",
        "ema_update_step_interval": 2,
        "gradient_accumulation_steps": 2,
        "clip_grad_norm": 0.01,
        **FUSED,
    },
    "words beside a LoRA, validation": {
        "validation": True,
        "ema": "CPU",
        "additional_embeddings": [{"placeholder": "card", "token_count": 2}],
        "output_model_format": "KOHYA_LORA",
        "text_encoder.dropout_probability": 0.3,
        **BOTH,
    },
    "schedule-free, validation, rolling backups, 16 bits": {
        "validation": True,
        "backup_after": 1,
        "backup_after_unit": "STEP",
        "rolling_backup": True,
        "rolling_backup_count": 2,
        "dropout_probability": 0.2,
        "lora_weight_dtype": "BFLOAT_16",
        "optimizer.optimizer": "SCHEDULE_FREE_ADAMW",
    },
    "a prior concept, masks held to the prior, batches of four": {
        "masked_training": True,
        "unmasked_probability": 0.3,
        "masked_prior_preservation_weight": 0.5,
        "normalize_masked_area_loss": True,
        "loss_weight_fn": "MIN_SNR_GAMMA",
        "batch_size": 4,
    },
    "weights of float16 on a CPU": {
        "unet.weight_dtype": "FLOAT_16",
        "text_encoder.weight_dtype": "FLOAT_16",
        "lora_weight_dtype": "FLOAT_16",
    },
    "float16 with a scaler, accumulation": {
        "train_dtype": "FLOAT_16",
        "ema": "GPU",
        "gradient_accumulation_steps": 2,
    },
    "DoRA on 8 bits, beside an encoder of 4": {
        "lora_decompose": True,
        "lora_decompose_output_axis": True,
        "dropout_probability": 0.1,
        "output_model_format": "KOHYA_LORA",
        "unet.weight_dtype": "INT_8",
        "text_encoder.weight_dtype": "NFLOAT_4",
        **BOTH,
    },
    "an optimizer with moments of 16 bits": {
        "learning_rate": 1.0,
        "ema": "CPU",
        "optimizer.optimizer": "PRODIGY_PLUS_SCHEDULE_FREE",
        **BOTH,
    },
    "Adafactor's own rate": {
        "learning_rate_scheduler": "ADAFACTOR",
        "optimizer.optimizer": "ADAFACTOR",
        "optimizer.relative_step": True,
        "optimizer.scale_parameter": True,
    },
    "CAME on an adapter of bfloat16 that is rounded to nearest": {
        "lora_weight_dtype": "BFLOAT_16",
        "optimizer.optimizer": "CAME",
        "optimizer.stochastic_rounding": False,
    },
    "Adafactor on such a one": {
        "lora_weight_dtype": "BFLOAT_16",
        "optimizer.optimizer": "ADAFACTOR",
        "optimizer.stochastic_rounding": False,
    },
    "Muon, average": {"ema": "CPU", "optimizer.optimizer": "MUON", **BOTH},
    "no cache, an encoder that stops": {
        "latent_caching": False,
        "text_encoder.stop_training_after": 4,
        "text_encoder.stop_training_after_unit": "STEP",
        **BOTH,
    },
    "a whole model whose layers wait, fused, rounded at random": {
        "training_method": "FINE_TUNE",
        "output_model_format": "DIFFUSERS",
        "layer_filter": "",
        "ema": "CPU",
        "gradient_accumulation_steps": 2,
        "unet.gradient_checkpointing": True,
        "unet.offload_fraction": 0.5,
        "unet.activation_offloading": True,
        "unet.weight_dtype": "BFLOAT_16",
        "optimizer.optimizer": "ADAFACTOR",
        "optimizer.fused_back_pass": True,
    },
}


@pytest.fixture
def concepts(pictures, tmp_path):
    """What a case needs of data besides the usual pictures."""

    def make(settings):
        found = [{"name": "cards", "path": str(pictures)}]
        if settings.get("masked_training"):
            masked = tmp_path / "masked"
            shutil.copytree(pictures, masked)
            for path in pictures.glob("*.png"):
                mask = Image.new("L", (64, 64), 0)
                mask.paste(255, (0, 0, 32, 64))
                mask.save(masked / f"{path.stem}-masklabel.png")
            found[0]["type"] = "PRIOR_PREDICTION"
            found.append({"name": "masked", "path": str(masked), "loss_weight": 0.5})
        if settings.get("validation"):
            held = tmp_path / "held"
            held.mkdir()
            shutil.copy(pictures / "red.png", held)
            (held / "red.txt").write_text("a red card")
            found.append({"name": "held", "path": str(held), "type": "VALIDATION"})
        return found

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_exactly(make_config, train, concepts, tmp_path, name):
    settings = {"epochs": 4, "backup_before_save": True, **CASES[name]}
    settings["concepts"] = concepts(settings)
    straight = train(make_config(**settings))

    def stop(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.stop()

    config = make_config(workspace_dir=tmp_path / "halves", **settings)
    first = train(config, stop)
    second = train(config.update(continue_last_backup=True))
    assert {**first.losses, **second.losses} == straight.losses
    assert all(loss == loss for loss in straight.losses.values())
    measured = [*first.of(e.ValidationLoss), *second.of(e.ValidationLoss)]
    assert measured == straight.of(e.ValidationLoss)
    assert_same_backup(*(run.of(e.BackupCreated)[-1].path for run in (straight, second)))
