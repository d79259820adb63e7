"""Rules about the model: what its type, the method and the output format allow together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from modules.config.case import Case, Rule, refuse, shown, warn
from modules.config.describe import settings
from modules.config.enums import (
    DataType,
    LossWeight,
    ModelFormat,
    PeftType,
    TimeUnit,
    TrainingMethod,
)
from modules.config.models import MODELS
from modules.config.problems import Problem
from modules.config.resolve import CUSTOM
from modules.config.section import unknown_name
from modules.config.train_config import TrainConfig

FULL_FORMATS = frozenset(
    {
        ModelFormat.DIFFUSERS,
        ModelFormat.ORIGINAL_SINGLE_FILE,
        ModelFormat.ORIGINAL_TRANSFORMER,
        ModelFormat.COMFY_TRANSFORMER,
        ModelFormat.LEGACY_SAFETENSORS,
    }
)
ORIGINAL_NAMES = frozenset(
    {ModelFormat.KOHYA_LORA, ModelFormat.ORIGINAL_LORA, ModelFormat.COMFY_LORA}
)
"""Formats of adapters in the layout of the model's original code."""
WHOLE_NUMBERS = frozenset({DataType.FLOAT_32, DataType.FLOAT_16, DataType.BFLOAT_16})
"""Types in which weights can be trained themselves; the rest are for frozen weights."""
OF_EVERY_PART = ("gradient_checkpointing", "offload_fraction", "activation_offloading")
"""What files of older versions set for every part alike, that it says nothing to as well."""
COMPUTED = WHOLE_NUMBERS | {DataType.TFLOAT_32}
"""Types that a computation can run in."""


def method(case: Case) -> Iterator[Problem]:
    """A method that the model type lacks."""
    chosen = case.config.training_method
    if chosen not in case.facts.methods:
        words = ", ".join(word.value for word in case.facts.methods)
        message = f"training_method is {chosen.value}, which {case.facts.title} does not have."
        yield refuse("training_method", message, f"Use one of {words}.")


def output_format(case: Case) -> Iterator[Problem]:
    """A format of another method, or one that the model type cannot be written as."""
    config, chosen = case.config, case.config.output_model_format
    fitting = fitting_formats(case)
    if chosen in fitting or config.training_method not in case.facts.methods:
        return
    words = ", ".join(word.value for word in fitting)
    message = (
        f"output_model_format is {chosen.value}, but {config.training_method.value} of "
        f"{case.facts.title} cannot be written so."
    )
    yield refuse("output_model_format", message, f"Use one of {words}.")


def fitting_formats(case: Case) -> list[ModelFormat]:
    """Formats that the method's result can be written in for the model type."""
    return [word for word in case.facts.formats if _method_of(word, case.config.training_method)]


def _method_of(word: ModelFormat, method: TrainingMethod) -> bool:
    if method is TrainingMethod.LORA:
        return word.value.endswith("_LORA")
    if method is TrainingMethod.EMBEDDING:
        return word is ModelFormat.SAFETENSORS
    return word in FULL_FORMATS


def destination(case: Case) -> Iterator[Problem]:
    """An output path whose ending does not fit the format."""
    config = case.config
    path = PurePath(config.output_model_destination)
    if config.output_model_format is ModelFormat.DIFFUSERS:
        if path.suffix == ".safetensors":
            message = f"output_model_destination is {path}, but DIFFUSERS is a folder."
            fix = f"Use {path.with_suffix('')}, or another output_model_format."
            yield refuse("output_model_destination", message, fix)
    elif path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        message = f"output_model_destination ends in {path.suffix}, but models are safetensors."
        fix = f"Use {path.with_suffix('.safetensors')}."
        yield refuse("output_model_destination", message, fix)


