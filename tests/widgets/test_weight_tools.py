"""Files of weights on a page: what the buttons write is what the functions write."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ot_notebook as ot
from modules.adapters.files import save_tensors, to_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.config import ModelFormat, ModelType
from modules.families import family_for
from ot_notebook.services.inference_service import InferenceService
from ot_notebook.widgets.weight_tools import TOOLS, WeightTools

torch.set_num_threads(1)
SETTINGS = {"seed": 7, "steps": 2, "cfg_scale": 3.0, "scheduler": "DDIM"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def service(folder):
    return InferenceService(folder / "gallery").load(ot.assets.model())


@pytest.fixture(scope="module")
def lora(folder, service):
    """A LoRA of rank 4 that changes pictures visibly."""
    _, parts = service._held.model._owner
    network = type(parts.denoiser).from_config(parts.denoiser.config)
    network.load_state_dict(parts.denoiser.state_dict())
    layers = matching_layers(network, "mid_block", False)
    add_lora(network, layers, rank=4, alpha=4, dropout=0, seed=0)
    found = list(lora_layers({"unet": network}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in found:
            layer.up.copy_(torch.randn(layer.up.shape, generator=generator) * 0.2)
    path = folder / "style.safetensors"
    family = family_for(ModelType.STABLE_DIFFUSION_15)
    save_tensors(to_format(found, family, ModelFormat.KOHYA_LORA), path, torch.float32)
    return path


@pytest.fixture
def tools(wire):
    tools = WeightTools()
    yield tools
    tools.close()


def press(tools, name, **lines):
    tools._choice.value = name
    for key, text in lines.items():
        tools._lines[name][key].value = str(text)
    tools._go.click()
    return tools.wait(60)


def pixels(result):
    return np.asarray(result.image, dtype=int)


def test_a_converted_a_merged_and_a_resized_lora_draw_as_the_lora(tools, service, lora, folder):
    expected = pixels(service.generate("a fox", loras=[(lora, 0.8)], **SETTINGS))
    assert abs(expected - pixels(service.generate("a fox", **SETTINGS))).mean() > 1

    for name in ("convert", "merge", "extract"):
        tools._kinds[name].value = "STABLE_DIFFUSION_15"
    tools._formats["convert"].value = "DIFFUSERS_LORA"
    converted = folder / "converted.safetensors"
    said = press(tools, "convert", source=lora, target=converted)
    assert said.endswith("as DIFFUSERS_LORA.")
    assert all(".lora_" in key for key in load_file(converted))
    drawn = service.generate("a fox", loras=[(converted, 0.8)], **SETTINGS)
    assert abs(pixels(drawn) - expected).max() <= 2

    said = press(tools, "resize", source=lora, rank=4, target=folder / "resized.safetensors")
    assert "of rank 4.0 on average" in said
    drawn = service.generate("a fox", loras=[(folder / "resized.safetensors", 0.8)], **SETTINGS)
    assert abs(pixels(drawn) - expected).max() <= 2

    said = press(
        tools,
        "merge",
        model=ot.assets.model(),
        adapters=f"{converted}=0.8",
        target=folder / "merged",
    )
    assert said.endswith("with converted.safetensors in it.")
    merged = InferenceService(folder / "gallery").load(folder / "merged")
    assert abs(pixels(merged.generate("a fox", **SETTINGS)) - expected).max() <= 3

    said = press(
        tools, "extract", base=ot.assets.model(), tuned=folder / "merged", rank=4,
        target=folder / "extracted.safetensors",
    )  # fmt: skip
    assert "of rank 4" in said
    drawn = service.generate("a fox", loras=[(folder / "extracted.safetensors", 1.0)], **SETTINGS)
    assert abs(pixels(drawn) - expected).mean() < 2
    assert "Weight" not in tools._bar.value
    assert not tools._go.disabled


def test_what_cannot_be_done_is_said_and_the_tools_stay_usable(tools, lora, folder):
    assert "Source is empty. Write the path of a .safetensors" in press(
        tools, "convert", source="", target="x"
    )
    assert "Rank is 'four', but must be" in press(
        tools, "resize", source=lora, rank="four", target=folder / "x.safetensors"
    )
    assert "is no number. Write FILE=0.8" in press(
        tools, "merge", model="m", adapters="a=much", target="x"
    )
    gone = folder / "<b>gone</b>.safetensors"
    assert "does not exist" in press(tools, "convert", source=gone, target=folder / "x.safetensors")
    assert "&lt;b&gt;gone" in tools._said.value
    assert "<b>gone" not in tools._said.value
    assert not tools._go.disabled


def test_only_the_chosen_tool_is_shown_and_a_saved_notebook_tells_of_the_last(tools):
    for name in TOOLS:
        tools._choice.value = name
        shown = [one for one, page in tools._pages.items() if page.layout.display != "none"]
        assert shown == [name]
    tools._say("good", "Written", "<i>x</i>.safetensors")
    assert "&lt;i&gt;x" in tools._repr_mimebundle_()[0]["text/html"]
    assert tools.plain() == "<i>x</i>.safetensors"
