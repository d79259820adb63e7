"""Learning-rate schedules, as factors of the base rate.

k counts optimizer steps from 0; T is the last, W the warm-up, S = T - W the steps after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from modules.config import MODELS, LearningRateScaler, LossScaler, TrainConfig, TrainingMethod
from modules.config import LearningRateScheduler as Kind

AFTER_WARMUP: dict[Kind, Callable[[float, float], float]] = {
    Kind.CONSTANT: lambda _done, _cycles: 1.0,
    Kind.LINEAR: lambda done, _cycles: 1.0 - done,
    Kind.COSINE: lambda done, _cycles: 0.5 * (1.0 + math.cos(math.pi * done)),
    Kind.COSINE_WITH_RESTARTS: lambda done, cycles: (
        0.5 * (1.0 + math.cos(2.0 * math.pi * cycles * done))
    ),
    Kind.COSINE_WITH_HARD_RESTARTS: lambda done, cycles: (
        0.5 * (1.0 + math.cos(math.pi * (done * cycles % 1.0)))
    ),
    Kind.REX: lambda done, _cycles: (1.0 - done) / (0.1 + 0.9 * (1.0 - done)),
}
"""Factor at a share of S already done, 0 to 1, with so many cycles.

REX: Chen et al. 2021, arXiv:2107.04197, with its beta at 0.9.
"""


def warmup_steps(setting: float, total_steps: int, accumulate: int) -> int:
    """Optimizer steps of warm-up.

    Above 1 the setting counts forward passes, so it is divided by `accumulate`; up to 1 it is a
    share of the run.
    """
    return int(setting / accumulate) if setting > 1 else int(setting * total_steps)


def learning_rate_factor(
    kind: Kind, step: int, total_steps: int, warmup: int, min_factor: float, cycles: float = 1.0
) -> float:
    """Factor of the base rate for the step that follows `step` finished ones.

    The first of W warm-up steps has factor 1/(W+1): a step at rate 0 would teach nothing. ADAFACTOR
    leaves the rate, and its warm-up, to the optimizer of that name.
    """
    if kind is Kind.ADAFACTOR:
        return 1.0
    if step < warmup:
        return (step + 1) / (warmup + 1)
    remaining = max(1, total_steps - warmup)
    done = min(1.0, (step - warmup) / remaining)
    if kind in (Kind.COSINE_WITH_RESTARTS, Kind.COSINE_WITH_HARD_RESTARTS):
        done = min(done, 1.0 - 1.0 / remaining)  # the end of a cycle would be the start of another
    return min_factor + (1.0 - min_factor) * AFTER_WARMUP[kind](done, cycles)


def batch_scale(scaler: LearningRateScaler | LossScaler, config: TrainConfig) -> int:
    """Factor of a loss or rate scaler: images of a batch, passes of a step, or both."""
    passes = config.gradient_accumulation_steps
    return {
        "NONE": 1,
        "BATCH": config.batch_size,
        "GLOBAL_BATCH": config.batch_size,
        "GRADIENT_ACCUMULATION": passes,
        "BOTH": config.batch_size * passes,
        "GLOBAL_BOTH": config.batch_size * passes,
    }[scaler.value]


def base_rates(config: TrainConfig, parts: Iterable[str]) -> dict[str, float]:
    """Learning rate of each part before any schedule: its own, or the global one.

    A part is what has a rate of its own: a network, or an embedding by the path of its settings.
    """
    factor = batch_scale(config.learning_rate_scaler, config) ** 0.5
    embeddings = config.embeddings_in_use
    own = {
        name: config.embedding_learning_rate
        if name in embeddings
        else getattr(config, name).learning_rate
        for name in parts
    }
    return {
        name: factor * (config.learning_rate if rate is None else rate)
        for name, rate in own.items()
    }


class LearningRates:
    """The learning rate of each parameter group in each step of a run.

    Args:
        config: schedule and warm-up.
        base: rate of each group before any schedule.
        total_steps: optimizer steps of the run.
        batches: batches of an epoch, for a CUSTOM scheduler that asks.

    Raises:
        ConfigError: if a CUSTOM scheduler cannot be made.
    """

    def __init__(
        self, config: TrainConfig, base: Mapping[str, float], total_steps: int, batches: int
    ) -> None:
        self._config, self.base, self._total = config, dict(base), total_steps
        self._warmup = warmup_steps(
            config.learning_rate_warmup_steps, total_steps, config.gradient_accumulation_steps
        )
        self._custom = None
        if config.learning_rate_scheduler is Kind.CUSTOM:
            from modules.training.custom_schedule import CustomSchedule  # brings torch

            self._custom = CustomSchedule(
                config.custom_learning_rate_scheduler or "",
                config.scheduler_params or (),
                base,
                {
                    "%LR%": config.learning_rate,
                    "%EPOCHS%": config.epochs,
                    "%STEPS_PER_EPOCH%": batches,
                    "%TOTAL_STEPS%": total_steps,
                    "%SCHEDULER_STEPS%": max(1, total_steps - self._warmup),
                },
            )

    def __call__(self, step: int) -> dict[str, float]:
        """Rate of each group in the step that follows `step` finished ones."""
        if self._custom is not None and step >= self._warmup:
            return self._custom.rates(step - self._warmup)
        config = self._config
        factor = learning_rate_factor(
            config.learning_rate_scheduler,
            step,
            self._total,
            self._warmup,
            config.learning_rate_min_factor,
            config.learning_rate_cycles,
        )
        return {name: rate * factor for name, rate in self.base.items()}


def preview(config: TrainConfig, total_steps: int) -> dict[str, list[float]]:
    """The learning rate of each part that trains, in every step of a run, before it is started.

    Args:
        config: what would run.
        total_steps: optimizer steps that it would take.

    Raises:
        ConfigError: if a CUSTOM scheduler cannot be made, or not for so many steps.

    Example:
        >>> rates = preview(config, total_steps=1000)["unet"]
        >>> plt.plot(rates)
    """
    facts = MODELS[config.model_type]
    parts = (facts.denoiser, *facts.text_encoders)
    if config.training_method is TrainingMethod.EMBEDDING:
        parts = ()
    elif config.training_method is TrainingMethod.FINE_TUNE_VAE:
        parts = ("vae",)
    trains = [part for part in parts if config.get(part).train]
    trains += [name for name, each in config.embeddings_in_use.items() if each.train]
    forwards = total_steps * config.gradient_accumulation_steps
    rates = LearningRates(
        config,
        base_rates(config, trains),
        total_steps,
        max(1, forwards // config.epochs),
    )
    steps = [rates(step) for step in range(total_steps)]
    return {name: [step[name] for step in steps] for name in rates.base}