def input_lengths(case: Case) -> Iterator[Problem]:
    """DoRA along the inputs in a format whose readers only know it along the outputs."""
    config, field = case.config, "lora_decompose_output_axis"
    dora = config.training_method is TrainingMethod.LORA and config.peft_type is PeftType.LORA
    if not dora or not config.lora_decompose or config.get(field):
        return
    if config.output_model_format is ModelFormat.DIFFUSERS_LORA:
        message = f"{field} is false, but diffusers reads DoRA along the outputs alone."
        yield refuse(field, message, "Set it to true, or use KOHYA_LORA or COMFY_LORA.")


def rotations(case: Case) -> Iterator[Problem]:
    """What rotations cannot do: leave inputs out, or turn blocks of one number."""
    config = case.config
    if config.training_method is not TrainingMethod.LORA or config.peft_type is not PeftType.OFT_2:
        return
    if dropout := config.dropout_probability:
        message = f"dropout_probability is {dropout:g}, but OFT_2 has no dropout here."
        yield refuse("dropout_probability", message, "Set it to 0.")
    if config.oft_block_size == 1:
        message = "oft_block_size is 1, but a block of one number cannot be rotated."
        yield refuse("oft_block_size", message, "Use 32.")


def text_in_adapter(case: Case) -> Iterator[Problem]:
    """A text encoder that trains, in an adapter file that has no place for it."""
    config, facts, chosen = case.config, case.facts, case.config.output_model_format
    if config.training_method is not TrainingMethod.LORA or chosen not in facts.denoiser_only:
        return
    for part in facts.text_encoders if facts.text_training else ():
        if config.get(f"{part}.train"):
            others = [word for word in fitting_formats(case) if word not in facts.denoiser_only]
            message = f"output_model_format is {chosen.value}, which has no place for {part}."
            words = ", ".join(word.value for word in others)
            fix = f"Use one of {words}, or set {part}.train to false."
            yield refuse("output_model_format", message, fix)
            return


def joined_layers(case: Case) -> Iterator[Problem]:
    """Other adapters than LoRA in a format that has no place for them on these layers.

    Where the filter may leave those layers out, only the loaded model can tell.
    """
    config, facts, chosen = case.config, case.facts, case.config.output_model_format
    plain = config.peft_type is PeftType.LORA and not config.lora_decompose
    if config.training_method is not TrainingMethod.LORA or plain or chosen not in ORIGINAL_NAMES:
        return
    turned = () if config.peft_type is PeftType.OFT_2 else facts.turned  # rotates inputs alone
    selected = [layer for layer in (*facts.joined, *turned) if _is_selected(config, layer)]
    if not selected or not config.get(facts.denoiser).train:
        return
    layer = selected[0].replace("{i}", "0")
    joins = selected[0] in facts.joined
    does = f"joins {layer} with others" if joins else f"swaps the halves of {layer}"
    kind = "DoRA" if config.peft_type is PeftType.LORA else config.peft_type.value
    others = [word.value for word in fitting_formats(case) if word not in ORIGINAL_NAMES]
    message = f"output_model_format is {chosen.value}, which {does}: {kind} cannot be written so."
    yield refuse("output_model_format", message, f"Use {' or '.join(others)}, or plain LoRA.")


def _is_selected(config: TrainConfig, layer: str) -> bool:
    """Whether the filter is sure to select layers of a path, whatever number stands for `{i}`.

    Expressions are not tried: one that somebody else wrote may take for ever.
    """
    items = [item.strip() for item in config.layer_filter.split(",")]
    if "" in items or config.layer_filter_regex:
        return "" in items
    return any(all(item in layer.replace("{i}", number) for number in "017") for item in items)


def loss_weight(case: Case) -> Iterator[Problem]:
    """A loss weight that the model's objective has no meaning for."""
    chosen = case.config.loss_weight_fn
    flow = case.facts.objective == "flow"
    allowed = (LossWeight.CONSTANT, LossWeight.SIGMA) if flow else tuple(LossWeight)[:-1]
    if chosen not in allowed:
        kind = "a flow model" if flow else "not a flow model"
        words = ", ".join(word.value for word in allowed)
        message = f"loss_weight_fn is {chosen.value}, but {case.facts.title} is {kind}."
        yield refuse("loss_weight_fn", message, f"Use one of {words}.")


