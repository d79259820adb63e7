"""A new architecture: a file and its line in the table, and nothing else knows of it."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import cards, config_for

from modules import GenericTrainer, TrainCallbacks, families
from modules.config import ModelType
from modules.training import events as e

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
PRESETS, FAMILIES = ROOT / "presets", families.FAMILIES
TYPE = ModelType.ANIMA
"""A word of OneTrainer's with its facts, whose own architecture the new one takes the place of."""

TOY = '''
"""A flow transformer of one block, told about colours by the mean of a caption's bytes."""

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
from transformers import UMT5Config, UMT5EncoderModel

from modules.adapters.key_map import Native, lora_formats, renamer
from modules.config import ModelType
from modules.families import tiny_networks as tiny
from modules.families.base import Family, Parts
from modules.families.tiny_tokenizers import t5_tokenizer

RULES = [("single_transformer_blocks.{i}", "blocks.{i}"), ("proj_out", "out")]


class Toy(Family):
    """The toy, whose only peculiarity is that its time runs backwards."""

    model_types = (ModelType.ANIMA,)
    architecture = "toy"
    pipeline = "AuraFlowPipeline"
    lora_formats = lora_formats("transformer", Native(renamer(RULES)))

    def encode_text(self, parts, captions):
        text, *_ = parts.pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, max_sequence_length=16
        )
        return {"text": text}

    def predict(self, parts, noisy, t, condition, size=None):
        return parts.denoiser(noisy, condition["text"], 1 - t).sample

    def sample_arguments(self, parts, definition):
        return {
            "prompt": definition.prompt,
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": 1.0,
            "max_sequence_length": 16,
        }

    def tiny(self):
        torch.manual_seed(0)
        denoiser = AuraFlowTransformer2DModel(
            sample_size=32, in_channels=4, out_channels=4, num_mmdit_layers=0,
            num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=32, caption_projection_dim=16, pos_embed_max_size=256,
        )
        text = UMT5Config(
            vocab_size=tiny.VOCABULARY, d_model=32, d_ff=64, d_kv=8, num_layers=1, num_heads=4
        )
        pipeline = AuraFlowPipeline(
            transformer=denoiser,
            vae=tiny.kl_vae(4),
            scheduler=tiny.flow_scheduler(),
            text_encoder=UMT5EncoderModel(text).eval(),
            tokenizer=t5_tokenizer(),
        )
        return Parts(pipeline, self.denoiser)


VARIANTS = (Toy(),)
'''


@pytest.fixture
def added(tmp_path, monkeypatch):
    """What CONTRIBUTING.md tells to do: a file, and its line in the table."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    monkeypatch.setattr(families, "FAMILIES", ("toy", *families.FAMILIES))
    yield
    sys.modules.pop("modules.families.toy")


@pytest.mark.parametrize("method", ["LORA", "FINE_TUNE"])
def test_a_new_architecture_is_a_file_and_a_line(added, method, tmp_path):
    (tmp_path / "pictures").mkdir()
    definition = {"width": 64, "height": 64, "diffusion_steps": 2, "prompt": "a card", "seed": 1}
    result = tmp_path / "result"
    changes = {
        "training_method": method,
        "output_model_format": "ORIGINAL_LORA" if method == "LORA" else "DIFFUSERS",
        "output_model_destination": f"{result}{'.safetensors' if method == 'LORA' else ''}",
        "layer_filter": "single_transformer_blocks,proj_out",
        "epochs": 30,
        "learning_rate": 1e-2,
        "min_noising_strength": 0.5,
        "max_noising_strength": 0.6,
        "samples": [definition],
        "sample_after": 15,
        "sample_after_unit": "EPOCH",
    }
    config = config_for(TYPE, cards(tmp_path / "pictures"), tmp_path, **changes)
    seen = []
    GenericTrainer(config, TrainCallbacks(on_event=seen.append)).run()
    assert [event.message for event in seen if isinstance(event, e.Warned)] == []
    losses = [event.loss for event in seen if isinstance(event, e.LossUpdate)]
    assert len(losses) == 30
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert all(event.path.exists() for event in seen if isinstance(event, e.SampleImage))
    assert any(isinstance(event, e.SampleImage) for event in seen)
    if method == "LORA":
        keys = load_file(f"{result}.safetensors").keys()
        assert all(key.startswith(("blocks.0.", "out.")) for key in keys)
    else:
        index = json.loads((result / "model_index.json").read_text())
        assert index["_class_name"] == "AuraFlowPipeline"


def test_every_architecture_is_one_short_file_and_a_preset():
    folder = Path(families.__file__).parent
    lengths = {name: len((folder / f"{name}.py").read_text().splitlines()) for name in FAMILIES}
    assert max(lengths.values()) <= 300
    found = {json.loads(path.read_text())["model_type"] for path in PRESETS.rglob("*.json")}
    able = {
        type(each) for each in families.all_families() for kind in each.model_types if kind in found
    }
    assert able == {type(each) for each in families.all_families()}


def test_nothing_else_asks_which_architecture_it_is():
    asked = re.compile(r"(==|!=|\bis|\bis not|\bin|\bcase)\s*\(?\{?\s*(\w+\.)?ModelType\.")
    for path in [*ROOT.glob("modules/**/*.py"), *ROOT.glob("ot_notebook/**/*.py")]:
        if path.parent.name != "families":
            assert not asked.search(path.read_text(encoding="utf-8")), path
