"""Every architecture goes through the same loop: it learns, and its file holds what it learned.

The first losses of each are held in `golden_losses.json`. A change that means to change them writes
them anew, and says so: `WRITE_GOLDEN=1 pytest tests/contract/training/test_training_families.py`.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import save_toy

from modules.config import MODELS
from modules.config.supported import HONOURED
from modules.families import all_families
from modules.training import events as e

FAST = ("stable-diffusion-xl-v1-base", "Flux.1-dev")
FAMILIES = [
    pytest.param(
        family,
        id=f"{family.architecture}-{family.pipeline}",
        marks=() if family.architecture in FAST else pytest.mark.slow,
    )
    for family in all_families()
    if family.model_types[0] in HONOURED["model_type"]
]

GOLDEN = Path(__file__).parent / "golden_losses.json"


def hold_to_golden(name, losses):
    """Compare a run's losses with the recorded ones, or record them."""
    held = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("WRITE_GOLDEN"):
        held[name] = losses
        GOLDEN.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
    assert losses == pytest.approx(held[name], rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_learns(make_config, train, tmp_path, family):
    folder = tmp_path / "model"
    model = save_toy(family, folder)
    size = max(64, family.pixel_multiple)
    encoders = {f"{name}.train": False for name in MODELS[family.model_types[0]].text_encoders}
    config = make_config(
        model_type=family.model_types[0].value,
        **model,
        cache_dir=str(tmp_path / "cache"),
        resolution=str(size),
        layer_filter="",
        epochs=2,
        **{f"{family.denoiser}.gradient_checkpointing": False, **encoders},
    )
    run = train(config)
    assert len(run.losses) == 6
    losses = [run.losses[step] for step in range(1, 6)]
    hold_to_golden(f"{family.architecture} {family.pipeline}", losses)
    assert all(event.grad_norm > 0 for event in run.of(e.LossUpdate))
    tensors = load_file(run.of(e.ModelSaved)[0].path)
    second = [tensor for key, tensor in tensors.items() if "lora_B" in key]
    assert second
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    changed = sum(bool(torch.count_nonzero(tensor)) for tensor in second)
    assert changed > len(second) / 2