def caption_dropout(case: Case) -> Iterator[Problem]:
    """Dropping captions where the model type cannot."""
    if case.facts.caption_dropout:
        return
    for part in case.facts.text_encoders:
        value = case.config.get(f"{part}.dropout_probability")
        if value > 0:
            field = f"{part}.dropout_probability"
            message = f"{field} is {value:g}, but {case.facts.title} cannot drop captions."
            yield refuse(field, message, "Set it to 0.")


def text_training(case: Case) -> Iterator[Problem]:
    """Training a text encoder that cannot be trained."""
    methods = (TrainingMethod.LORA, TrainingMethod.FINE_TUNE)
    if case.facts.text_training or case.config.training_method not in methods:
        return
    for part in case.facts.text_encoders:
        if case.config.get(f"{part}.train"):
            message = f"{part}.train is true, but {case.facts.title}'s stays as it is."
            yield refuse(f"{part}.train", message, "Set it to false.")


def layer_filter(case: Case) -> Iterator[Problem]:
    """A filter preset that the model type lacks, or a filter that cannot select."""
    yield from _filter(case, "", case.config.layer_filter_preset, case.config.layer_filter)
    section = case.config.quantization
    yield from _filter(case, "quantization.", section.layer_filter_preset, section.layer_filter)


def _filter(case: Case, prefix: str, name: str, text: str) -> Iterator[Problem]:
    if name != CUSTOM and name not in case.facts.filters:
        field = f"{prefix}layer_filter_preset"
        words = ", ".join([*case.facts.filters, CUSTOM])
        message = f"{field} is {name!r}, which {case.facts.title} does not have."
        hint = unknown_name(name, case.facts.filters).partition(". ")[2]
        near = f"{hint} " if hint.startswith("Did") else ""
        yield refuse(field, message, f"{near}Use one of {words}.")
    field = f"{prefix}layer_filter"
    items = [item.strip() for item in text.split(",")]
    if text and "" in items:
        message = f"{field} is {text!r}, with an empty item, which selects every layer."
        yield warn(field, message, "Remove the comma too many.")
    if case.config.get(f"{prefix}layer_filter_regex"):
        for item in items:
            try:
                re.compile(item)
            except (re.error, RecursionError, OverflowError) as failure:
                message = f"{field} item {item!r} is no regular expression: {failure}."
                fix = f"Mend it (a comma ends an item), or turn {prefix}layer_filter_regex off."
                yield refuse(field, message, fix)


def something_trains(case: Case) -> Iterator[Problem]:
    """A run in which nothing would change."""
    config = case.config
    rates = [config.get(f"{part}.learning_rate") for part in case.facts.parts]
    if config.embeddings_in_use:
        rates.append(config.embedding_learning_rate)
    if config.learning_rate == 0 and not any(rates):
        message = "learning_rate is 0, so nothing would be learned."
        yield refuse("learning_rate", message, "Use 3e-4 for a LoRA, 1e-5 for a whole model.")
    trainable = (case.facts.denoiser, *case.facts.text_encoders)
    methods = (TrainingMethod.LORA, TrainingMethod.FINE_TUNE)
    if config.training_method in methods and not any(
        config.get(part).train
        and config.get(part).stop_training_after_unit is not TimeUnit.ALWAYS  # never begins
        for part in trainable
    ):
        fields = " or ".join(f"{part}.train" for part in trainable)
        field = f"{case.facts.denoiser}.train"
        yield refuse(field, "No part of the model trains.", f"Set {fields} to true.")
    lora = config.training_method is TrainingMethod.LORA and config.peft_type is not PeftType.OFT_2
    if lora and config.lora_alpha == 0:
        message = "lora_alpha is 0, which scales the adapter to nothing."
        yield refuse("lora_alpha", message, "Use the rank, or 1.")


