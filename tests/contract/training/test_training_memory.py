"""Settings that trade speed for memory: the same run, to the last bit."""

import pytest
import torch
from toys import assert_same_backup, save_toy

from modules.config import MODELS, ConfigError
from modules.families import all_families
from modules.training import events as e
from modules.training.placement import LayerOffload

FAST = ("Flux.1-dev",)
FAMILIES = [
    pytest.param(
        family,
        id=f"{family.architecture}-{family.pipeline}",
        marks=() if family.architecture in FAST else pytest.mark.slow,
    )
    for family in all_families()
]


def waiting(network):
    """Whether a layer's weights are lent, after which they are its own again."""
    return any(layer._forward_pre_hooks for layer in LayerOffload.layers_of(network))


def test_a_run_that_offloads_takes_the_very_same_steps(make_config, make_run, train):
    changes = {"epochs": 1, "unet.gradient_checkpointing": True, "dropout_probability": 0.2}
    more = {
        "unet.offload_fraction": 0.6,
        "unet.activation_offloading": True,
        "text_encoder.offload_fraction": 1.0,
    }
    run = make_run(make_config(**changes, **more))
    run.trainer.start()
    assert waiting(run.trainer.model.unet)
    assert waiting(run.trainer.model.text_encoder)
    run.trainer.close()
    run = train(make_config(**changes, **more))
    plain = train(make_config(**changes))
    assert run.losses == plain.losses
    assert len(run.losses) == 3
    assert any("saves nothing" in warning for warning in run.warnings)


FULL = {
    "training_method": "FINE_TUNE",
    "output_model_format": "DIFFUSERS",
    "layer_filter": "",
    "learning_rate": 1e-4,
    "unet.gradient_checkpointing": True,
    "text_encoder.train": True,
    "text_encoder.gradient_checkpointing": True,
    "ema": "GPU",
    "ema_update_step_interval": 1,
    "backup_before_save": True,
}


@pytest.mark.parametrize(
    "fused", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fused", "at-home"]
)
def test_a_whole_model_learns_the_same_while_its_layers_wait(make_config, train, tmp_path, fused):
    """Straight, and going on from a backup, with a sample of the average in between."""
    optimizer = {"optimizer": "ADAFACTOR", "fused_back_pass": fused, "stochastic_rounding": fused}
    sample = {"prompt": "a red card", "height": 64, "width": 64, "diffusion_steps": 2, "seed": 1}
    sampled = {"samples": [sample], "sample_after": 1, "sample_after_unit": "STEP"}
    settings = {**FULL, "optimizer": optimizer, "epochs": 1, **sampled}
    if fused:
        settings["unet.weight_dtype"] = "BFLOAT_16"
    waits = {"unet.offload_fraction": 0.7, "text_encoder.offload_fraction": 1.0}
    plain = train(make_config(**settings))
    config = make_config(**settings, **waits, workspace_dir=tmp_path / "waits")

    def stop(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.stop()

    first = train(config, stop)
    second = train(config.update(continue_last_backup=True))
    assert {**first.losses, **second.losses} == plain.losses
    assert len(plain.losses) == 3
    last = [run.of(e.BackupCreated)[-1].path for run in (plain, second)]
    assert_same_backup(*last)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_can_offload_its_layers(make_config, train, tmp_path, family):
    folder = tmp_path / "model"
    model = save_toy(family, folder)
    encoders = MODELS[family.model_types[0]].text_encoders
    config = make_config(
        model_type=family.model_types[0].value,
        **model,
        cache_dir=str(tmp_path / "cache"),
        resolution=str(max(64, family.pixel_multiple)),
        layer_filter="",
        epochs=1,
        **{f"{name}.train": False for name in encoders},
        **{f"{family.denoiser}.gradient_checkpointing": True},
    )
    offloads = {f"{name}.offload_fraction": 1.0 for name in (family.denoiser, *encoders)}
    offloads[f"{family.denoiser}.activation_offloading"] = True
    run = train(config.update(**offloads))
    plain = train(config.update(workspace_dir=str(tmp_path / "plain")))
    assert len(run.losses) == 3
    assert run.losses == plain.losses


def test_a_network_without_layers_that_could_wait_is_refused(make_config, make_run, monkeypatch):
    monkeypatch.setattr(LayerOffload, "layers_of", staticmethod(lambda _network: []))
    run = make_run(
        make_config(**{"unet.offload_fraction": 0.5, "unet.gradient_checkpointing": True})
    )
    with pytest.raises(ConfigError, match="UNet2DConditionModel has no layers that could wait"):
        run.go()


@pytest.mark.gpu
@pytest.mark.parametrize("ahead", [True, False])
def test_offloading_saves_memory_of_a_gpu(make_config, make_run, ahead):
    peaks, losses = {}, {}
    for share in (0.0, 1.0):
        config = make_config(
            train_device="cuda",
            epochs=1,
            async_offloading=ahead,
            **{"unet.offload_fraction": share, "unet.activation_offloading": bool(share)},
            **{"unet.gradient_checkpointing": True},
        )
        torch.cuda.reset_peak_memory_stats()
        run = make_run(config).go()
        peaks[share], losses[share] = torch.cuda.max_memory_allocated(), run.losses
    assert peaks[1.0] < peaks[0.0]
    assert losses[1.0] == pytest.approx(losses[0.0], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [True, False])
def test_a_whole_model_waits_beside_a_gpu(make_config, make_run, fused):
    """Weights come and go between the devices, and learn what they would have."""
    peaks, losses = {}, {}
    optimizer = {"optimizer": "ADAFACTOR", "fused_back_pass": fused, "stochastic_rounding": False}
    for share in (0.0, 1.0):
        run = make_run(
            make_config(
                train_device="cuda",
                epochs=1,
                **{**FULL, "optimizer": optimizer, "unet.offload_fraction": share},
            )
        )
        torch.cuda.reset_peak_memory_stats()
        run.go()
        peaks[share], losses[share] = torch.cuda.max_memory_allocated(), run.losses
    assert losses[1.0] == pytest.approx(losses[0.0], rel=1e-3)
    assert peaks[1.0] < peaks[0.0]
