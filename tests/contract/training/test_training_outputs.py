"""What a run leaves behind, read by diffusers alone."""

import json
import weakref

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from modules.config import ConfigError, SampleConfig
from modules.training import events as e

SAMPLE = {
    "prompt": "a red card",
    "negative_prompt": "blue",
    "height": 64,
    "width": 64,
    "diffusion_steps": 4,
    "cfg_scale": 5.0,
    "seed": 7,
    "noise_scheduler": "DDIM",
}
LARGE = {"learning_rate": 2e-2, "lora_alpha": 3.0, "lora_rank": 4, "epochs": 2}


def last_sample(run):
    """The picture that the run drew after its last step, from the live networks."""
    return np.asarray(Image.open(run.of(e.SampleImage)[-1].path))


def drawn(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    image = pipeline(
        SAMPLE["prompt"],
        negative_prompt=SAMPLE["negative_prompt"],
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    return np.asarray(image)


@pytest.fixture(scope="module")
def before(model_folder):
    """What the model draws without any training."""
    return drawn(plain(model_folder))


def plain(folder):
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def layers(network):
    return sum(isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) for m in network.modules())


def adapted(network):
    return sum(bool(getattr(module, "lora_A", None)) for module in network.modules())


@pytest.mark.parametrize(
    ("layout", "encoder"),
    [
        ("KOHYA_LORA", True),
        ("DIFFUSERS_LORA", False),
        pytest.param("KOHYA_LORA", False, marks=pytest.mark.slow),
        pytest.param("DIFFUSERS_LORA", True, marks=pytest.mark.slow),
    ],
)
def test_the_saved_adapter_draws_what_the_live_model_drew(
    make_config, train, model_folder, before, layout, encoder
):
    config = make_config(
        output_model_format=layout,
        layer_filter="",
        samples=[SAMPLE],
        sample_after=6,
        sample_after_unit="STEP",
        **{"text_encoder.train": encoder},
        **LARGE,
    )
    run = train(config)
    pipeline = plain(model_folder)
    unet, text = layers(pipeline.unet), layers(pipeline.text_encoder)
    pipeline.load_lora_weights(run.of(e.ModelSaved)[0].path)
    # load_lora_weights can skip layers without a word
    assert adapted(pipeline.unet) == unet
    assert adapted(pipeline.text_encoder) == (text if encoder else 0)
    live = last_sample(run)
    assert np.abs(live.astype(int) - before).mean() > 2  # the adapter does something
    assert np.abs(live.astype(int) - drawn(pipeline)).max() <= 1


def test_output_dtype_and_metadata(make_config, train):
    run = train(make_config(output_dtype="FLOAT_16", epochs=1))
    path = run.of(e.ModelSaved)[0].path
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_the_filter_decides_which_layers_are_saved(make_config, train):
    run = train(make_config(layer_filter="attn2.to_k,attn2.to_v", epochs=1))
    names = {key.rsplit(".", 2)[0] for key in load_file(run.of(e.ModelSaved)[0].path)}
    assert names
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in names)


@pytest.mark.parametrize(
    "encoder", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["unet+encoder", "unet"]
)
def test_a_fine_tuned_model_loads_in_diffusers(make_config, train, model_folder, before, encoder):
    config = make_config(
        training_method="FINE_TUNE",
        output_model_format="DIFFUSERS",
        layer_filter="",
        learning_rate=1e-3,
        epochs=2,
        samples=[SAMPLE],
        sample_after=6,
        sample_after_unit="STEP",
        **{"text_encoder.train": encoder},
    )
    config = config.update(output_model_destination=f"{config.workspace_dir}/model")
    run = train(config)
    saved = run.of(e.ModelSaved)[0].path
    assert saved.name == "model"
    pipeline = plain(saved)
    base = plain(model_folder)
    assert np.abs(last_sample(run).astype(int) - before).mean() > 2
    assert np.abs(last_sample(run).astype(int) - drawn(pipeline)).max() <= 1
    same = [
        torch.equal(a, b)
        for a, b in zip(
            pipeline.text_encoder.parameters(), base.text_encoder.parameters(), strict=True
        )
    ]
    assert all(same) != encoder


def test_a_fine_tuned_filter_trains_only_its_layers(make_config, train, model_folder):
    """Norms among them, which adapters leave alone."""
    config = make_config(
        training_method="FINE_TUNE",
        output_model_format="DIFFUSERS",
        layer_filter="attn2,norm2",
        epochs=1,
    )
    config = config.update(output_model_destination=f"{config.workspace_dir}/model")
    saved = plain(train(config).of(e.ModelSaved)[0].path).unet.state_dict()
    base = plain(model_folder).unet.state_dict()
    changed = {key for key in base if not torch.equal(base[key], saved[key])}
    assert changed
    for part in ("attn2.to_q.weight", "transformer_blocks.0.norm2.weight", "resnets.0.norm2.bias"):
        assert any(part in key for key in changed)
    assert all("attn2" in key or "norm2" in key for key in changed)


