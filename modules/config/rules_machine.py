"""Rules about the device that trains."""

from __future__ import annotations

import re
from collections.abc import Iterator

from modules.config.case import Case, Rule, refuse, warn
from modules.config.enums import AttentionMechanism, DataType, TrainingMethod
from modules.config.optimizer_packages import not_here
from modules.config.problems import Problem


def device(case: Case) -> Iterator[Problem]:
    """A device that is no device, or is not in this machine."""
    config = case.config
    for field in ("train_device", "temp_device"):
        name = config.get(field)
        if not re.fullmatch(r"(cpu|mps|(cuda|xpu)(:\d{1,3})?)", name):
            message = f"{field} is {name!r}, which is no device."
            yield refuse(field, message, "Use cuda, cuda:1, mps or cpu.")
    if not case.hardware.present:
        message = f"train_device is {config.train_device}, but this machine has no such GPU."
        yield refuse("train_device", message, "Use cpu, or a machine with a GPU.")


def precision(case: Case) -> Iterator[Problem]:
    """A precision that the device lacks, or is slow at."""
    config, hardware = case.config, case.hardware
    if hardware.kind == "cpu" and config.train_dtype is DataType.FLOAT_16:
        message = "train_dtype is FLOAT_16, at which CPUs are slow."
        yield warn("train_dtype", message, "Use FLOAT_32 or BFLOAT_16.")
    lacks_tf32 = hardware.kind != "cuda" or not hardware.bfloat16  # the same generation brought it
    if config.train_dtype is DataType.TFLOAT_32 and lacks_tf32:
        message = f"train_dtype is TFLOAT_32, which {hardware.name} has no units for: "
        yield warn("train_dtype", f"{message}it computes in FLOAT_32.", "Use FLOAT_32.")
    if not hardware.present or hardware.bfloat16:
        return
    lacks = f"which {hardware.name} has no units for"
    if config.train_dtype is DataType.BFLOAT_16:
        fix = "Use FLOAT_16, with FLOAT_32 as fallback_train_dtype; presets named T4 do."
        yield refuse("train_dtype", f"train_dtype is BFLOAT_16, {lacks}.", fix)
    falls_back = case.facts.denoiser in case.facts.overflows
    if falls_back and config.fallback_train_dtype is DataType.BFLOAT_16:
        message = f"fallback_train_dtype is BFLOAT_16, {lacks}."
        yield warn("fallback_train_dtype", message, "Use FLOAT_32.")
    for part in case.facts.parts:
        if config.get(f"{part}.weight_dtype") is DataType.BFLOAT_16:
            field = f"{part}.weight_dtype"
            yield warn(field, f"{field} is BFLOAT_16, {lacks}.", "Use FLOAT_16 or FLOAT_32.")


def mixed_precision(case: Case) -> Iterator[Problem]:
    """Weights of one type of 16 bits that a CPU should compute with in the other."""
    config, computed = case.config, case.config.computed_dtype
    if case.hardware.kind != "cpu" or config.training_method is TrainingMethod.FINE_TUNE_VAE:
        return
    pair = {DataType.FLOAT_16, DataType.BFLOAT_16}
    encoders = [part for part in case.facts.text_encoders if config.get(f"{part}.include")]
    cached = config.latent_caching and not config.embeddings_in_use
    if cached and not any(config.get(f"{part}.train") for part in encoders):
        encoders = []  # no step reads a caption
    for part in (case.facts.denoiser, *encoders):
        stored = config.get(f"{part}.weight_dtype")
        if {stored, computed} == pair:
            field = f"{part}.weight_dtype"
            message = f"{field} is {stored.value} and the computation {computed.value}, which CPUs "
            fix = f"Use {computed.value} or FLOAT_32 for {field}."
            yield refuse(field, f"{message}cannot mix.", fix)


def attention(case: Case) -> Iterator[Problem]:
    """An attention kernel of a GPU where there is none."""
    chosen = case.config.attention_mechanism
    if chosen is not AttentionMechanism.SDP and case.hardware.kind != "cuda":
        message = f"attention_mechanism is {chosen.value}, but {case.hardware.name} "
        fix = "Use SDP to silence this."
        yield warn("attention_mechanism", f"{message}has one kernel: same result.", fix)


def optimizer_package(case: Case) -> Iterator[Problem]:
    """An optimizer whose package is not installed."""
    if problem := not_here(case.config.optimizer.optimizer):
        yield problem


def offloading(case: Case) -> Iterator[Problem]:
    """Layers or activations that shall wait in main memory, where they cannot or gain nothing."""
    config, facts = case.config, case.facts
    for part in (facts.denoiser, *facts.text_encoders):
        section = config.get(part)
        share, activations = f"{part}.offload_fraction", f"{part}.activation_offloading"
        if section.offload_fraction and case.hardware.kind == "cpu":
            message = f"{share} is {section.offload_fraction:g}, but train_device is cpu, "
            yield warn(share, f"{message}where that saves nothing.", "Set it to 0.")
        if not section.train:
            continue
        if section.offload_fraction and config.training_method is TrainingMethod.FINE_TUNE:
            yield from _learning_elsewhere(case, part)
        for field, on in (
            (share, section.offload_fraction),
            (activations, section.activation_offloading),
        ):
            if on and not section.gradient_checkpointing:
                message = f"{field} is set, but without {part}.gradient_checkpointing everything "
                message += "stays on the device until the backward pass."
                yield refuse(field, message, f"Turn {part}.gradient_checkpointing on.")
        if section.activation_offloading and config.temp_device != "cpu":
            message = f"{activations} is true, but temp_device is {config.temp_device}."
            yield refuse(activations, message, "Set temp_device to cpu.")


def _learning_elsewhere(case: Case, part: str) -> Iterator[Problem]:
    """Layers that train and wait, whose weights change at home or on the way there."""
    config, share = case.config, f"{part}.offload_fraction"
    if config.optimizer.fused_back_pass:
        return
    message = f"{share} is {config.get(share):g} while the {part} itself trains, "
    rounded = config.optimizer.stochastic_rounding
    if rounded and config.get(f"{part}.weight_dtype") is DataType.BFLOAT_16:
        message += "and optimizer.stochastic_rounding rounds on train_device alone."
        fix = "Turn optimizer.fused_back_pass on."
        yield refuse(share, message, f"{fix} ADAFACTOR has it, for one.")
    else:
        message += "so the optimizer works on temp_device, where it is slow."
        yield warn(share, message, "Turn optimizer.fused_back_pass on: it works on train_device.")


RULES: tuple[Rule, ...] = (
    device,
    precision,
    mixed_precision,
    attention,
    optimizer_package,
    offloading,
)
