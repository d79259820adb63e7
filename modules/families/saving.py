"""Whole models as files that other tools load: folders, single files, bare transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.adapters.files import save_tensors
from modules.adapters.key_map import Fused, Native, Place, renamer
from modules.adapters.native import to_native
from modules.atomic import atomic_folder
from modules.config import MODELS, ModelFormat
from modules.config.problems import error
from modules.families.base import Family, Parts, Settings
from modules.families.folders import read_index
from modules.families.storage import unpacked_state
from modules.tensor_files import finite

Layout = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""From a network's weights to those of a file."""

VAE_BLOCKS = [
    ("encoder.down_blocks.{i}.resnets.{i}", "encoder.down.{i}.block.{i}"),
    ("encoder.down_blocks.{i}.downsamplers.0", "encoder.down.{i}.downsample"),
    ("decoder.up_blocks.{i}.resnets.{i}", "decoder.up.{i}.block.{i}"),
    ("decoder.up_blocks.{i}.upsamplers.0", "decoder.up.{i}.upsample"),
    *(
        (f"{side}.mid_block.resnets.{index}", f"{side}.mid.block_{index + 1}")
        for side in ("encoder", "decoder")
        for index in (0, 1)
    ),
    ("encoder.mid_block.attentions.0", "encoder.mid.attn_1"),
    ("decoder.mid_block.attentions.0", "decoder.mid.attn_1"),
    ("*.conv_shortcut", "nin_shortcut"),
    ("*.conv_norm_out", "norm_out"),
    ("*.group_norm", "norm"),
    ("*.to_q", "q"),
    ("*.to_k", "k"),
    ("*.to_v", "v"),
    ("*.to_out.0", "proj_out"),
    # as folders of old have them
    ("*.query", "q"),
    ("*.key", "k"),
    ("*.value", "v"),
    ("*.proj_attn", "proj_out"),
]
OPEN_CLIP = [
    ("text_model.encoder.layers.{i}.self_attn.out_proj", "transformer.resblocks.{i}.attn.out_proj"),
    ("text_model.encoder.layers.{i}.layer_norm1", "transformer.resblocks.{i}.ln_1"),
    ("text_model.encoder.layers.{i}.layer_norm2", "transformer.resblocks.{i}.ln_2"),
    ("text_model.encoder.layers.{i}.mlp.fc1", "transformer.resblocks.{i}.mlp.c_fc"),
    ("text_model.encoder.layers.{i}.mlp.fc2", "transformer.resblocks.{i}.mlp.c_proj"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
]
OPEN_CLIP_QKV = re.compile(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj$")
IN_PROJECTION = Fused(("q_proj", "k_proj", "v_proj"), "in_proj")


def open_clip_name(path: str) -> tuple[str, Place]:
    """Key and place of a CLIP layer's weight in the layout of open_clip."""
    if found := OPEN_CLIP_QKV.match(path):
        name = f"transformer.resblocks.{found[1]}.attn.in_proj_weight"
        return name, Place(name, IN_PROJECTION, "qkv".index(found[2]))
    if path == "text_projection":
        return path, Place(path, transposed=True)
    name = renamer(OPEN_CLIP)(path)
    return f"{name}.weight", Place(name)


def save_model(
    family: Family,
    parts: Parts,
    path: Path,
    model_format: ModelFormat,
    dtype: torch.dtype,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as other tools load it: all of it, or nothing.

    The live networks are not touched, whatever the type of the file's weights.

    Args:
        family: the architecture.
        parts: its networks.
        path: a folder for DIFFUSERS, which may hold an older model; a file for all others.
        model_format: the layout.
        dtype: of the written weights.
        metadata: what else a single file tells of itself.

    Raises:
        ConfigError: if the family does not have the format.
        FileExistsError: if the folder holds other things than a model.
    """
    if model_format is ModelFormat.DIFFUSERS:
        _save_folder(parts, path, dtype)
        return
    tensors: dict[str, Tensor] = {}
    for part, prefix, layout in part_layouts(family, model_format):
        network = getattr(parts.pipeline, part)
        if network is not None:
            with unpacked_state(network):
                weights = network.state_dict()
            written = layout(weights)
            _check_whole(part, weights, written)
            tensors |= {f"{prefix}{key}": tensor for key, tensor in written.items()}

    def settings(part: str) -> Mapping[str, Any]:
        config: Mapping[str, Any] = getattr(parts.pipeline, part).config
        return config

    tensors |= family.file_extras(settings)
    save_tensors(tensors, path, dtype, {**file_notes(family, settings), **(metadata or {})})


def file_notes(family: Family, settings: Settings) -> dict[str, str]:
    """What a file of a whole model tells of itself.

    That is also what a model of a discrete schedule predicts, which no weight tells.
    """
    notes = family.metadata()
    if MODELS[family.model_types[0]].objective == "diffusion":
        predicts = settings("scheduler").get("prediction_type", "epsilon")
        notes["modelspec.prediction_type"] = "v" if predicts == "v_prediction" else predicts
    return notes


def _check_whole(part: str, weights: Mapping[str, Tensor], written: Mapping[str, Tensor]) -> None:
    """Notice a layout that gives two weights one name, before a file lacks one of them."""
    own, other = (sum(tensor.numel() for tensor in each.values()) for each in (weights, written))
    if other < own:
        raise ValueError(
            f"{part} has {own} numbers, of which the file would hold {other}; nothing was written. "
            f"Use DIFFUSERS."
        )


def part_layouts(family: Family, model_format: ModelFormat) -> list[tuple[str, str, Layout]]:
    """What a file of a format holds: parts, what stands before their keys, and their layouts.

    Raises:
        ConfigError: if the family does not have the format.
    """
    formats = MODELS[family.model_types[0]].formats
    wanted = model_format
    if model_format is ModelFormat.LEGACY_SAFETENSORS and model_format in formats:
        # OneTrainer's name of old for whichever of the two an architecture has
        single = ModelFormat.ORIGINAL_SINGLE_FILE
        model_format = single if single in formats else ModelFormat.ORIGINAL_TRANSFORMER
    native = family.file_layout or family.lora_formats[ModelFormat.ORIGINAL_LORA].native
    denoiser = partial(to_native, native=native or Native(str))
    if model_format is ModelFormat.ORIGINAL_SINGLE_FILE and family.single_file:
        layouts: dict[str, Layout] = {
            "denoiser": denoiser,
            "vae": _vae,
            "clip": _clip,
            "open_clip": _open_clip,
            "t5": _t5,
        }
        return [
            (part, prefix, layouts[name]) for part, (prefix, name) in family.single_file.items()
        ]
    if model_format is ModelFormat.ORIGINAL_TRANSFORMER and wanted in formats:
        prefix = family.lora_formats[ModelFormat.ORIGINAL_LORA].prefixes[family.denoiser]
        beside = [(part, lead, dict) for part, lead in family.conditioners.items()]
        return [(family.denoiser, prefix, denoiser), *beside]
    if model_format is ModelFormat.COMFY_TRANSFORMER and family.comfy_layout:
        return [(family.denoiser, "", partial(to_native, native=family.comfy_layout))]
    known = [each.value for each in formats if not each.value.endswith("LORA")]
    raise error(
        "output_model_format",
        f"output_model_format is {wanted.value}, which {family.architecture} "
        f"does not have as a whole model.",
        f"Use {known[0]}.",
    )


def _save_folder(parts: Parts, path: Path, dtype: torch.dtype) -> None:
    if path.exists() and not read_index(path) and any(path.iterdir()):
        raise FileExistsError(f"{path} holds other things than a model; choose another folder.")
    with ExitStack() as plain, atomic_folder(path, replace=True) as new:
        for network in parts.modules().values():
            plain.enter_context(unpacked_state(network))
        parts.pipeline.save_pretrained(new)
        for folder in new.iterdir():
            if folder.is_dir():
                _rewrite(folder, dtype)


def _rewrite(folder: Path, dtype: torch.dtype) -> None:
    """Give a network's files the wanted type, file by file, and the names that all tools know.

    transformers 5.6 and later leave `text_model.` out of CLIP's names; only they can read that.
    """
    from safetensors.torch import load_file, save_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    bare_clip = settings.get("architectures") == ["CLIPTextModel"]

    def name(key: str) -> str:
        return f"text_model.{key}" if bare_clip and not key.startswith("text_model.") else key

    size = 0
    for file in files:
        tensors = {
            name(key): finite(tensor, dtype, key) if tensor.is_floating_point() else tensor
            for key, tensor in load_file(file).items()
        }
        size += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, file, {"format": "pt"})
    for key in ("dtype", "torch_dtype"):
        if key in settings:
            settings[key] = str(dtype).removeprefix("torch.")
            (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    for index in folder.glob("*.safetensors.index.json"):
        table = json.loads(index.read_text(encoding="utf-8"))
        table["weight_map"] = {name(key): file for key, file in table["weight_map"].items()}
        table["metadata"]["total_size"] = size
        index.write_text(json.dumps(table, indent=2), encoding="utf-8")


def _vae(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Up blocks are counted from the other end, and attention is a convolution of one pixel."""
    numbers = [re.match(r"decoder\.up_blocks\.(\d+)", key) for key in weights]
    last = max(int(number[1]) for number in numbers if number)
    layout: dict[str, Tensor] = {}
    for key, tensor in to_native(weights, Native(renamer(VAE_BLOCKS))).items():
        name = re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", key)
        convolution = ".attn_1." in key and tensor.ndim == 2
        layout[name] = tensor[:, :, None, None] if convolution else tensor
    return layout


def _clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": tensor
        for key, tensor in weights.items()
    }


def _t5(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its table of words under both names: folders leave out the second, which readers look for."""
    table = weights.get("shared.weight", weights.get("encoder.embed_tokens.weight"))
    if table is None:
        return weights
    return {**weights, "shared.weight": table, "encoder.embed_tokens.weight": table}


def _open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of open_clip: q, k and v in one, the projection transposed."""
    rename = renamer(OPEN_CLIP)
    found: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _clip(weights).items():
        if key == "text_projection.weight":
            found["text_projection"] = tensor.T
            continue
        path, _, leaf = key.rpartition(".")
        if attention := OPEN_CLIP_QKV.match(path):
            whole = f"transformer.resblocks.{attention[1]}.attn.in_proj_{leaf}"
            joined.setdefault(whole, {})[attention[2]] = tensor
        elif path == "text_model.embeddings.position_embedding":
            found["positional_embedding"] = tensor
        else:
            found[f"{rename(path)}.{leaf}"] = tensor
    for key, three in joined.items():
        found[key] = torch.cat([three[letter] for letter in "qkv"])
    return found
