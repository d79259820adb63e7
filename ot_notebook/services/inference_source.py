"""From what `load` was given (folder, file, hub id, run) to a config that a family loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.config import ConfigError, DataType, ModelType, Problem, TrainConfig, TrainingMethod
from modules.config.models import MODELS
from modules.config.paths import backups, hub_revision, resolve
from modules.training.events import ModelSaved
from ot_notebook.services.run import Run

STORED_AS = {
    "v1": ModelType.STABLE_DIFFUSION_15,
    "inpainting": ModelType.STABLE_DIFFUSION_15_INPAINTING,
    "v2": ModelType.STABLE_DIFFUSION_21,
    "inpainting_v2": ModelType.STABLE_DIFFUSION_20_INPAINTING,
    "xl_base": ModelType.STABLE_DIFFUSION_XL_10_BASE,
    "xl_inpaint": ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING,
    "sd3": ModelType.STABLE_DIFFUSION_3,
    "sd35_medium": ModelType.STABLE_DIFFUSION_35,
    "sd35_large": ModelType.STABLE_DIFFUSION_35,
    "flux-dev": ModelType.FLUX_DEV_1,
    "flux-fill": ModelType.FLUX_FILL_DEV_1,
    "flux-2-dev": ModelType.FLUX_2,
    "chroma": ModelType.CHROMA_1,
}
"""What diffusers calls the architecture of a single file, as a model type."""

SD2_TEXT_WIDTH = 1024
"""Stable Diffusion 1 and 2 use one pipeline class; the width of the text tells them apart."""


@dataclass(frozen=True)
class Source:
    """Where networks come from."""

    name: str
    """For people: the model's name."""
    config: TrainConfig
    """Names the networks, as for training."""
    adapter: Path | None = None
    """What a run has trained on top of them."""
    embeddings: tuple[tuple[str, Path], ...] = ()
    """Words that a run has trained, and their files."""
    whole: Path | None = None
    """The backup with networks that a run has trained in place of the base model's."""


def find_source(model: object, model_type: ModelType | str | None, dtype: DataType) -> Source:
    """The config that loads a model.

    Args:
        model: a diffusers folder, a single file, a hub id, a run or its id, a run's workspace, a
            backup folder, or a `TrainConfig`.
        model_type: needed where the model does not tell what it is.
        dtype: in which the networks are kept.

    Raises:
        ConfigError: if there is no such model, or it does not tell its type.
        TypeError: for a thing that is none of these.
    """
    if isinstance(model, Run):
        return _of_run(model, dtype)
    if isinstance(model, TrainConfig):
        return Source(_title(model.base_model_name), _typed(model, dtype))
    if not isinstance(model, str | Path):
        raise TypeError(
            f"load() was given a {type(model).__name__}. It takes a path, a hub id, a Run, "
            f'a TrainConfig, or "live".'
        )
    name = str(model)
    if not name.strip() or name == ".":
        raise _refused("No model is named.", "Give a folder, a file, a hub id, or a run.")
    path = Path(resolve(name))
    if (path / "onetrainer_config" / "args.json").is_file():
        return _of_backup(path, dtype)
    if (path / "run.db").is_file():
        from ot_notebook.services.run import run, runs

        return _of_run(run(runs(path)["id"].iloc[0], path), dtype)
    chosen = _model_type(model_type) if model_type else _found_type(path, name)
    config = TrainConfig().update(
        model_type=chosen, base_model_name=name, offline_mode=_looks_local(path, name)
    )
    return Source(_title(name), _typed(config, dtype))


def _of_run(run: Run, dtype: DataType) -> Source:
    """The base model of a run with its newest result."""
    from modules.training.embeddings import backup_files, embedding_files

    config, name = run.config, f"run {run.id}"
    saved = [event for event in run.events("save") if isinstance(event, ModelSaved)]
    results = [event.path for event in saved if event.path.exists()]
    if config.training_method is TrainingMethod.LORA:
        kept = [path / "lora" / "lora.safetensors" for path in backups(run.workspace)]
        found = [*results[-1:], *(path for path in kept if path.is_file())]
        if not found:
            raise _refused(
                f"{name} has saved neither a LoRA nor a backup.",
                "Save it, or load the live training model.",
            )
        at = embedding_files(config.embeddings_in_use, found[0])
        if not results:
            at = backup_files(config.embeddings_in_use, found[0].parents[1])
        return Source(name, _typed(config, dtype), found[0], _words(config, at))
    if not results:
        raise _refused(f"{name} has saved no model.", "Save it, or load the live training model.")
    words = _words(config, embedding_files(config.embeddings_in_use, results[-1]))
    if config.training_method is not TrainingMethod.EMBEDDING:
        config = config.update(base_model_name=str(results[-1]))
    return Source(name, _typed(config, dtype), embeddings=words)


