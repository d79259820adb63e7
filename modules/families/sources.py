"""Where weights come from, and what can be wrong there, told before they load and after."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules.config import ConfigError, Problem
from modules.config.paths import resolve
from modules.families.folders import parts_of, read_index
from modules.tensor_files import open_tensors

SCALES = (".scale_weight", ".weight_scale", "scaled_fp8", ".comfy_quant")
"""Ends of keys beside weights of 8 bits that mean something only when multiplied by them."""

V_MARK, SNR_MARK = "v_pred", "ztsnr"
"""Keys of a single file that mean something by being there: the model predicts velocities, and on
a schedule that ends in pure noise."""

FAILURES = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    TypeError,
    AttributeError,
    ImportError,
)
"""What diffusers, transformers and safetensors raise for a source that is not what it should be."""


def check_folder(folder: Path, class_name: str, replaced: Collection[str]) -> None:
    """Refuse a local folder that lacks something, before diffusers asks the hub for it."""
    if not folder.is_dir():
        return
    index = read_index(folder)
    if index is None:
        raise OSError(f"{folder} has no model_index.json, so it is no {class_name} folder")
    for name in parts_of(index):
        if name not in replaced and not (folder / name).is_dir():
            raise OSError(f"{folder} lacks the folder {name}, which its model_index.json names")
    for file in sorted(folder.glob("*/*.safetensors")):
        check_file(file)


def check_file(path: Path) -> None:
    """Refuse a safetensors file that is cut short or is something else.

    Its first 8 bytes are the length of a JSON header, which says where the last tensor ends.
    """
    if path.suffix != ".safetensors":
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        header = file.read(length) if length <= size - 8 else b""
    if header[:1] != b"{":
        raise OSError(f"{path} is no safetensors file: it has {size} bytes and no header")
    entries = json.loads(header)
    if scaled := next((key for key in entries if key.endswith(SCALES)), None):
        raise OSError(
            f"{path} holds weights of 8 bits with scales of their own, such as {scaled}, which "
            f"nothing here reads. Take a file of 16 bits, and set weight_dtype to FLOAT_8"
        )
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise OSError(
            f"{path} has {size} bytes, but its header says {expected}: it is damaged or was not "
            f"copied whole"
        )


def check_found(source: str, part: str, missing: Collection[str]) -> None:
    """Refuse a network whose files lack weights, given the keys that its library missed."""
    # what turns a language model's states into words is not asked here, and often left out
    lacking = sorted(key for key in missing if not key.startswith("lm_head"))
    if lacking:
        where = f"{source}/{part}" if part else source
        raise OSError(f"{where} lacks {lacking[0]} ({len(lacking)} such weights)")


def check_filled(source: str, parts: Mapping[str, Any]) -> None:
    """Refuse networks of which a file filled a part only: the rest has a shape and no numbers."""
    for part, network in parts.items():
        if isinstance(network, nn.Module):
            empty = [name for name, weight in network.named_parameters() if weight.is_meta]
            if empty:
                count = f"({len(empty)} such weights)"
                raise OSError(f"{source} lacks {empty[0]} of the {part} {count}")


class NoSettingsError(OSError):
    """A single file without the settings that its networks are made by."""


def cached_settings(path: Path, cache: str | None) -> str:
    """The folder in the hub's cache with the settings of a single file's architecture.

    Raises:
        NoSettingsError: if it was never downloaded.
    """
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if path.suffix == ".safetensors":
        with open_tensors(path) as opened:
            weights: Any = {
                key: torch.empty(shape.sizes, dtype=shape.dtype, device="meta")
                for key, shape in opened.shapes.items()
            }
    else:
        held = torch.load(path, map_location="meta", weights_only=True)
        weights = held.get("state_dict", held)
    name = fetch_diffusers_config(weights)["pretrained_model_name_or_path"]
    try:
        return str(snapshot_download(name, local_files_only=True, cache_dir=cache))
    except LocalEntryNotFoundError as error:
        raise NoSettingsError(f"it holds no settings, and those of {name} are not here") from error


def follow_marks(pipeline: Any, path: Path) -> None:
    """Give a pipeline the objective that its single file names: no weight tells it.

    The settings beside the file, or those of the hub, are often of the model it was trained from.
    """
    if path.suffix != ".safetensors" or "prediction_type" not in pipeline.scheduler.config:
        return
    with open_tensors(path) as opened:
        marks, told = opened.shapes.keys(), opened.metadata.get("modelspec.prediction_type")
    changes: dict[str, Any] = {"prediction_type": "v_prediction"}
    kind = type(pipeline.scheduler)
    if SNR_MARK in marks:
        from diffusers import DDIMScheduler

        kind = DDIMScheduler  # not all others have such a schedule
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if V_MARK in marks or told == "v":
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **changes)


def cannot_load(field: str, name: str, wanted: str, error: Exception, fix: str = "") -> ConfigError:
    """What is wrong with a source, in words; `fix` takes the place of the usual advice."""
    source = Path(resolve(name))
    found = ""
    if index := read_index(source):
        held = index.get("_class_name", "something else")
        if held != wanted.partition("'")[0]:
            found = f" It holds a {held}."
    elif source.suffix == ".safetensors" and source.is_file():
        found = _held_by_file(source, wanted)
    looks_local = source.is_absolute() or name.startswith((".", "~", "package:"))
    fix = fix or (
        "Check the path, and that the model is of the chosen model_type."
        if looks_local or source.exists()
        else "Check the spelling of the hub id, that this machine reaches the hub "
        "(offline_mode is off and HF_HUB_OFFLINE unset), and that your token may read the model; "
        "or give the path of a local folder or .safetensors file."
    )
    if isinstance(error, NoSettingsError):
        fix = (
            f"Put a diffusers folder of its architecture beside it, named {source.stem}; or set "
            f"offline_mode to false once, so that the settings alone are fetched."
        )
    if "from_single_file" in str(error) or "FromOriginalModelMixin" in str(error):
        error = OSError("diffusers reads no single file of that")
        fix = "Give a diffusers folder or a hub id."
    if "meta tensor" in str(error):  # torch's words for what was never filled
        error = OSError(f"{source} lacks some of the weights that this architecture has")
    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return ConfigError(
        [Problem(field, "error", f"Cannot load {name} as {wanted} ({reason}).{found}", fix)]
    )


def _held_by_file(path: Path, wanted: str) -> str:
    """What a single file holds instead, or lacks; empty if it is not that."""
    from modules.adapters.files import AdapterError
    from modules.families import all_families
    from modules.families.stored import find_model

    try:
        with open_tensors(path) as opened:
            keys = list(opened.shapes)
    except ValueError:
        return ""  # damaged, as has been said
    if any(mark in key for key in keys for mark in ("lora_", "hada_w", "lokr_w", "oft_R")):
        return " It holds an adapter, no model: name it as lora_model_name."
    variants = [each for each in all_families() if each.pipeline == wanted and each.single_file]
    lacking = [
        [
            part
            for part, (prefix, _) in family.single_file.items()
            if not any(key.startswith(prefix) for key in keys)
        ]
        for family in variants
    ]
    missing = min(lacking, key=len, default=[])
    if variants and len(missing) < len(variants[0].single_file):
        if not missing:
            return ""
        return f" It lacks the {missing[0]}: name a source of that, {missing[0]}.model_name."
    try:
        found = find_model(path).family
    except AdapterError:
        return ""
    if found.pipeline == wanted:
        name = f"{found.denoiser}.model_name"
        return f" It holds the {found.denoiser} alone: name it as {name}, and a whole model here."
    return "" if wanted.startswith(f"{found.pipeline}'s") else f" It holds a {found.architecture}."