def weight_types(case: Case) -> Iterator[Problem]:
    """Types of numbers that cannot be trained, computed in, or written."""
    config = case.config
    for field in ("train_dtype", "fallback_train_dtype"):
        value = config.get(field)
        if value not in COMPUTED:
            message = f"{field} is {value.value}, in which nothing can be computed."
            yield refuse(field, message, "Use FLOAT_32, FLOAT_16, BFLOAT_16 or TFLOAT_32.")
    for field, dtype in trained_types(case):
        part = field.removesuffix(".weight_dtype")
        if dtype not in WHOLE_NUMBERS:
            message = f"{field} is {dtype.value}, which cannot be trained itself."
            fix = f"Use BFLOAT_16 or FLOAT_32, train a LoRA, or set {part}.train to false."
            yield refuse(field, message, fix)
        elif dtype is config.train_dtype is DataType.FLOAT_16:
            message = f"{field} is FLOAT_16 and so is train_dtype, whose gradients are scaled."
            yield refuse(field, message, f"Set {field} to FLOAT_32, or train_dtype to BFLOAT_16.")
        elif dtype is DataType.FLOAT_16:
            message = f"{field} is FLOAT_16, in which small updates of the weights get lost."
            yield warn(field, message, "Use FLOAT_32, or BFLOAT_16 with stochastic rounding.")


def trained_types(case: Case) -> Iterator[tuple[str, DataType]]:
    """The settings that say in which types what trains is stored, and their values."""
    config = case.config
    if config.training_method is TrainingMethod.LORA:
        yield "lora_weight_dtype", config.lora_weight_dtype
    if config.embeddings_in_use:
        yield "embedding_weight_dtype", config.embedding_weight_dtype
    parts: tuple[str, ...] = ()
    if config.training_method is TrainingMethod.FINE_TUNE:
        encoders = (case.facts.denoiser, *case.facts.text_encoders)
        parts = tuple(part for part in encoders if config.get(part).train)
    elif config.training_method is TrainingMethod.FINE_TUNE_VAE:
        parts = ("vae",)
    for part in parts:
        yield f"{part}.weight_dtype", config.get(part).weight_dtype


def without_effect(case: Case) -> Iterator[Problem]:
    """A setting that was changed though it counts for other model types only, or other parts.

    Sections of parts that the model lacks are left out: files carry them for every model, and what
    they had when it was another.
    """
    config = case.config
    parts = {part for facts in MODELS.values() for part in facts.parts}
    known = {setting.path for setting in settings(type(config), collections=True)}
    for setting in settings(type(config)):
        section, dot, _ = setting.path.partition(".")
        of_part = section in parts if dot else section.startswith("text_encoder")
        if of_part and section not in case.facts.parts:
            continue
        if not setting.fits_model(config) and setting.is_reached(config):
            yield from _idle(case, setting.path, setting.default)
    usual = type(config)()
    for path in type(config).names():
        section, _, name = path.partition(".")
        if section in case.facts.parts and path not in known and name not in OF_EVERY_PART:
            yield from _idle(case, path, usual.get(path))


def _idle(case: Case, path: str, usual: Any) -> Iterator[Problem]:
    value = case.config.get(path)
    if value != usual:
        message = f"{path} is {shown(value)}, which has no effect on {case.facts.title}."
        yield warn(path, message, f"Set it to {shown(usual)}.")


def unmasked(case: Case) -> Iterator[Problem]:
    """A chance of leaving masks out where nothing reads them."""
    config, field = case.config, "unmasked_probability"
    if config.masked_training or case.facts.hint == "inpainting":
        return
    if config.unmasked_probability != type(config).model_fields[field].default:
        message = f"{field} is {config.unmasked_probability:g}, but no mask is read."
        yield warn(field, message, "Turn masked_training on, or set it to 0.1.")


RULES: tuple[Rule, ...] = (
    method,
    output_format,
    destination,
    input_lengths,
    rotations,
    text_in_adapter,
    joined_layers,
    loss_weight,
    caption_dropout,
    text_training,
    layer_filter,
    something_trains,
    weight_types,
    without_effect,
    unmasked,
)