def _words(config: TrainConfig, files: Mapping[str, Path]) -> tuple[tuple[str, Path], ...]:
    """Placeholders and files of what a run has trained, as far as they are there."""
    words = config.embeddings_in_use
    return tuple((words[at].placeholder, path) for at, path in files.items() if path.is_file())


def _of_backup(folder: Path, dtype: DataType) -> Source:
    from modules.training.embeddings import backup_files

    config, _warnings = TrainConfig.load(folder / "onetrainer_config" / "args.json")
    words = _words(config, backup_files(config.embeddings_in_use, folder))
    adapter = folder / "lora" / "lora.safetensors"
    if adapter.is_file():
        return Source(folder.name, _typed(config, dtype), adapter, words)
    changes = {f"{part}.model_name": str(folder / part) for part in trained_parts(config, folder)}
    config = config.update(**changes)
    return Source(folder.name, _typed(config, dtype), embeddings=words, whole=folder)


def trained_parts(config: TrainConfig, backup: Path) -> list[str]:
    """Networks that a backup of a whole model holds, each in a folder of its name."""
    return [part for part in MODELS[config.model_type].parts if (backup / part).is_dir()]


def _typed(config: TrainConfig, dtype: DataType) -> TrainConfig:
    """The networks in one dtype, but those in float32 that overflow in float16."""
    facts = MODELS[config.model_type]
    parts = dict.fromkeys(facts.parts, dtype)
    if dtype is DataType.FLOAT_16:
        parts |= dict.fromkeys(facts.overflows, DataType.FLOAT_32)
    return config.update(**{f"{part}.weight_dtype": each for part, each in parts.items()})


def _found_type(path: Path, name: str) -> ModelType:
    if path.is_file():
        return _type_of_file(path)
    if path.is_dir() or not _looks_local(path, name):
        return _type_of_pipeline(path, name)
    raise _refused(
        f"{name} does not exist.",
        "Give a diffusers folder, a .safetensors file, a hub id such as owner/model, or a run.",
    )


def _type_of_pipeline(path: Path, name: str) -> ModelType:
    """By the class that model_index.json names."""
    from modules.families import all_families

    index = _index(path, name)
    known = [family for family in all_families() if family.pipeline == index.get("_class_name")]
    if not known:
        raise _refused(
            f"{name} is a {index.get('_class_name')}, which this engine does not know.",
            "Choose a model of a family that can be trained here.",
        )
    if len(known) > 1 and _text_width(path) == SD2_TEXT_WIDTH:
        return known[1].model_types[0]
    return known[0].model_types[0]


def _index(path: Path, name: str) -> dict[str, Any]:
    from modules.families.folders import load_index, read_index

    if path.is_dir() and read_index(path) is None:
        raise _refused(
            f"{name} has no model_index.json, so it is no diffusers folder.",
            "Give the folder of a whole model, a run's workspace, or a single file.",
        )
    try:
        if path.is_dir():
            return load_index(str(path))
        model, revision = hub_revision(name)
        return load_index(model, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise _refused(
            f"Cannot load {name} ({reason}).",
            "Check the path or the spelling of the hub id, and that this machine reaches the hub.",
        ) from error


def _text_width(path: Path) -> int:
    file = path / "text_encoder" / "config.json"
    if not file.is_file():
        return 0
    return int(json.loads(file.read_text(encoding="utf-8")).get("hidden_size", 0))


def _type_of_file(path: Path) -> ModelType:
    """By the keys and shapes of a single file, of which only the header is read."""
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise _refused(f"{path} does not tell what it is.", "Say it: load(path, model_type=...).")
    try:
        with safe_open(path, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _refused(
            f"{path} is no safetensors file ({error}).", "Check that it was copied whole."
        ) from error
    if any(mark in key for key in shapes for mark in ("lora_", "hada_", "lokr_")):
        raise _refused(
            f"{path} is a LoRA, not a model.",
            "Load its model, with loras=[(path, 1.0)].",
        )
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    # v1 is what diffusers answers for everything that it does not know
    stored = infer_diffusers_model_type(tensors)
    diffusion = any(key.startswith("model.diffusion_model.") for key in shapes)
    if stored not in STORED_AS or (stored == "v1" and not diffusion):
        raise _refused(
            f"{path} holds no model that is known by its keys, such as {next(iter(shapes), '')}.",
            "If it is one, say which: load(path, model_type=...).",
        )
    return STORED_AS[stored]


def _model_type(value: ModelType | str) -> ModelType:
    return TrainConfig().update(model_type=value).model_type


def _looks_local(path: Path, name: str) -> bool:
    model, _revision = hub_revision(name)
    return (
        path.exists() or path.is_absolute() or name.startswith((".", "~")) or model.count("/") != 1
    )


def _title(name: str) -> str:
    return Path(name).stem if name.endswith((".safetensors", ".ckpt")) else Path(name).name


def _refused(message: str, fix: str) -> ConfigError:
    return ConfigError([Problem("model", "error", message, fix)])
