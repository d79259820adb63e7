"""Pictures that tile: a model that wraps around the edges knows of none."""

import pytest
import torch

from modules.config import ConfigError, TrainConfig
from modules.families import family_for
from modules.training import events as e
from modules.training.tiling import wrap_around

WRAPS = {
    "force_circular_padding": True, "epochs": 1, "learning_rate": 2e-2,
    "layer_filter": "attn2.to_k,resnets.0.conv1,conv_in",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["LORA", pytest.param("OFT_2", marks=pytest.mark.slow)])
def test_a_rolled_picture_gives_the_rolled_answer(make_config, make_run, kind):
    """Of the UNet with its trained adapter, and of the VAE's decoder."""
    differences = {}

    def react(event, _commands):
        if not isinstance(event, e.ModelSaved):
            return
        model = run.trainer.model
        model.unet.eval()
        torch.manual_seed(0)
        latents = torch.randn(1, model.unet.config.in_channels, 16, 16)
        text = torch.randn(1, 77, model.unet.config.cross_attention_dim)
        with torch.no_grad():
            answers = [
                model.unet(torch.roll(latents, shift, dims=(2, 3)), 500, text).sample
                for shift in ((0, 0), (8, 8))
            ]
            pictures = [
                model.vae.decode(torch.roll(latents, shift, dims=(2, 3))).sample
                for shift in ((0, 0), (8, 8))
            ]
        scale = pictures[0].shape[-1] // 16
        differences["unet"] = (torch.roll(answers[0], (8, 8), (2, 3)) - answers[1]).abs().max()
        rolled = torch.roll(pictures[0], (8 * scale, 8 * scale), (2, 3))
        differences["vae"] = (rolled - pictures[1]).abs().max()

    changes = {"peft_type": kind, "output_model_format": "KOHYA_LORA", "oft_block_size": 4}
    run = make_run(make_config(**WRAPS, **changes), react)
    run.go()
    assert differences["unet"] < 1e-4
    assert differences["vae"] < 1e-4


def test_its_latents_are_of_their_own(make_config, train, tmp_path):
    """What was cached by a model with edges is not what one without them makes."""
    cache = str(tmp_path / "cache")
    train(make_config(epochs=1, cache_dir=cache))
    run = train(make_config(**WRAPS, cache_dir=cache))
    assert [event for event in run.of(e.TaskProgress) if event.task == "caching"]


def test_an_adapter_that_pads_with_zeros_is_refused(make_config, train):
    with pytest.raises(ConfigError, match=r"the adapter on .*conv.* cannot wrap around"):
        train(make_config(**WRAPS, peft_type="LOHA", output_model_format="KOHYA_LORA"))


@pytest.mark.parametrize(
    ("kind", "padding"), [("STABLE_DIFFUSION_15", "circular"), ("FLUX_DEV_1", "zeros")]
)
def test_only_models_that_can_tile_wrap_around(kind, padding):
    """In others the VAE alone has edges, and would give other latents for nothing."""
    config = TrainConfig().update(model_type=kind, force_circular_padding=True)
    parts = family_for(config.model_type).tiny()
    wrap_around(parts, config)
    layers = (layer for layer in parts.vae.modules() if isinstance(layer, torch.nn.Conv2d))
    assert {layer.padding_mode for layer in layers if any(layer.padding)} == {padding}
