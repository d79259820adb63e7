"""A toy Stable Diffusion of the real classes, a few pictures, and runs on them."""

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image

from modules import GenericTrainer, TrainCallbacks, TrainCommands, TrainConfig
from modules.config import ModelType
from modules.families import family_for
from modules.training import events as e

torch.set_num_threads(1)
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline = family_for(ModelType.STABLE_DIFFUSION_15).tiny().pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (64, 64), colour)
        image.paste("white", (8 * number, 8, 8 * number + 8, 40))
        image.save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} card")
    return folder


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_config(model_folder, pictures, cache_folder, tmp_path):
    """A config of six pictures in three batches an epoch; every call has a workspace of its own."""
    numbers = itertools.count()

    def make(**changes):
        workspace = Path(changes.pop("workspace_dir", tmp_path / f"run-{next(numbers)}"))
        folder = changes.get("output_model_format") == "DIFFUSERS"
        config, warnings = TrainConfig.load(
            {
                "model_type": "STABLE_DIFFUSION_15",
                "training_method": "LORA",
                "base_model_name": str(model_folder),
                "workspace_dir": str(workspace),
                "cache_dir": str(cache_folder),
                "output_model_destination": str(
                    workspace / ("model" if folder else "lora.safetensors")
                ),
                "output_model_format": "DIFFUSERS_LORA",
                "train_device": "cpu",
                "train_dtype": "FLOAT_32",
                "tensorboard": False,
                "resolution": "64",
                "dataloader_threads": 1,
                "concepts": [{"name": "cards", "path": str(pictures)}],
                "batch_size": 2,
                "epochs": 3,
                "learning_rate": 1e-3,
                "learning_rate_warmup_steps": 0,
                "unet": {"gradient_checkpointing": False},
                "text_encoder": {"train": False, "gradient_checkpointing": False},
                "layer_filter": "attn2",
                "lora_rank": 4,
                "lora_alpha": 2.0,
                "sample_after_unit": "NEVER",
                "sample_image_format": "PNG",
                "backup_after_unit": "NEVER",
                "backup_before_save": False,
                "samples": [],
            }
        )
        assert warnings == []
        return config.update(**changes)

    return make


class Run:
    """A finished run: its events by kind, and what it left on disk."""

    def __init__(self, config, react=None):
        self.config, self.events = config, []
        self.commands = TrainCommands()
        react = react or (lambda event, commands: None)

        def on_event(event):
            self.events.append(event)
            react(event, self.commands)

        self.trainer = GenericTrainer(config, TrainCallbacks(on_event=on_event), self.commands)

    def go(self):
        self.trainer.run()
        return self

    def of(self, kind):
        return [event for event in self.events if type(event) is kind]

    @property
    def losses(self):
        return {event.step: event.loss for event in self.of(e.LossUpdate)}

    @property
    def states(self):
        return [event.state for event in self.of(e.TrainingState)]

    @property
    def warnings(self):
        return [event.message for event in self.of(e.Warned)]


@pytest.fixture
def make_run():
    """A run that has not begun: `.trainer` to look into, `.go()` to do it."""
    return Run


@pytest.fixture
def train():
    """Run a config to its end; `react(event, commands)` is called with every event."""
    return lambda config, react=None: Run(config, react).go()
