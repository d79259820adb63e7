"""Settings that make steps faster: they teach the same, and end with the run."""

import pytest
import torch
from torch._inductor import config as inductor

from modules.training import events as e


def settings_of_torch():
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    return matmul.allow_tf32, convolution.allow_tf32, torch._C._get_sdp_priority_order()


def seen_in_a_step(make_run, config):
    """What torch is set to in the middle of a step, and the run."""
    seen = []

    def react(event, _commands):
        if event == e.TrainingState("training") and not seen:
            unet = run.trainer.model.unet
            unet.register_forward_hook(lambda *_: seen.append(settings_of_torch()))

    run = make_run(config, react)
    run.go()
    return seen[0], run


@pytest.mark.parametrize(("dtype", "on"), [("TFLOAT_32", True), ("FLOAT_32", False)])
def test_tf32_is_on_only_where_asked_for_and_only_in_the_run(make_config, make_run, dtype, on):
    before = settings_of_torch()
    (matmul, convolution, _), _ = seen_in_a_step(make_run, make_config(train_dtype=dtype, epochs=1))
    assert (matmul, convolution) == (on, on)
    assert settings_of_torch() == before


def test_an_attention_kernel_comes_first_in_the_run_alone(make_config, make_run, train):
    before = settings_of_torch()
    usual, plain = seen_in_a_step(make_run, make_config(epochs=1))
    assert usual[2] == before[2]
    flash, run = seen_in_a_step(make_run, make_config(epochs=1, attention_mechanism="FLASH"))
    assert flash[2][0] == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value
    cudnn, _ = seen_in_a_step(make_run, make_config(epochs=1, attention_mechanism="CUDNN"))
    assert cudnn[2][0] == torch.nn.attention.SDPBackend.CUDNN_ATTENTION.value
    assert sorted(cudnn[2]) == sorted(flash[2])  # the others take what it cannot do
    assert run.losses == plain.losses
    assert settings_of_torch() == before


def test_without_a_compiler_the_run_says_so_and_goes_on(make_config, train, monkeypatch):
    monkeypatch.setattr(inductor.cpp, "cxx", ("/no/such/compiler",))
    monkeypatch.setattr(inductor, "fx_graph_cache", False)
    run = train(make_config(epochs=1, compile=True))
    said = [warning for warning in run.warnings if "uncompiled" in warning]
    assert len(said) == 1
    assert "compiler" in said[0].lower()
    assert run.losses == train(make_config(epochs=1)).losses


WHOLE = {
    "training_method": "FINE_TUNE",
    "output_model_format": "DIFFUSERS",
    "optimizer": {"optimizer": "ADAFACTOR", "fused_back_pass": True},
    "learning_rate": 1e-4,
}


@pytest.mark.slow
@pytest.mark.parametrize("whole", [{}, WHOLE], ids=["adapter", "whole"])
@pytest.mark.parametrize("more", [{}, {"transformer.offload_fraction": 1.0}], ids=["", "offload"])
def test_compiled_layers_learn_the_same(make_config, make_run, train, tmp_path, more, whole):
    from modules.config import ModelType
    from modules.families import family_for

    family_for(ModelType.FLUX_DEV_1).tiny().pipeline.save_pretrained(tmp_path / "model")
    config = make_config(
        model_type="FLUX_DEV_1",
        base_model_name=str(tmp_path / "model"),
        cache_dir=str(tmp_path / "cache"),
        layer_filter="attn",
        epochs=1,
        **{"text_encoder.train": False, "transformer.gradient_checkpointing": True},
        **{"text_encoder_2.train": False, **whole},
    )
    run = make_run(config.update(compile=True, **more)).go()
    assert not any("uncompiled" in warning for warning in run.warnings)
    plain = train(config.update(workspace_dir=str(tmp_path / "plain")))
    assert run.losses == pytest.approx(plain.losses, rel=1e-4)
    assert len(run.losses) == 3