def test_the_average_is_what_is_sampled_and_saved(make_config, train, before):
    """With a decay of almost 1 the average is almost the start: an adapter that does nothing."""
    slow = {"ema": "CPU", "ema_update_step_interval": 100, "non_ema_sampling": False}
    sample = {"samples": [SAMPLE], "sample_after": 6, "sample_after_unit": "STEP"}
    run = train(make_config(layer_filter="", **slow, **sample, **LARGE))
    assert np.abs(last_sample(run).astype(int) - before).max() <= 1
    tensors = load_file(run.of(e.ModelSaved)[0].path)
    assert all((t == 0).all() for key, t in tensors.items() if "lora_B" in key)


def test_a_sample_of_its_own_settings(make_config, train):
    definition = SampleConfig(**SAMPLE)

    def ask(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.sample_custom(definition)

    run = train(make_config(epochs=1), ask)
    (image,) = run.of(e.SampleImage)
    assert (image.kind, image.step, image.seed) == ("custom", 2, 7)
    assert image.path.parent.name == "custom"
    assert Image.open(image.path).size == (64, 64)


def test_tensorboard_reads_the_log(make_config, train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(make_config(tensorboard=True, epochs=1))
    (folder,) = (run.trainer._workspace.folder / "tensorboard").iterdir()
    log = EventAccumulator(str(folder)).Reload()
    logged = {point.step: point.value for point in log.Scalars("loss/train_step")}
    assert logged == pytest.approx(run.losses)
    assert [point.value for point in log.Scalars("lr/unet")] == pytest.approx([1e-3] * 3)


@pytest.mark.parametrize("layout", ["KOHYA_LORA", "DIFFUSERS_LORA"])
def test_a_run_goes_on_from_an_adapter_file(make_config, train, layout):
    first = train(make_config(output_model_format=layout, epochs=1, lora_alpha=3.0))
    path = first.of(e.ModelSaved)[0].path
    same = {"lora_model_name": str(path), "learning_rate": 1e-30, "epochs": 1}
    again = train(make_config(output_model_format=layout, lora_alpha=1.0, **same))
    found = load_file(again.of(e.ModelSaved)[0].path)
    for key, tensor in load_file(path).items():
        if layout == "DIFFUSERS_LORA" or "lora_down" in key:
            torch.testing.assert_close(found[key], tensor)
        elif "lora_up" in key:  # three times the values at a third of the alpha
            torch.testing.assert_close(found[key], 3 * tensor)


def test_an_adapter_that_does_not_fit_is_refused_with_the_way_out(make_config, train):
    path = str(train(make_config(epochs=1)).of(e.ModelSaved)[0].path)
    with pytest.raises(ConfigError, match="Set lora_rank to 4"):
        train(make_config(lora_model_name=path, lora_rank=8))
    with pytest.raises(ConfigError, match="does not train"):
        train(make_config(lora_model_name=path, layer_filter="attn2.to_q"))


def test_the_output_holds_its_config_where_asked(make_config, train):
    run = train(make_config(include_train_config="SETTINGS", epochs=1))
    with safe_open(run.of(e.ModelSaved)[0].path, "pt") as file:
        held = json.loads(file.metadata()["ot_config"])
    assert held["lora_rank"] == 4
    assert held["concepts"] is None


def test_samples_of_the_average_and_of_the_weights_have_folders_of_their_own(make_config, train):
    sample = {"samples": [SAMPLE], "sample_after": 1, "sample_after_unit": "EPOCH"}
    run = train(make_config(ema="GPU", epochs=1, learning_rate=5e-2, **sample))
    averaged, own = run.of(e.SampleImage)[-2:]
    assert own.path.parent.name == f"{averaged.path.parent.name} - no-ema"


def test_a_run_lets_go_of_its_networks(make_config, make_run):
    held = []

    def react(event, _commands):
        if isinstance(event, e.LossUpdate) and not held:
            held.append(weakref.ref(run.trainer.model.unet))

    run = make_run(make_config(epochs=1), react)
    run.go()
    assert held[0]() is None


@pytest.mark.parametrize("kind", [{}, {"peft_type": "LOHA"}], ids=["LORA", "LOHA"])
def test_a_format_without_a_place_for_what_trains_is_said_before_anything_does(
    make_config, make_run, kind
):
    config = make_config(
        output_model_format="ORIGINAL_LORA", **{"text_encoder.train": True}, **kind
    )
    run = make_run(config)
    with pytest.raises(ConfigError, match=r"ORIGINAL_LORA.* has no place for text_encoder"):
        run.go()
    assert "caching" not in run.states
