"""Sections that describe one network, one embedding, or the quantisation of a network."""

from __future__ import annotations

import uuid
from typing import Annotated

from pydantic import Field

from modules.config.enums import DataType, ModelType, TimeUnit, TrainingMethod
from modules.config.models import MODELS
from modules.config.section import Count, Fraction, NonNegative, Positive, Section, Show

_TRAINED = frozenset({TrainingMethod.FINE_TUNE, TrainingMethod.LORA})
_GUIDED = frozenset(
    {ModelType.FLUX_DEV_1, ModelType.FLUX_FILL_DEV_1, ModelType.HUNYUAN_VIDEO, ModelType.FLUX_2}
)
_OPTIONAL = frozenset(
    {
        ModelType.STABLE_DIFFUSION_3,
        ModelType.STABLE_DIFFUSION_35,
        ModelType.FLUX_DEV_1,
        ModelType.FLUX_FILL_DEV_1,
        ModelType.HUNYUAN_VIDEO,
        ModelType.HI_DREAM_FULL,
        ModelType.IDEOGRAM_4,
    }
)
"""Model types that work without some of their parts."""
_MASKED = frozenset(
    {
        ModelType.STABLE_DIFFUSION_3,
        ModelType.STABLE_DIFFUSION_35,
        ModelType.FLUX_DEV_1,
        ModelType.FLUX_FILL_DEV_1,
        ModelType.HI_DREAM_FULL,
    }
)
"""Model types that can be told which text tokens are padding."""
_READS = frozenset(TrainingMethod) - {TrainingMethod.FINE_TUNE_VAE}
_LEARNS = frozenset(
    kind for kind, facts in MODELS.items() if TrainingMethod.EMBEDDING in facts.methods
)
"""Model types whose text encoders can learn words."""
_DROPPED = frozenset(kind for kind, facts in MODELS.items() if facts.caption_dropout)
_TRAINS = {"train": (True,)}
_STOPS = {
    "stop_training_after_unit": tuple(unit for unit in TimeUnit if unit is not TimeUnit.NEVER)
}


class TrainModelPartConfig(Section):
    """One network of the model: where it comes from, whether it trains, how it is stored."""

    model_name: Annotated[str, Show()] = ""
    """Another source for this network alone: a path, hub id or URL; empty for the base model's, or
    for the published one where that has none."""

    include: Annotated[bool, Show(families=_OPTIONAL)] = True
    """Whether the network is loaded at all; text encoders of some models can be left out."""

    train: Annotated[bool, Show(level="basic", methods=_TRAINED)] = True
    """Whether the network trains."""

    stop_training_after: Annotated[Count | None, Show(when={**_TRAINS, **_STOPS})] = None
    """How long the network trains before it is frozen, in the unit below."""

    stop_training_after_unit: Annotated[TimeUnit, Show(when=_TRAINS)] = TimeUnit.NEVER
    """What `stop_training_after` counts; NEVER trains to the end."""

    learning_rate: Annotated[
        NonNegative | None, Show(level="basic", applies="now", when=_TRAINS)
    ] = None
    """Learning rate of this network; empty for the global one."""

    weight_dtype: Annotated[DataType, Show(level="basic")] = DataType.FLOAT_32
    """How the network's weights are stored; small types save memory."""

    dropout_probability: Annotated[
        Fraction, Show(applies="now", methods=_READS, families=_DROPPED)
    ] = 0.0
    """Share of captions that this text encoder does not see, so that the model learns both."""

    train_embedding: Annotated[bool, Show(methods=_READS, families=_LEARNS)] = True
    """Whether embeddings may be trained in this text encoder."""

    attention_mask: Annotated[bool, Show(families=_MASKED)] = False
    """Whether the denoiser is told which text tokens are padding."""

    guidance_scale: Annotated[NonNegative, Show(families=_GUIDED)] = 1.0
    """Distilled guidance that the model is told during training."""

    gradient_checkpointing: Annotated[bool, Show()] = True
    """Recompute activations in the backward pass: much less memory, about a third slower."""

    offload_fraction: Annotated[Fraction, Show()] = 0.0
    """Share of the layers that wait on `temp_device` until their turn."""

    activation_offloading: Annotated[bool, Show()] = False
    """Keep checkpointed activations on `temp_device`."""


class QuantizationConfig(Section):
    """Which layers are stored in the small `weight_dtype` of their network."""

    layer_filter: Annotated[str, Show()] = ""
    """Comma-separated parts of layer paths to quantise; empty for all."""

    layer_filter_preset: Annotated[str, Show(offers="filters")] = "full"
    """Name of a ready-made filter of the model type, or "custom"."""

    layer_filter_regex: Annotated[bool, Show()] = False
    """Read the items of the filter as regular expressions."""

    svd_dtype: Annotated[DataType, Show()] = DataType.NONE
    """Type of a low-rank correction of the quantised weights; NONE for no correction."""

    svd_rank: Annotated[Positive, Show()] = 16
    """Rank of the correction."""

    cache_dir: Annotated[str | None, Show()] = None
    """Folder of prepared weights; empty for `quantization` below the cache folder."""


_EMBEDDINGS = uuid.uuid5(uuid.NAMESPACE_OID, "embedding")


def _embedding_id(data: dict[str, object]) -> str:
    """The same words give the same id, so that a config without ids resumes its backups."""
    return str(uuid.uuid5(_EMBEDDINGS, f"{data.get('placeholder')}\n{data.get('model_name')}"))


class TrainEmbeddingConfig(Section):
    """One embedding: the words that stand for it and how it trains."""

    model_name: Annotated[str, Show()] = ""
    """Embedding file to go on from; empty begins anew."""

    placeholder: Annotated[str, Show(level="basic")] = "<embedding>"
    """Word that stands for the embedding in captions and prompts."""

    uuid: Annotated[str, Show()] = Field(default_factory=_embedding_id)
    """Name of the embedding's file in backups."""

    train: Annotated[bool, Show(level="basic")] = True
    """Whether the embedding trains."""

    stop_training_after: Annotated[Count | None, Show()] = None
    """How long the embedding trains before it is frozen, in the unit below."""

    stop_training_after_unit: Annotated[TimeUnit, Show()] = TimeUnit.NEVER
    """What `stop_training_after` counts; NEVER trains to the end."""

    token_count: Annotated[Positive | None, Show(unit="tokens", level="basic")] = 1
    """Length of the embedding; empty for that of the initial text. A file has its own."""

    initial_embedding_text: Annotated[str, Show(level="basic")] = "*"
    """Words whose embedding it begins from."""

    is_output_embedding: Annotated[bool, Show()] = False
    """Train behind the text encoder rather than before it."""
