"""The proof that training works: 300 steps of a LoRA teach the embedded model a style.

`WRITE_FIGURE=1 pytest tests/assets/test_learning_a_style.py` draws `docs/style.png` anew.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from modules import GenericTrainer, TrainCallbacks, TrainConfig
from modules.training import events as e
from ot_notebook import assets, preset_files

STEPS, HELD_OUT = 300, 16
FIGURE = Path(__file__).parents[2] / "docs" / "style.png"


def split(folder):
    """The embedded line drawings as two concepts: some are held out to measure with."""
    files = sorted(assets.dataset("line art").glob("*.png"))
    held = set(files[:: len(files) // HELD_OUT][:HELD_OUT])
    for file in files:
        place = folder / ("held" if file in held else "taught")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
        shutil.copy(file.with_suffix(".txt"), place)
    image = {"enable_random_flip": True}
    return [
        {"name": "taught", "path": str(folder / "taught"), "image": image, "image_variations": 2},
        {"name": "held out", "path": str(folder / "held"), "type": "VALIDATION"},
    ]


def colour(path):
    """Mean distance of a picture's pixels from grey, in steps of 256."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return float((pixels.max(-1) - pixels.min(-1)).mean())


def draw(before, after, losses):
    """Rows of pictures before and after, and the held-out loss against steps."""
    size, margin, height = 96, 22, 150
    sheet = Image.new("RGB", (len(before) * size, 2 * (size + margin) + height), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (paths, text) in enumerate(((before, "before"), (after, f"after {STEPS} steps"))):
        top = row * (size + margin)
        pen.text((4, top + 4), text, fill="black")
        for column, path in enumerate(paths):
            picture = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * size, top + margin))
    top, least, most = 2 * (size + margin), min(losses.values()), max(losses.values())
    pen.text((4, top + 4), f"loss of {HELD_OUT} drawings held out, against steps", fill="black")
    left, right, low, high = 60, sheet.width - 40, sheet.height - 24, top + 30
    places = [
        (
            left + (right - left) * step / STEPS,
            low - (low - high) * (loss - least) / (most - least),
        )
        for step, loss in losses.items()
    ]
    pen.line([(left, high), (left, low), (right, low)], fill="grey")
    pen.line(places, fill="#1f6feb", width=2)
    pen.text((8, high - 6), f"{most:.3f}", fill="black")
    pen.text((8, low - 6), f"{least:.3f}", fill="black")
    pen.text((left, low + 6), "0", fill="black")
    pen.text((right - 10, low + 6), str(STEPS), fill="black")
    sheet.quantize(128).save(FIGURE, optimize=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lora_learns_a_style_in_300_steps(tmp_path):
    config, _ = TrainConfig.load(preset_files.find("emoji LoRA"))
    concepts = split(tmp_path / "pictures")
    config = config.update(
        concepts=concepts,
        workspace_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
        output_model_destination=str(tmp_path / "lora.safetensors"),
        tensorboard=False,
        backup_before_save=False,
        epochs=STEPS * config.batch_size // (96 - HELD_OUT),
        validation=True,
        validate_after=60,
        validate_after_unit="STEP",
        sample_after=STEPS,
    )
    losses, pictures = {}, {}

    def note(event):
        match event:
            case e.ValidationLoss():
                losses[event.step] = event.loss
            case e.SampleImage():
                pictures.setdefault(event.step, {})[event.index] = event.path

    trainer = GenericTrainer(config, TrainCallbacks(on_event=note))
    trainer.start()
    trainer._validate()
    trainer.train()
    trainer.end()
    trainer.close()
    assert trainer.step == STEPS
    assert set(losses) >= {0, 60, 120, 180, 240, 300}
    assert losses[STEPS] < 0.8 * losses[0]
    before, after = ([pictures[step][i] for i in range(8)] for step in (0, STEPS))
    colours = [(colour(a), colour(b)) for a, b in zip(before, after, strict=True)]
    assert np.mean([old for old, _ in colours]) > 20
    assert all(new < 0.35 * old for old, new in colours)  # drawings in lines have none
    if os.environ.get("WRITE_FIGURE"):
        draw(before, after, dict(sorted(losses.items())))
