"""The optimizer section: which one, and every parameter that any of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from modules.config.enums import Optimizer
from modules.config.optimizer_defaults import OPTIMIZER_DEFAULTS
from modules.config.section import (
    Count,
    Int,
    NonNegative,
    Positive,
    Real,
    Section,
    Show,
    no_bool,
)

Beta = Annotated[Real, Field(ge=0, lt=1)]
Percentile = Annotated[Int, Field(ge=1, le=100)]
Growth = Annotated[float, BeforeValidator(no_bool), Field(gt=0)]
"""Above 0; the one kind of number that may be infinite."""


class TrainOptimizerConfig(Section):
    """An optimizer and its parameters; empty means the optimizer's own default."""

    GROUP: ClassVar[str] = "Optimizer"

    optimizer: Annotated[Optimizer, Show(level="basic")] = Optimizer.ADAMW
    """Algorithm that changes the weights; choosing one sets its usual parameters."""

    adam_w_mode: Annotated[bool, Show()] = False
    """Decouple weight decay from the gradient, as AdamW does."""

    alpha: Annotated[Real | None, Show()] = None
    """Weight of the slow average (AdEMAMix), or smoothing of the squared gradient (RMSprop)."""

    amsgrad: Annotated[bool, Show()] = False
    """Use the largest squared-gradient average seen so far."""

    beta1: Annotated[Beta | None, Show()] = None
    """Decay of the average of gradients."""

    beta2: Annotated[Beta | None, Show()] = None
    """Decay of the average of squared gradients."""

    beta3: Annotated[Beta | None, Show()] = None
    """Decay of a third average: slow gradients, or the step-size estimate."""

    bias_correction: Annotated[bool, Show()] = False
    """Correct the averages for their start at zero."""

    block_wise: Annotated[bool, Show()] = False
    """Quantise the 8-bit state block by block, which isolates outliers."""

    capturable: Annotated[bool, Show()] = False
    """Keep the step count on the GPU, so that steps can be captured in a CUDA graph."""

    centered: Annotated[bool, Show()] = False
    """Normalise by the variance rather than by the squared gradient."""

    clip_threshold: Annotated[NonNegative | None, Show()] = None
    """Largest root mean square of an update."""

    d0: Annotated[NonNegative | None, Show()] = None
    """First guess of the step size."""

    d_coef: Annotated[NonNegative | None, Show()] = None
    """Factor of the estimated step size; below 1 is more careful."""

    dampening: Annotated[Real | None, Show()] = None
    """Share of each gradient that momentum leaves out."""

    decay_rate: Annotated[Real | None, Show()] = None
    """Exponent by which the squared-gradient average forgets."""

    decouple: Annotated[bool, Show()] = False
    """Decouple weight decay from the gradient, as AdamW does."""

    differentiable: Annotated[bool, Show()] = False
    """Let gradients flow through the step; for research on optimizers."""

    eps: Annotated[NonNegative | None, Show()] = None
    """Added to the denominator, against division by zero."""

    eps2: Annotated[NonNegative | None, Show()] = None
    """Second small constant: the floor of a parameter scale or of a confidence."""

    foreach: Annotated[bool | None, Show()] = False
    """Update all tensors in grouped kernels: faster, more memory. Empty lets torch choose."""

    fsdp_in_use: Annotated[bool, Show()] = False
    """Say that parameters are sharded, so that norms are summed over devices."""

    fused: Annotated[bool, Show()] = False
    """Update all tensors in one kernel: the cheapest step."""

    fused_back_pass: Annotated[bool, Show()] = False
    """Update each parameter as soon as its gradient is there, and free the gradient."""

    growth_rate: Annotated[Growth | None, Show()] = None
    """Largest factor by which the step size may grow in a step."""

    initial_accumulator_value: Annotated[Count | None, Show()] = None
    """Start of the sum of squared gradients."""

    initial_accumulator: Annotated[NonNegative | None, Show()] = None
    """Start of both averages."""

    is_paged: Annotated[bool, Show()] = False
    """Let the optimizer state move to main memory when the GPU is full."""

    log_every: Annotated[Count | None, Show()] = None
    """Print the estimated step size each so many steps; 0 never."""

    lr_decay: Annotated[NonNegative | None, Show()] = None
    """Fall of the learning rate with each step."""

    max_unorm: Annotated[NonNegative | None, Show()] = None
    """Largest norm of an update, relative to that of the parameter."""

    maximize: Annotated[bool, Show()] = False
    """Climb instead of descending."""

    min_8bit_size: Annotated[Count | None, Show()] = None
    """Tensors with fewer elements keep a 32-bit state."""

    quant_block_size: Annotated[Positive | None, Show()] = None
    """Elements that share one scale in the 8-bit state."""

    momentum: Annotated[Real | None, Show()] = None
    """Share of the last update that carries on."""

    nesterov: Annotated[bool, Show()] = False
    """Look ahead along the momentum."""

    no_prox: Annotated[bool, Show()] = False
    """Apply weight decay before the update rather than as a proximal step."""

    optim_bits: Annotated[Positive | None, Show()] = None
    """Bits of each number of the state: 8 or 32."""

    percentile_clipping: Annotated[Percentile | None, Show()] = None
    """Clip gradients at this percentile of the last 100 norms; 100 is off."""

    r: Annotated[Real | None, Show()] = None
    """Power of the weight that later steps get in the average."""

    relative_step: Annotated[bool, Show()] = False
    """Let the optimizer choose the learning rate."""

    safeguard_warmup: Annotated[bool, Show()] = False
    """Leave the warm-up out of the step-size estimate."""

    scale_parameter: Annotated[bool, Show()] = False
    """Scale the learning rate by the size of each parameter."""

    stochastic_rounding: Annotated[bool, Show()] = True
    """Round 16-bit weights up or down at random, so that small updates count."""

    use_bias_correction: Annotated[bool, Show()] = False
    """Correct the averages for their start at zero."""

    use_triton: Annotated[bool, Show()] = False
    """Use the Triton kernel."""

    warmup_init: Annotated[bool, Show()] = False
    """Let the automatic learning rate begin small."""

    weight_decay: Annotated[NonNegative | None, Show(level="basic")] = None
    """Pull of the weights towards zero."""

    weight_lr_power: Annotated[Real | None, Show()] = None
    """Power of the learning rate in the weight of each step in the average."""

    decoupled_decay: Annotated[bool, Show()] = False
    """Decouple weight decay from the gradient."""

    fixed_decay: Annotated[bool, Show()] = False
    """Do not scale weight decay by the learning rate."""

    rectify: Annotated[bool, Show()] = False
    """Rectify the variance of early steps."""

    degenerated_to_sgd: Annotated[bool, Show()] = False
    """Take plain gradient steps while the variance cannot be rectified."""

    k: Annotated[Positive | None, Show()] = None
    """Number of projections of each update."""

    xi: Annotated[NonNegative | None, Show()] = None
    """Small constant of the projections."""

    n_sma_threshold: Annotated[Count | None, Show()] = None
    """Length of average from which the variance is rectified."""

    ams_bound: Annotated[bool, Show()] = False
    """Use the largest squared-gradient average seen so far."""

    adanorm: Annotated[bool, Show()] = False
    """Normalise by the norm of gradients."""

    adam_debias: Annotated[bool, Show()] = False
    """Correct only the denominator for the start at zero."""

    slice_p: Annotated[Positive | None, Show()] = None
    """Estimate the step size from every p-th element only, which saves memory."""

    cautious: Annotated[bool, Show()] = False
    """Skip the parts of an update that point against the gradient."""

    weight_decay_by_lr: Annotated[bool, Show()] = True
    """Scale weight decay by the learning rate."""

    prodigy_steps: Annotated[Count | None, Show()] = None
    """Freeze the step-size estimate after so many steps; 0 never."""

    use_speed: Annotated[bool, Show()] = False
    """Estimate the step size by the quicker rule."""

    split_groups: Annotated[bool, Show()] = True
    """Estimate a step size for each parameter group."""

    split_groups_mean: Annotated[bool, Show()] = True
    """Use the mean of the groups' step sizes for all."""

    factored: Annotated[bool, Show()] = True
    """Store the squared-gradient average as row and column sums: less memory."""

    factored_fp32: Annotated[bool, Show()] = True
    """Keep the factors in 32 bits."""

    use_stableadamw: Annotated[bool, Show()] = True
    """Scale updates down when gradients jump."""

    use_cautious: Annotated[bool, Show()] = False
    """Skip the parts of an update that point against the gradient."""

    use_grams: Annotated[bool, Show()] = False
    """Take the direction from the gradient and only the size from the momentum."""

    use_adopt: Annotated[bool, Show()] = False
    """Normalise by the average of the step before (ADOPT)."""

    d_limiter: Annotated[bool | None, Show()] = True
    """Keep the step-size estimate from jumping."""

    use_schedulefree: Annotated[bool | None, Show()] = True
    """Average the weights instead of lowering the learning rate."""

    use_orthograd: Annotated[bool, Show()] = False
    """Use only the part of the gradient that is orthogonal to the weights."""

    nnmf_factor: Annotated[bool, Show()] = False
    """Store the state as a product of two small matrices: far less memory."""

    orthogonal_gradient: Annotated[bool, Show()] = False
    """Use only the part of the gradient that is orthogonal to the weights."""

    use_atan2: Annotated[bool, Show()] = False
    """Divide by arctangent, which needs no eps and bounds the update."""

    use_AdEMAMix: Annotated[bool, Show()] = False  # noqa: N815 - the name in files
    """Add a slow average of gradients."""

    beta3_ema: Annotated[Beta | None, Show()] = None
    """Decay of the slow average."""

    alpha_grad: Annotated[Real | None, Show()] = None
    """Weight of the newest gradient in the simplified mix."""

    beta1_warmup: Annotated[Count | None, Show()] = None
    """Steps over which beta1 rises."""

    min_beta1: Annotated[Beta | None, Show()] = None
    """Start of beta1 in its warm-up."""

    Simplified_AdEMAMix: Annotated[bool, Show()] = False
    """Mix the gradient itself with one long average."""

    kourkoutas_beta: Annotated[bool, Show()] = False
    """Adapt beta2 to how jumpy each layer's gradients are."""

    schedulefree_c: Annotated[Real | None, Show()] = None
    """Inertia of the average; 0 for the classic rule."""

    ns_steps: Annotated[Positive | None, Show()] = None
    """Newton-Schulz iterations of each orthogonalisation."""

    MuonWithAuxAdam: Annotated[bool, Show()] = False
    """Train with Adam what Muon does not suit: all but hidden matrices."""

    muon_hidden_layers: Annotated[str | None, Show()] = None
    """Comma-separated parts of layer paths that Muon trains; empty for the usual."""

    muon_adam_regex: Annotated[bool, Show()] = False
    """Read `muon_hidden_layers` as regular expressions."""

    muon_adam_lr: Annotated[NonNegative | None, Show()] = None
    """Learning rate of the auxiliary Adam."""

    muon_te1_adam_lr: Annotated[NonNegative | None, Show()] = None
    """Learning rate of the auxiliary Adam in the first text encoder."""

    muon_te2_adam_lr: Annotated[NonNegative | None, Show()] = None
    """Learning rate of the auxiliary Adam in the second text encoder."""

    muon_adam_config: Annotated[dict[str, Any], Show()] = Field(default_factory=dict)
    """Settings of the auxiliary Adam."""

    rms_rescaling: Annotated[bool | None, Show()] = True
    """Scale updates to the size that Adam would give."""

    normuon_variant: Annotated[bool, Show()] = False
    """Normalise the update of each neuron."""

    beta2_normuon: Annotated[Beta | None, Show()] = None
    """Decay of the neuron norms."""

    low_rank_ortho: Annotated[bool, Show()] = False
    """Orthogonalise in a random low-rank space: cheaper."""

    ortho_rank: Annotated[Positive | None, Show()] = None
    """Rank of that space."""

    accelerated_ns: Annotated[bool, Show()] = False
    """Use faster-converging Newton-Schulz coefficients."""

    cautious_wd: Annotated[bool, Show()] = False
    """Decay only the weights that the update shrinks too."""

    approx_mars: Annotated[bool, Show()] = False
    """Reduce the variance of gradients by the step before (MARS)."""

    auto_kappa_p: Annotated[bool, Show()] = False
    """Choose the norm of each layer by its shape."""

    compile: Annotated[bool, Show()] = False
    """Compile the step with torch.compile."""

    @classmethod
    def conditions(cls, name: str) -> Mapping[str, tuple[Any, ...]]:
        """The optimizers that take a parameter, as `Show.when` says it within this section."""
        if name in ("optimizer", "stochastic_rounding"):
            return {}  # the engine rounds, whatever the optimizer
        return {"optimizer": tuple(o for o, values in OPTIMIZER_DEFAULTS.items() if name in values)}

    @model_validator(mode="before")
    @classmethod
    def _fill_usual(cls, data: Any) -> Any:
        """What is left out or null is the chosen optimizer's usual value."""
        if not isinstance(data, Mapping):
            return data
        try:
            usual = OPTIMIZER_DEFAULTS[Optimizer(data.get("optimizer", Optimizer.ADAMW))]
        except ValueError:
            return data  # reported by the field itself
        return {**usual, **{name: value for name, value in data.items() if value is not None}}
