"""Adapters and whole models from one format to another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modules.adapters.embedding_files import named_as_here, read_embedding, unbundled
from modules.adapters.files import AdapterError, read_tensors, save_tensors
from modules.adapters.recognise import recognise
from modules.adapters.writing import in_any_format, stored_dtype
from modules.config import DataType, ModelFormat, ModelType, TrainConfig
from modules.families.base import Parts
from modules.families.saving import file_notes, part_layouts, save_model
from modules.families.stored import StoredModel, find_model
from modules.tensor_files import (
    MODEL_SPEC,
    Progress,
    Shape,
    finite,
    open_tensors,
    silent,
    write_tensors,
)

LORA_FORMATS = frozenset(
    {
        ModelFormat.DIFFUSERS_LORA,
        ModelFormat.KOHYA_LORA,
        ModelFormat.ORIGINAL_LORA,
        ModelFormat.COMFY_LORA,
        ModelFormat.LEGACY_LORA,
        ModelFormat.INTERNAL,
    }
)
"""Formats of adapters; INTERNAL is that of backups."""


def convert(
    source: str | Path,
    target: str | Path,
    model_format: ModelFormat | str,
    *,
    model_type: ModelType | str | None = None,
    dtype: torch.dtype | None = None,
    skip: bool = False,
    progress: Progress = silent,
) -> list[str]:
    """Write an adapter, an embedding or a whole model in another format; the keys left out.

    Args:
        source: an adapter's .safetensors file, an embedding's, a model's, or a diffusers folder.
        target: file or, for DIFFUSERS, folder to write; replaced if it exists.
        model_format: of the target.
        model_type: architecture, where the keys do not tell it.
        dtype: of the written weights; None keeps the stored type.
        skip: leave out the keys that belong to no layer, instead of refusing.
        progress: is told how many of how many weights are written.

    Raises:
        AdapterError: if the source is neither, or has keys that belong to no layer; names them.
        ConfigError: if the architecture does not have the format, or a layer has no place in it.
    """
    path, wanted = Path(source), ModelFormat(model_format)
    kind = ModelType(model_type) if model_type else None
    if wanted is ModelFormat.SAFETENSORS:
        tensors = named_as_here(read_embedding(path), kind, str(path))
        save_tensors(tensors, Path(target), dtype or stored_dtype(tensors))
        progress(len(tensors), len(tensors))
        return []
    if wanted not in LORA_FORMATS:
        _convert_model(path, Path(target), wanted, kind, dtype, progress)
        return []
    tensors, metadata = read_tensors(path)
    adapter, _words = unbundled(tensors)
    bundled = {key: tensor for key, tensor in tensors.items() if key not in adapter}
    found = recognise(adapter, metadata, kind)
    left_out = found.adapter.unplaced
    if left_out and not skip:
        raise AdapterError(
            f"{path} holds {len(left_out)} keys of no layer of {found.family.architecture}, such "
            f"as {', '.join(left_out[:3])}. Name the model type if it is another, or skip them."
        )
    if bundled and wanted is ModelFormat.ORIGINAL_LORA:
        raise AdapterError(
            f"{path} holds an embedding, {next(iter(bundled))}, for which ORIGINAL_LORA has no "
            f"place. Choose another format."
        )
    written = (
        dict(found.adapter.tensors)
        if wanted is ModelFormat.INTERNAL
        else in_any_format(found.adapter.tensors, found.family, found.index, wanted)
    )
    progress(0, len(written))
    notes = {**found.family.metadata("lora"), **metadata}
    notes["modelspec.architecture"] = f"{found.family.architecture}/lora"
    save_tensors({**written, **bundled}, Path(target), dtype or stored_dtype(tensors), notes)
    progress(len(written), len(written))
    return left_out


def _convert_model(
    source: Path,
    target: Path,
    model_format: ModelFormat,
    model_type: ModelType | None,
    dtype: torch.dtype | None,
    progress: Progress,
) -> None:
    model, wanted = find_model(source, model_type), model_format.value
    if model_format is ModelFormat.DIFFUSERS:
        _to_folder(model, target, dtype, progress)
    elif source.is_dir():
        _to_file(model, target, model_format, dtype, progress)
    else:
        alone = f"a {model.family.denoiser} alone. Convert a diffusers folder with it to {wanted}."
        whole = f"a single file already. Convert it to DIFFUSERS first, and that to {wanted}."
        raise AdapterError(f"{source} is {whole if model.family.single_file else alone}")


def _to_file(
    model: StoredModel,
    target: Path,
    model_format: ModelFormat,
    dtype: torch.dtype | None,
    progress: Progress,
) -> None:
    """From a folder, part by part: weights stay on the disk until they are written."""
    family = model.family
    tensors: dict[str, torch.Tensor] = {}
    for part, prefix, layout in part_layouts(family, model_format):
        files = sorted((model.path / part).glob("*.safetensors"))
        if not files:
            continue  # a part that can be left out
        with open_tensors(*files) as opened:
            # The library maps the file into memory: nothing is read before it is used.
            weights = {key: opened.read(key) for key in opened.shapes}
        tensors |= {f"{prefix}{key}": tensor for key, tensor in layout(weights).items()}

    def settings(part: str) -> Mapping[str, Any]:
        (file,) = (model.path / part).glob("*config.json")  # of a scheduler scheduler_config.json
        held: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return held

    tensors |= family.file_extras(settings)
    shapes = {key: Shape.of(tensor, dtype) for key, tensor in tensors.items()}
    notes = {"format": "pt", **MODEL_SPEC, **file_notes(family, settings)}

    def read(key: str) -> torch.Tensor:
        return tensors[key] if dtype is None else finite(tensors[key], shapes[key].dtype, key)

    write_tensors(target, shapes, read, notes, progress)


def _to_folder(
    model: StoredModel, target: Path, dtype: torch.dtype | None, progress: Progress
) -> None:
    """Through the networks themselves: the settings that a folder has come with them."""
    from modules.families.loading import DTYPES, load_pipeline

    family = model.family
    words = {stored: word for word, stored in DTYPES.items()}
    kept = words.get(dtype or _stored_dtype(model), DataType.FLOAT_32)
    config = TrainConfig().update(base_model_name=str(model.path))
    names = family.networks
    components = family.components(config)
    dtypes = {name: kept for name in names if components.get(name, name) is not None}
    progress(0, 2)
    pipeline = load_pipeline(family, config, dtypes, **components)
    progress(1, 2)
    save_model(
        family, Parts(pipeline, family.denoiser), target, ModelFormat.DIFFUSERS, DTYPES[kept]
    )
    progress(2, 2)


def _stored_dtype(model: StoredModel) -> torch.dtype:
    with open_tensors(*model.layers) as opened:
        counts = Counter(shape.dtype for shape in opened.shapes.values())
    return counts.most_common(1)[0][0]
