"""From the layout of old files to today's: one small pure function a version.

Each takes a config of its version and gives one of the next. None needs a key to be there, so a
file that lacks some loads as one that has them at their default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules.config.enums import Optimizer
from modules.config.problems import Problem, error
from modules.config.section import clip

Data = dict[str, Any]

VERSION = 11
"""The layout that this module leads to."""

PARTS = (
    "unet",
    "prior",
    "transformer",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
    "vae",
    "effnet_encoder",
    "decoder",
    "decoder_text_encoder",
    "decoder_vqgan",
)
_FIRST_PARTS = tuple(
    p for p in PARTS if p not in ("transformer", "text_encoder_3", "text_encoder_4")
)
_CASCADES = ("WUERSTCHEN_2", "STABLE_CASCADE_1")

# fmt: off
RETIRED = frozenset((
    "align_prop", "align_prop_cfg_scale", "align_prop_loss", "align_prop_probability",
    "align_prop_steps", "align_prop_truncate_steps", "align_prop_weight",
    "circular_mask_generation", "coft_eps", "embeddings", "oft_coft",
    "quantization_layer_filter", "quantization_layer_filter_preset",
    "quantization_layer_filter_regex", "random_rotate_and_crop",
    "sequential_model_setup", "weight_dtype", "cautious_mask", "grams_moment",
    "k_warmup_steps", "kappa_p", "normuon_eps", "use_focus", "use_muon_pp", "dropout_pct",
))
# fmt: on
"""Keys that files hold though no version reads them any more."""

_RETIRED_WORDS = {
    "attention_mechanism": {"DEFAULT": "SDP", "XFORMERS": "SDP"},
    "output_model_format": {"CKPT": "SAFETENSORS"},
    "optimizer": {
        "DAdaptAdaGrad": Optimizer.DADAPT_ADA_GRAD.value,
        "DAdaptAdam": Optimizer.DADAPT_ADAM.value,
        "DAdaptAdan": Optimizer.DADAPT_ADAN.value,
        "DAdaptLion": Optimizer.DADAPT_LION.value,
        "DAdaptSGD": Optimizer.DADAPT_SGD.value,
        "Lion": Optimizer.LION.value,
    },
}
"""Values that were renamed or given up, and what takes their place."""


def migrate(data: Data, warnings: list[Problem]) -> Data:
    """A config of any version in the layout of version 11.

    A file without a version is today's, as presets are, unless it has keys that only the first
    layouts knew.

    Raises:
        ConfigError: if the version is no whole number.
    """
    version = data.get("__version")
    if version is None:
        version = 0 if _is_ancient(data) else VERSION
    if isinstance(version, bool) or not isinstance(version, int):
        fix = "Remove it to read the file as one of today."
        raise error("__version", f"__version is {clip(version)}, but must be a number.", fix)
    if version > VERSION:
        message = f"The file is of version {clip(version)}, newer than the {VERSION} known here."
        fix = "Check that every setting reads as meant."
        warnings.append(Problem("__version", "warning", message, fix))
    data = _without_retired_words(data, warnings)
    for step in MIGRATIONS[max(0, version) :]:
        data = step(data)
    return data


def _is_ancient(data: Data) -> bool:
    flat = {f"train_{part}" for part in PARTS} | {f"{part}_weight_dtype" for part in PARTS}
    return isinstance(data.get("optimizer"), str) or not flat.isdisjoint(data)


def _without_retired_words(data: Data, warnings: list[Problem]) -> Data:
    changed = dict(data)
    for name, words in _RETIRED_WORDS.items():
        value = data.get(name)
        if isinstance(value, str) and value in words:
            changed[name] = words[value]
            message = f"{name} is {value}, which was given up."
            fix = f"{words[value]} takes its place."
            warnings.append(Problem(name, "warning", message, fix))
    return changed


def from_0(data: Data) -> Data:
    """`optimizer` and `optimizer_*` become one section, remembered as that optimizer's defaults."""
    head = "optimizer_"
    name = data.get("optimizer")
    if not isinstance(name, str):
        return data
    section = {"optimizer": name}
    section |= {key[len(head) :]: value for key, value in data.items() if key.startswith(head)}
    rest = {key: value for key, value in data.items() if not key.startswith("optimizer")}
    return rest | {"optimizer": section, "optimizer_defaults": {name: dict(section)}}


def from_1(data: Data) -> Data:
    """Flat settings of each network become sections; those of the embedding too."""
    data = dict(data)
    for part in _FIRST_PARTS:
        section = {}
        for old, new in (
            (f"train_{part}", "train"),
            (f"{part}_learning_rate", "learning_rate"),
            (f"{part}_weight_dtype", "weight_dtype"),
            (f"{part}_model_name", "model_name"),
        ):
            if old in data:
                section[new] = data.pop(old)
        if f"train_{part}_epochs" in data:
            section["stop_training_after"] = data.pop(f"train_{part}_epochs")
            section["stop_training_after_unit"] = "EPOCH"
        if section:
            data[part] = {**_section(data, part), **section}
    embedding: Data = {
        name: data.pop(name) for name in ("token_count", "initial_embedding_text") if name in data
    }
    names = data.pop("embedding_model_names", None)
    if isinstance(names, list) and names:
        embedding["model_name"] = names[0]
    return data | ({"embedding": embedding} if embedding else {})


