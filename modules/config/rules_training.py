"""Rules about optimisation, noise, data and samples: values that do not go together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from modules.config.case import Case, Rule, refuse, warn
from modules.config.concept_config import ConceptConfig
from modules.config.describe import settings
from modules.config.enums import (
    BalancingStrategy,
    ConceptType,
    DataType,
    LearningRateScheduler,
    Optimizer,
    PromptSource,
    SpecialTagsMode,
    TimestepDistribution,
    TimeUnit,
    TrainingMethod,
    VideoFormat,
)
from modules.config.optimizer_defaults import ONE_BY_ONE
from modules.config.paths import resolve
from modules.config.problems import ConfigError, Problem
from modules.config.rules_model import trained_types
from modules.config.scheduler_params import PLACEHOLDERS, scheduler_arguments

OWN_RATE = frozenset(word for word in Optimizer if word.value.startswith(("DADAPT_", "PRODIGY")))
"""Optimizers that find the step size themselves and multiply it by learning_rate."""
SCHEDULE_FREE = frozenset(
    {
        Optimizer.SCHEDULE_FREE_ADAMW,
        Optimizer.SCHEDULE_FREE_SGD,
        Optimizer.PRODIGY_PLUS_SCHEDULE_FREE,
    }
)
CAPITAL_MODES = frozenset({"capslock", "title", "first", "random"})
_SIZE = re.compile(r"\s*\d{1,5}\s*(x\s*\d{1,5}\s*)?")


def fused_back_pass(case: Case) -> Iterator[Problem]:
    """Updating weights during the backward pass, where that cannot be or gains nothing."""
    config, section, field = case.config, case.config.optimizer, "optimizer.fused_back_pass"
    name = section.optimizer
    if not section.fused_back_pass:
        return
    if name not in ONE_BY_ONE:
        message = f"{field} is true, which {name.value} cannot do."
        yield refuse(field, message, "Set it to false, or use ADAFACTOR.")
    for other in ("fused", "foreach"):
        if name in (Optimizer.ADAM, Optimizer.ADAMW) and getattr(section, other):
            message = f"{field} is true, but so is optimizer.{other}, which updates all at once."
            yield refuse(field, message, f"Set optimizer.{other} to false.")
    wide = any(dtype is DataType.FLOAT_32 for _, dtype in trained_types(case))
    if config.computed_dtype is DataType.FLOAT_16 and wide:
        message = (
            f"{field} is true, but train_dtype is FLOAT_16, whose gradients are scaled and looked "
            "at as a whole before any of them counts."
        )
        yield refuse(field, message, "Set train_dtype to BFLOAT_16, or it to false.")
    if config.clip_grad_norm is not None:
        message = (
            f"{field} is true, so clip_grad_norm {config.clip_grad_norm:g} limits each tensor's "
            "gradient by itself, not that of all."
        )
        yield warn("clip_grad_norm", message, "Set it to empty to clip nothing.")
    if config.gradient_accumulation_steps > 1:
        message = f"{field} is true, but gradients are accumulated, so no memory is saved."
        yield warn(field, message, "Set gradient_accumulation_steps to 1, or it to false.")
    if config.multi_gpu and not config.fused_gradient_reduce:
        message = f"{field} is true, but fused_gradient_reduce is false."
        yield refuse(field, message, "Set fused_gradient_reduce to true.")


def rounding(case: Case) -> Iterator[Problem]:
    """Weights of 16 bits whose small updates are rounded away."""
    field = "optimizer.stochastic_rounding"
    if case.config.get(field):
        return
    for name, dtype in trained_types(case):
        if dtype is DataType.BFLOAT_16:
            message = (
                f"{name} is BFLOAT_16 and {field} is false, so updates below a "
                "five-hundredth of a weight get lost."
            )
            yield warn(field, message, f"Set {field} to true, or {name} to FLOAT_32.")


def learning_rate(case: Case) -> Iterator[Problem]:
    """A rate that does not suit the optimizer or its schedule."""
    config = case.config
    name, schedule = config.optimizer.optimizer, config.learning_rate_scheduler
    if name in OWN_RATE and 0 < config.learning_rate < 0.01:
        message = (
            f"learning_rate is {config.learning_rate:g}, but {name.value} finds its step size "
            "itself and multiplies it by that."
        )
        yield warn("learning_rate", message, "Use 1.0.")
    if name not in OWN_RATE and config.learning_rate > 0.1:
        message = f"learning_rate is {config.learning_rate:g}, at which {name.value} diverges."
        yield warn("learning_rate", message, "Use 3e-4 for a LoRA, 1e-5 for a whole model.")
    if name in SCHEDULE_FREE and schedule is not LearningRateScheduler.CONSTANT:
        message = f"learning_rate_scheduler is {schedule.value}, but {name.value} needs none."
        yield refuse("learning_rate_scheduler", message, "Use CONSTANT.")
    if schedule is LearningRateScheduler.ADAFACTOR and name is not Optimizer.ADAFACTOR:
        message = f"learning_rate_scheduler is ADAFACTOR, but the optimizer is {name.value}."
        yield refuse("learning_rate_scheduler", message, "Use CONSTANT, or that optimizer.")


def custom_schedule(case: Case) -> Iterator[Problem]:
    """A scheduler that cannot be found, or whose arguments cannot be read."""
    config, field = case.config, "custom_learning_rate_scheduler"
    if config.learning_rate_scheduler is not LearningRateScheduler.CUSTOM:
        return
    name = config.custom_learning_rate_scheduler or ""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        message = f"{field} is {name or 'empty'}, but must name a class as module.Class."
        yield refuse(field, message, "Give one, or use another learning_rate_scheduler.")
    try:
        scheduler_arguments(config.scheduler_params or (), dict.fromkeys(PLACEHOLDERS, 1))
    except ValueError as error:
        message, _, fix = str(error).partition(". ")
        yield refuse("scheduler_params", f"scheduler_params: {message}.", fix)
    if config.learning_rate_min_factor:
        message = (
            f"learning_rate_min_factor is {config.learning_rate_min_factor:g}, but a CUSTOM "
            "scheduler has its own lowest rate."
        )
        yield warn("learning_rate_min_factor", message, "Set it to 0.")


def warmup(case: Case) -> Iterator[Problem]:
    """A warm-up that never ends."""
    config, field = case.config, "learning_rate_warmup_steps"
    steps = config.learning_rate_warmup_steps
    if steps == 1:
        message = f"{field} is 1, a share of the run: its whole length."
        yield warn(field, message, "Use a smaller share, such as 0.1, or more than 1 for steps.")
    elif steps > 1 and case.data:
        passes = max(1, -(-case.data.images // config.batch_size)) * config.epochs
        if steps >= passes:
            message = (
                f"{field} is {steps:g}, but the run is only {passes} steps, so the learning rate "
                "never reaches its peak."
            )
            yield warn(field, message, f"Use {max(1, passes // 10)}, or 0.1 for a tenth.")


def batches(case: Case) -> Iterator[Problem]:
    """More images a batch than there are."""
    if case.data and case.data.images < case.config.batch_size:
        message = (
            f"batch_size is {case.config.batch_size}, but there are {case.data.images} images."
        )
        yield warn("batch_size", message, f"Use at most {max(1, case.data.images)}.")


def caching(case: Case) -> Iterator[Problem]:
    """A run that shall fill a cache, and nothing else, without one."""
    if case.config.only_cache and not case.config.latent_caching:
        message = "only_cache is true, but latent_caching is false, so nothing would be done."
        yield refuse("only_cache", message, "Set latent_caching to true, or only_cache to false.")


def judging(case: Case) -> Iterator[Problem]:
    """A judgement by the validation loss where none is measured."""
    config = case.config
    measured = config.validation and config.validate_after_unit is not TimeUnit.NEVER
    for name in ("early_stop_patience", "keep_best"):
        value = config.get(f"ot.{name}")
        if value and not (measured and config.validate_after):
            message = f"ot.{name} is {value}, but no validation loss is measured."
            fix = "Set validation to true and validate_after to 1 EPOCH, or it to 0."
            yield refuse(f"ot.{name}", message, fix)


def noise(case: Case) -> Iterator[Problem]:
    """Noise settings that contradict each other."""
    config = case.config
    low, high = config.min_noising_strength, config.max_noising_strength
    if low >= high:
        message = f"min_noising_strength is {low:g}, but max_noising_strength is {high:g}."
        yield refuse("min_noising_strength", message, "Let the first be below the second.")
    if config.force_v_prediction and config.force_epsilon_prediction:
        message = "force_v_prediction and force_epsilon_prediction are both true."
        yield refuse("force_v_prediction", message, "Set one of them to false.")
    if config.rescale_noise_scheduler_to_zero_terminal_snr and config.force_epsilon_prediction:
        message = (
            "rescale_noise_scheduler_to_zero_terminal_snr is true, which needs a model that "
            "predicts velocity, but force_epsilon_prediction is true."
        )
        yield refuse("force_epsilon_prediction", message, "Set it to false.")


UNREAD = {
    TimestepDistribution.UNIFORM: ("noising_weight", "noising_bias"),
    TimestepDistribution.COS_MAP: ("noising_weight", "noising_bias"),
    TimestepDistribution.HEAVY_TAIL: ("noising_bias",),
}
"""Parameters that a distribution does not have."""


def distribution(case: Case) -> Iterator[Problem]:
    """Parameters of another distribution, and a shift that another one replaces."""
    config = case.config
    if config.training_method is TrainingMethod.FINE_TUNE_VAE:
        return
    kind = config.timestep_distribution
    for field in UNREAD.get(kind, ()):
        if value := config.get(field):
            message = f"{field} is {value:g}, but the distribution {kind.value} does not have it."
            yield warn(field, message, "Set it to 0, or choose another timestep_distribution.")
    dynamic = next(s for s in settings(type(config)) if s.path == "dynamic_timestep_shifting")
    shifts = config.dynamic_timestep_shifting and dynamic.fits_model(config)
    if shifts and config.timestep_shift != 1:
        field = "timestep_shift"
        message = f"{field} is {config.timestep_shift:g}, but dynamic_timestep_shifting "
        yield warn(field, f"{message}replaces it.", "Set one of them to its default.")


def loss_terms(case: Case) -> Iterator[Problem]:
    """A loss of nothing."""
    config = case.config
    names = ("mse_strength", "mae_strength", "log_cosh_strength", "huber_strength")
    if not any(config.get(name) for name in names):
        yield refuse("mse_strength", f"{', '.join(names)} are all 0.", "Set mse_strength to 1.")


def resolutions(case: Case) -> Iterator[Problem]:
    """A resolution that cannot be read, or is too small for the model."""
    config = case.config
    yield from _resolution(case, "resolution", config.resolution)
    for number, concept in enumerate(config.concepts or ()):
        if concept.enabled and concept.image.enable_resolution_override:
            field = f"concepts.{number}.image.resolution_override"
            yield from _resolution(case, field, concept.image.resolution_override)


def _resolution(case: Case, field: str, text: str) -> Iterator[Problem]:
    parts = text.split(",")
    sized = "x" in text
    if not all(_SIZE.fullmatch(part) for part in parts) or (sized and len(parts) > 1):
        message = f"{field} is {text!r}, but must be a size in pixels."
        yield refuse(field, message, "Write 512, or 512,768 for several, or 768x512.")
        return
    if sized and not case.config.aspect_ratio_bucketing:
        message = f"{field} is {text!r}, but without aspect_ratio_bucketing images are square."
        yield refuse(field, message, "Write one number, or turn aspect_ratio_bucketing on.")
    smallest = min(int(number) for number in re.split("[x,]", text))
    if smallest < case.facts.pixel_multiple:
        message = (
            f"{field} is {text!r}, but {case.facts.title} works in steps of "
            f"{case.facts.pixel_multiple} px."
        )
        yield refuse(field, message, f"Use at least {case.facts.pixel_multiple}.")


def film_lengths(case: Case) -> Iterator[Problem]:
    """Lengths that no training film can have."""
    if case.facts.frames_per_second:
        try:
            case.facts.film_lengths(case.config.frames)
        except ConfigError as failure:
            yield from failure.problems


def concept_types(case: Case) -> Iterator[Problem]:
    """Validation without concepts for it, and concepts that only a LoRA can use."""
    config = case.config
    enabled = [concept for concept in config.concepts or () if concept.enabled]
    if config.validation and not any(c.type is ConceptType.VALIDATION for c in enabled):
        message = "validation is true, but no enabled concept is of type VALIDATION."
        yield refuse("validation", message, "Add one, or set validation to false.")
    for number, concept in enumerate(config.concepts or ()):
        prior = concept.enabled and concept.type is ConceptType.PRIOR_PREDICTION
        if prior and config.training_method is not TrainingMethod.LORA:
            field = f"concepts.{number}.type"
            message = f"{field} is PRIOR_PREDICTION, which only training_method LORA can do."
            yield refuse(field, message, "Use STANDARD, or train a LoRA.")


def captions(case: Case) -> Iterator[Problem]:
    """Caption settings that cannot be read."""
    for number, concept in enumerate(case.config.concepts or ()):
        if concept.enabled:
            yield from _captions(f"concepts.{number}.text", concept)


def _captions(prefix: str, concept: ConceptConfig) -> Iterator[Problem]:
    text = concept.text
    if text.prompt_source is PromptSource.CONCEPT and not _is_file(text.prompt_path):
        field = f"{prefix}.prompt_path"
        message = f"{field} is {text.prompt_path or 'empty'}, but no file is there."
        yield refuse(field, message, "Name a text file, or set prompt_source to sample.")
    if text.tag_dropout_enable and text.tag_dropout_special_tags_mode is not SpecialTagsMode.NONE:
        field, tags = f"{prefix}.tag_dropout_special_tags", text.tag_dropout_special_tags
        if tags.endswith((".txt", ".csv")) and not _is_file(tags):
            message = f"{field} is {tags}, but no file is there."
            yield refuse(field, message, "Check the path, or write the tags themselves.")
    if text.caps_randomize_enable:
        field = f"{prefix}.caps_randomize_mode"
        modes = {mode.strip() for mode in text.caps_randomize_mode.split(",")}
        if odd := sorted(modes - CAPITAL_MODES):
            message = f"{field} has {odd[0]!r}, which is no way to write capitals."
            yield refuse(field, message, f"Use any of {', '.join(sorted(CAPITAL_MODES))}.")
    if concept.balancing == 0 or (
        concept.balancing_strategy is BalancingStrategy.SAMPLES and concept.balancing < 1
    ):
        field = f"{prefix.rpartition('.')[0]}.balancing"
        message = f"{field} is {concept.balancing:g}, so no image of the concept is seen."
        yield warn(field, message, "Raise it, or disable the concept.")


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(resolve(text)).is_file()
    except (ConfigError, OSError, ValueError):
        return False


def sample_sizes(case: Case) -> Iterator[Problem]:
    """Sample sizes that the model cannot draw."""
    kinds = {"diffusion": 8, "flow": 16, "cascade": case.facts.pixel_multiple}
    multiple = kinds[case.facts.objective]
    for number, sample in enumerate(case.config.samples or ()):
        for edge in ("width", "height"):
            size = getattr(sample, edge)
            if sample.enabled and size % multiple:
                field = f"samples.{number}.{edge}"
                below = size // multiple * multiple
                message = f"{field} is {size} px, but must be a multiple of {multiple} px."
                yield refuse(field, message, f"Use {below or multiple} or {below + multiple}.")


def sample_films(case: Case) -> Iterator[Problem]:
    """Lengths that no film can have, and films that cannot be written."""
    config = case.config
    for number, sample in enumerate(config.samples or ()):
        if not sample.enabled or sample.frames == 1:
            continue
        field, multiple = f"samples.{number}.frames", case.facts.frame_multiple
        if odd := (sample.frames - 1) % multiple:
            below = sample.frames - odd
            message = f"{field} is {sample.frames}, but must be 1 above a multiple of {multiple}."
            yield refuse(field, message, f"Use {below} or {below + multiple}.")
        if config.sample_video_format is VideoFormat.MP4 and not find_spec("imageio_ffmpeg"):
            message = (
                f"{field} is {sample.frames}, but imageio-ffmpeg, which writes it, is missing."
            )
            fix = "Install ot-notebook[video], or set sample_video_format to PNG_IMAGE_SEQUENCE."
            yield refuse(field, message, fix)


def sample_pictures(case: Case) -> Iterator[Problem]:
    """Pictures to draw into, where the model cannot, or where they are not there."""
    for number, sample in enumerate(case.config.samples or ()):
        if not (sample.enabled and sample.sample_inpainting):
            continue
        field, title = f"samples.{number}.sample_inpainting", case.facts.title
        if case.facts.hint == "none":
            message = f"{field} is true, but {title} does not draw into pictures."
            yield refuse(field, message, "Set it to false, or use an inpainting model_type.")
            continue
        names = ["base_image_path"]
        if case.facts.hint == "inpainting":
            names.append("mask_image_path")
        elif sample.mask_image_path:
            path = f"samples.{number}.mask_image_path"
            message = f"{path} is {sample.mask_image_path}, but {title} reads no mask."
            yield warn(path, message, "Set it to empty.")
        for name in names:
            path = sample.get(name)
            if not _is_file(path):
                message = f"samples.{number}.{name} is {path or 'empty'}, but no file is there."
                fix = f"Name a picture, or set {field} to false."
                yield refuse(f"samples.{number}.{name}", message, fix)


RULES: tuple[Rule, ...] = (
    fused_back_pass,
    rounding,
    learning_rate,
    custom_schedule,
    warmup,
    batches,
    caching,
    judging,
    noise,
    distribution,
    loss_terms,
    resolutions,
    film_lengths,
    concept_types,
    captions,
    sample_sizes,
    sample_films,
    sample_pictures,
)
