"""TrainConfig's settings about training: data, optimisation, loss, noise and masks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from modules.config.concept_config import ConceptConfig
from modules.config.enums import (
    DataType,
    EMAMode,
    LearningRateScaler,
    LearningRateScheduler,
    LossScaler,
    LossWeight,
    ModelType,
    TimestepDistribution,
    TrainingMethod,
)
from modules.config.models import of_films, with_hint
from modules.config.optimizer_config import TrainOptimizerConfig
from modules.config.section import Fraction, NonNegative, Positive, Real, Section, Show

_VIDEO = of_films()
_SD = frozenset(kind for kind in ModelType if kind.value.startswith("STABLE_DIFFUSION_")) - {
    ModelType.STABLE_DIFFUSION_3,
    ModelType.STABLE_DIFFUSION_35,
}
_SHIFTED = frozenset(
    {
        ModelType.ANIMA,
        ModelType.ERNIE,
        ModelType.FLUX_2,
        ModelType.FLUX_DEV_1,
        ModelType.FLUX_FILL_DEV_1,
        ModelType.IDEOGRAM_4,
        ModelType.KREA_2,
        ModelType.QWEN,
        ModelType.Z_IMAGE,
    }
)
_LORA = frozenset({TrainingMethod.LORA})
_NOISED = frozenset(TrainingMethod) - {TrainingMethod.FINE_TUNE_VAE}
_EMA = {"ema": (EMAMode.GPU, EMAMode.CPU)}
_CUSTOM = {"learning_rate_scheduler": (LearningRateScheduler.CUSTOM,)}
_MASKED = {"masked_training": (True,)}


class DataSettings(Section):
    """The training set and how it is prepared."""

    GROUP: ClassVar[str] = "Data"

    concept_file_name: Annotated[str, Show()] = "training_concepts/concepts.json"
    """File of concepts, used if none are in the config itself."""

    concepts: Annotated[tuple[ConceptConfig, ...] | None, Show(level="basic")] = None
    """Folders of training images; null for those of the file."""

    resolution: Annotated[str, Show(level="basic", unit="px")] = "512"
    """Size of training images: `512`, several as `512,768`, or exactly `768x512`."""

    frames: Annotated[str, Show(unit="frames", families=_VIDEO)] = "25"
    """Length of training films: `25`, several as `9,25`, each 1 above a multiple of 4.

    A film takes the longest that it can fill, and a random part of itself.
    """

    aspect_ratio_bucketing: Annotated[bool, Show(level="basic")] = True
    """Train on images of several shapes, each batch of one; otherwise crop to squares."""

    latent_caching: Annotated[bool, Show()] = True
    """Encode images and captions once and keep them."""

    clear_cache_before_training: Annotated[bool, Show()] = True
    """OneTrainer empties its cache first. Ours knows what changed and is never stale."""

    dataloader_threads: Annotated[Positive, Show(unit="threads")] = 2
    """Threads that read and prepare images."""


class OptimisationSettings(Section):
    """Learning rate, batch, length of the run, precision and the optimizer."""

    GROUP: ClassVar[str] = "Optimisation"

    learning_rate: Annotated[NonNegative, Show(level="basic", applies="now")] = 3e-6
    """How far each step goes."""

    learning_rate_scheduler: Annotated[LearningRateScheduler, Show(level="basic")] = (
        LearningRateScheduler.CONSTANT
    )
    """How the learning rate moves after its warm-up."""

    custom_learning_rate_scheduler: Annotated[str | None, Show(when=_CUSTOM)] = None
    """Scheduler class of CUSTOM, as module.Class."""

    scheduler_params: Annotated[tuple[dict[str, Any], ...] | None, Show(when=_CUSTOM)] = ()
    """Arguments of the CUSTOM scheduler, each an object with `key` and `value`."""

    learning_rate_warmup_steps: Annotated[NonNegative, Show(level="basic", unit="steps")] = 200.0
    """Steps over which the learning rate rises from zero; up to 1, a share of the run."""

    learning_rate_cycles: Annotated[
        NonNegative,
        Show(
            when={
                "learning_rate_scheduler": (
                    LearningRateScheduler.COSINE_WITH_RESTARTS,
                    LearningRateScheduler.COSINE_WITH_HARD_RESTARTS,
                )
            }
        ),
    ] = 1.0
    """How often the learning rate starts over."""

    learning_rate_min_factor: Annotated[Fraction, Show()] = 0.0
    """Share of the learning rate that it never falls below."""

    learning_rate_scaler: Annotated[LearningRateScaler, Show()] = LearningRateScaler.NONE
    """Multiply the learning rate by the square root of this batch size."""

    epochs: Annotated[Positive, Show(level="basic", unit="epochs")] = 100
    """How often the run sees the whole training set."""

    batch_size: Annotated[Positive, Show(level="basic", unit="images")] = 1
    """Images of one forward pass, on each GPU."""

    gradient_accumulation_steps: Annotated[Positive, Show(level="basic", unit="passes")] = 1
    """Forward passes whose gradients make one step."""

    clip_grad_norm: Annotated[NonNegative | None, Show(applies="now")] = 1.0
    """Largest norm of the gradient; longer ones are shortened. Empty never shortens."""

    ema: Annotated[EMAMode, Show()] = EMAMode.OFF
    """Keep a moving average of the weights, which is what is sampled and saved."""

    ema_decay: Annotated[Fraction, Show(when=_EMA, applies="now")] = 0.999
    """How slowly the average moves."""

    ema_update_step_interval: Annotated[Positive, Show(unit="steps", when=_EMA)] = 5
    """Steps between two updates of the average."""

    train_dtype: Annotated[DataType, Show(level="basic")] = DataType.FLOAT_16
    """Precision of the computation; BFLOAT_16 needs a GPU of 2020 or later."""

    fallback_train_dtype: Annotated[DataType, Show()] = DataType.BFLOAT_16
    """Precision of parts that fail in FLOAT_16."""

    enable_autocast_cache: Annotated[bool, Show()] = True
    """Convert each weight once a step rather than at each use: faster, more memory."""

    optimizer: Annotated[TrainOptimizerConfig, Show(group="Optimizer")] = Field(
        default_factory=TrainOptimizerConfig
    )
    """The optimizer and its parameters."""

    optimizer_defaults: dict[str, TrainOptimizerConfig] = Field(default_factory=dict)
    """Your own usual parameters by optimizer: what choosing it sets."""


class LossSettings(Section):
    """What is compared, how it is weighted, and which noise is drawn."""

    GROUP: ClassVar[str] = "Loss and noise"

    mse_strength: Annotated[NonNegative, Show(applies="now")] = 1.0
    """Share of the squared error in the loss."""

    mae_strength: Annotated[NonNegative, Show(applies="now")] = 0.0
    """Share of the absolute error in the loss."""

    log_cosh_strength: Annotated[NonNegative, Show(applies="now")] = 0.0
    """Share of the log-cosh error in the loss."""

    huber_strength: Annotated[NonNegative, Show(applies="now")] = 0.0
    """Share of the Huber error in the loss."""

    huber_delta: Annotated[Annotated[Real, Field(gt=0)], Show(applies="now")] = 1.0
    """Where the Huber error turns from squared to absolute."""

    vb_loss_strength: Annotated[
        NonNegative,
        Show(families=frozenset({ModelType.PIXART_ALPHA, ModelType.PIXART_SIGMA}), applies="now"),
    ] = 1.0
    """Share of the variational bound, for models that predict their variance."""

    loss_weight_fn: Annotated[LossWeight, Show(methods=_NOISED, level="basic", applies="now")] = (
        LossWeight.CONSTANT
    )
    """How the loss of a timestep is weighted."""

    loss_weight_strength: Annotated[
        NonNegative,
        Show(
            methods=_NOISED,
            applies="now",
            when={"loss_weight_fn": (LossWeight.MIN_SNR_GAMMA, LossWeight.P2)},
        ),
    ] = 5.0
    """Gamma of the loss weight."""

    loss_scaler: Annotated[LossScaler, Show()] = LossScaler.NONE
    """Multiply the loss by this batch size."""

    offset_noise_weight: Annotated[NonNegative, Show(methods=_NOISED, applies="now")] = 0.0
    """Noise added to whole channels, which teaches very dark and bright pictures."""

    generalized_offset_noise: Annotated[bool, Show(methods=_NOISED, families=_SD)] = False
    """Scale offset noise with the timestep."""

    perturbation_noise_weight: Annotated[NonNegative, Show(methods=_NOISED, applies="now")] = 0.0
    """Noise that the model is not asked to predict."""

    rescale_noise_scheduler_to_zero_terminal_snr: Annotated[
        bool, Show(methods=_NOISED, families=_SD)
    ] = False
    """Let the last timestep be pure noise; the model then predicts velocity."""

    force_v_prediction: Annotated[bool, Show(families=_SD, methods=_NOISED)] = False
    """Take the model for one that predicts velocity, whatever its files say."""

    force_epsilon_prediction: Annotated[bool, Show(families=_SD, methods=_NOISED)] = False
    """Take the model for one that predicts noise, whatever its files say."""

    min_noising_strength: Annotated[Fraction, Show(methods=_NOISED)] = 0.0
    """Least noise, as a share of the schedule."""

    max_noising_strength: Annotated[Fraction, Show(methods=_NOISED)] = 1.0
    """Most noise, as a share of the schedule."""

    timestep_distribution: Annotated[TimestepDistribution, Show(methods=_NOISED)] = (
        TimestepDistribution.UNIFORM
    )
    """How often each amount of noise is drawn."""

    noising_weight: Annotated[Real, Show(methods=_NOISED)] = 0.0
    """First parameter of the distribution: its width or steepness."""

    noising_bias: Annotated[Real, Show(methods=_NOISED)] = 0.0
    """Second parameter of the distribution: its centre."""

    timestep_shift: Annotated[Annotated[Real, Field(gt=0)], Show(methods=_NOISED)] = 1.0
    """Above 1, more noise is drawn."""

    dynamic_timestep_shifting: Annotated[bool, Show(families=_SHIFTED)] = False
    """Shift by the size of the image, as the model's sampler does."""


class MaskSettings(Section):
    """Training inside masks."""

    GROUP: ClassVar[str] = "Masks"

    masked_training: Annotated[bool, Show()] = False
    """Weigh the loss by the mask beside each image (`name-masklabel.png`)."""

    unmasked_probability: Annotated[Fraction, Show(applies="now")] = 0.1
    """How often an image counts as if its mask were white everywhere."""

    unmasked_weight: Annotated[Fraction, Show(when=_MASKED, applies="now")] = 0.1
    """Weight of the loss outside the mask."""

    normalize_masked_area_loss: Annotated[bool, Show(when=_MASKED, applies="now")] = False
    """Give small masks as much weight as large ones."""

    masked_prior_preservation_weight: Annotated[
        NonNegative, Show(methods=_LORA, when=_MASKED, applies="now")
    ] = 0.0
    """Hold the model outside the mask to what it drew before."""

    custom_conditioning_image: Annotated[bool, Show(families=with_hint("inpainting"))] = False
    """Show the model `name-condlabel.png`, whole, in place of the image around its mask."""