def from_2(data: Data) -> Data:
    """`min_snr_gamma` becomes a loss weight; Wuerstchen and Cascade say theirs, which is P2."""
    rest = {key: value for key, value in data.items() if key != "min_snr_gamma"}
    if gamma := data.get("min_snr_gamma"):
        return rest | {"loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": gamma}
    if data.get("model_type") in _CASCADES:
        return rest | {"loss_weight_fn": "P2", "loss_weight_strength": 1.0}
    return rest


def from_3(data: Data) -> Data:
    """A noising weight becomes the SIGMOID distribution, whose bias counts from the middle."""
    weight, bias = data.get("noising_weight", 0.0), data.get("noising_bias", 0.5)
    rest = {key: value for key, value in data.items() if not key.startswith("noising_")}
    if not weight:
        return rest
    return rest | {
        "timestep_distribution": "SIGMOID",
        "noising_weight": weight,
        "noising_bias": bias - 0.5 if _is_small(bias) else bias,
    }


def from_4(data: Data) -> Data:
    """`gradient_checkpointing` becomes a word."""
    on = data.get("gradient_checkpointing", True)
    return data | {"gradient_checkpointing": "ON" if on else "OFF"}


def from_5(data: Data) -> Data:
    """`save_after` becomes `save_every`."""
    return _renamed(data, save_after="save_every", save_after_unit="save_every_unit")


def from_6(data: Data) -> Data:
    """A defect left `lora_layer_preset` empty in some files."""
    if "lora_layer_preset" in data and data["lora_layer_preset"] is None:
        return data | {"lora_layer_preset": "full"}
    return data


def from_7(data: Data) -> Data:
    """The choice of layers is no longer LoRA's alone."""
    return _renamed(
        data,
        lora_layers="layer_filter",
        lora_layer_preset="layer_filter_preset",
        lora_layers_regex="layer_filter_regex",
    )


def from_8(data: Data) -> Data:
    """Transformers were called prior before."""
    if data.get("model_type") in _CASCADES or "prior" not in data:
        return data
    return data | {"transformer": data["prior"]}


def from_9(data: Data) -> Data:
    """A part without a type of its own takes the global one, which goes."""
    usual = data.get("weight_dtype", "FLOAT_32")
    changed = {key: value for key, value in data.items() if key != "weight_dtype"}
    for part in PARTS:
        if part in data and _section(data, part).get("weight_dtype") == "NONE":
            changed[part] = {**data[part], "weight_dtype": usual}
    return changed


def from_10(data: Data) -> Data:
    """Checkpointing and offloading become each part's own; files name their layout exactly."""
    olds = ("gradient_checkpointing", "enable_activation_offloading", "layer_offload_fraction")
    changed = {key: value for key, value in data.items() if key not in olds}
    if "enable_async_offloading" in changed:
        changed["async_offloading"] = changed.pop("enable_async_offloading")
    method = data.get("gradient_checkpointing", "ON")
    offloads = method == "CPU_OFFLOADED"
    part_settings = {
        "gradient_checkpointing": method != "OFF",
        "activation_offloading": offloads and bool(data.get("enable_activation_offloading", True)),
        "offload_fraction": data.get("layer_offload_fraction", 0.0) if offloads else 0.0,
    }
    stated = any(old in data for old in olds)
    for part in PARTS:
        if part in data or stated:
            changed[part] = {**_section(data, part), **part_settings}
    if changed.get("output_model_format") == "SAFETENSORS":
        if changed.get("training_method") == "LORA":
            changed["output_model_format"] = "LEGACY_LORA"
        elif changed.get("training_method") != "EMBEDDING":
            changed["output_model_format"] = "LEGACY_SAFETENSORS"
    return changed


MIGRATIONS: tuple[Callable[[Data], Data], ...] = (
    from_0,
    from_1,
    from_2,
    from_3,
    from_4,
    from_5,
    from_6,
    from_7,
    from_8,
    from_9,
    from_10,
)
"""By the version that each reads."""


def migrate_concept(data: Data) -> Data:
    """A concept of any version in the layout of version 2."""
    for step in CONCEPT_MIGRATIONS:
        data = step(data)
    return data


def concept_from_0(data: Data) -> Data:
    """`repeats` becomes `balancing`."""
    return _renamed(data, repeats="balancing")


def concept_from_1(data: Data) -> Data:
    """`validation_concept` becomes a `type`."""
    if "validation_concept" not in data:
        return data
    rest = {key: value for key, value in data.items() if key != "validation_concept"}
    return rest | {"type": "VALIDATION" if data["validation_concept"] else "STANDARD"}


CONCEPT_MIGRATIONS: tuple[Callable[[Data], Data], ...] = (concept_from_0, concept_from_1)
"""By the version that each reads; the old names are in no newer version, so all run."""


def _renamed(data: Data, **names: str) -> Data:
    """A copy with some keys renamed, in their order; a key of the new name goes."""
    taken = {new for old, new in names.items() if old in data}
    return {names.get(key, key): value for key, value in data.items() if key not in taken}


def _is_small(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e6


def _section(data: Data, name: str) -> Data:
    value = data.get(name, {})
    return value if isinstance(value, dict) else {}
