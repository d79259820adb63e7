"""Runs on toys of every architecture, and what two of them must have in common."""

import torch
from PIL import Image
from safetensors.torch import load_file

from modules import TrainConfig
from modules.config import MODELS
from modules.families import family_for


def cards(folder):
    """Two pictures with captions."""
    for number, colour in enumerate(["red", "green"]):
        image = Image.new("RGB", (64, 64), colour)
        image.paste("white", (8 * number, 8, 8 * number + 8, 40))
        image.save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} card" + " of glass" * number)
    return folder


def save_toy(family, folder):
    """A toy in folders as published models are laid out: the settings that load it."""
    parts = family.tiny()
    sources = {"base_model_name": (folder, parts.pipeline)}
    if parts.finisher is not None:
        for name, network in (("decoder", parts.finisher), (parts.encoder_name, parts.vae)):
            sources[f"{name}.model_name"] = (folder.with_name(f"{folder.name}-{name}"), network)
    for path, network in sources.values():
        if not path.exists():
            network.save_pretrained(path)
    return {field: str(path) for field, (path, _) in sources.items()}


def config_for(kind, pictures, folder, **changes):
    """Two epochs of one batch, without samples and backups; the toy is made where it is not yet."""
    facts = MODELS[kind]
    model = save_toy(family_for(kind), folder / "model")
    parts = (facts.denoiser, *facts.text_encoders)
    config, warnings = TrainConfig.load(
        {
            "model_type": kind.value,
            "training_method": "LORA",
            "workspace_dir": str(folder / "run"),
            "cache_dir": str(folder / "cache"),
            "output_model_destination": str(folder / "lora.safetensors"),
            "output_model_format": "COMFY_LORA",
            "train_device": "cpu",
            "train_dtype": "FLOAT_32",
            "tensorboard": False,
            "resolution": str(max(64, facts.pixel_multiple)),
            "dataloader_threads": 1,
            "concepts": [{"name": "cards", "path": str(pictures)}],
            "batch_size": 2,
            "epochs": 2,
            "learning_rate": 1e-2,
            "learning_rate_warmup_steps": 0,
            "lora_rank": 4,
            "lora_alpha": 2.0,
            "sample_after_unit": "NEVER",
            "sample_image_format": "PNG",
            "backup_after_unit": "NEVER",
            "samples": [],
            **{part: {"train": part == facts.denoiser} for part in parts},
        }
    )
    assert warnings == []
    return config.update(**{**model, **changes})


def assert_same_backup(one, two):
    """Every trained weight, moment, average, generator and data position of two backups."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*.safetensors"))
    assert names
    for name in names:
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    for name in ("optimizer/optimizer.pt", "ot/state.pt"):
        first, second = (torch.load(path / name, weights_only=True) for path in (one, two))
        first.pop("due", None), second.pop("due", None)  # clocks
        assert_equal(first, second, name)


def assert_equal(one, two, path):
    """The same values all the way down; a failure says where they part."""
    assert type(one) is type(two), path
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_equal(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), path
        for index, pair in enumerate(zip(one, two, strict=True)):
            assert_equal(*pair, f"{path}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    else:
        assert one == two, path
