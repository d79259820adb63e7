"""TrainConfig's settings about the model: what it is, its networks, its adapter, its embeddings."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from modules.config.enums import (
    AttentionMechanism,
    DataType,
    ModelFormat,
    ModelType,
    PeftType,
    TimeUnit,
    TrainingMethod,
)
from modules.config.models import MODELS, with_part
from modules.config.part_config import (
    QuantizationConfig,
    TrainEmbeddingConfig,
    TrainModelPartConfig,
)
from modules.config.section import Count, Int, NonNegative, Positive, Section, Show

_LORA = frozenset({TrainingMethod.LORA})
_EMBEDDING = frozenset({TrainingMethod.EMBEDDING})
_READS = frozenset(TrainingMethod) - {TrainingMethod.FINE_TUNE_VAE}
"""Methods in which captions take part."""
_LAYERS = frozenset({TrainingMethod.LORA, TrainingMethod.FINE_TUNE})
_WITH_EMBEDDINGS = frozenset(
    kind for kind, facts in MODELS.items() if TrainingMethod.EMBEDDING in facts.methods
)
_UNETS = with_part("unet") | with_part("prior")
_FILTERED = frozenset(kind for kind, facts in MODELS.items() if len(facts.filters) > 1)
_SKIPPED = frozenset(kind for kind, facts in MODELS.items() if facts.caption_dropout)
_FLUX_1 = frozenset({ModelType.FLUX_DEV_1, ModelType.FLUX_FILL_DEV_1})
_LOW_RANK = {"peft_type": (PeftType.LORA, PeftType.LOHA, PeftType.LOKR)}
_DORA = {"peft_type": (PeftType.LORA,), "lora_decompose": (True,)}
_OFT = {"peft_type": (PeftType.OFT_2,)}
_LOKR = {"peft_type": (PeftType.LOKR,)}
_Factor = Annotated[Int, Field(ge=-1)]


class ModelSettings(Section):
    """The base model, what is done to it, and the file that comes out."""

    GROUP: ClassVar[str] = "Model"

    model_type: Annotated[ModelType, Show(level="basic")] = ModelType.STABLE_DIFFUSION_15
    """Architecture of the base model."""

    training_method: Annotated[TrainingMethod, Show(level="basic")] = TrainingMethod.FINE_TUNE
    """Train an adapter, an embedding, the whole model, or its VAE."""

    base_model_name: Annotated[str, Show(level="basic")] = (
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
    """The model to start from: a hub id, a diffusers folder or a single file. A hub id may end in
    @ and a branch, tag or commit."""

    output_model_destination: Annotated[str, Show(level="basic")] = "models/model.safetensors"
    """File or folder that the trained model is written to."""

    output_model_format: Annotated[ModelFormat, Show(level="basic")] = ModelFormat.SAFETENSORS
    """Layout of that file, by the programs that read it."""

    output_dtype: Annotated[DataType, Show(level="basic")] = DataType.FLOAT_32
    """How the numbers in that file are stored."""

    async_offloading: Annotated[bool, Show()] = True
    """Move offloaded layers while others compute."""

    force_circular_padding: Annotated[bool, Show(families=_UNETS)] = False
    """Let convolutions wrap around the edges, for pictures that tile."""

    compile: Annotated[bool, Show()] = False
    """Compile the denoiser's blocks: slow to start, then faster."""

    attention_mechanism: Annotated[AttentionMechanism, Show()] = AttentionMechanism.SDP
    """Attention kernel of the denoiser."""

    quantization: Annotated[QuantizationConfig, Show(group="Quantization")] = QuantizationConfig()
    """Which layers of the denoiser are quantised."""


def _trained_until_epoch_30() -> TrainModelPartConfig:
    return TrainModelPartConfig(stop_training_after=30, stop_training_after_unit=TimeUnit.EPOCH)


def _denoiser() -> TrainModelPartConfig:
    return TrainModelPartConfig(stop_training_after=0)


_ENCODER_ONLY = ("include", "dropout_probability", "train_embedding")
_TRANSFORMER_ONLY = ("attention_mask", "guidance_scale")
_FROZEN = tuple(
    name for name in TrainModelPartConfig.model_fields if name not in ("model_name", "weight_dtype")
)
_OF_VAE_TRAINING = ("learning_rate", "stop_training_after", "stop_training_after_unit")
_OMITTED = {
    "unet": _ENCODER_ONLY + _TRANSFORMER_ONLY,
    "prior": _ENCODER_ONLY + _TRANSFORMER_ONLY,
    "transformer": _ENCODER_ONLY,
    "unconditional_transformer": (*_ENCODER_ONLY[1:], *_TRANSFORMER_ONLY),
    "vae": tuple(name for name in _FROZEN if name not in _OF_VAE_TRAINING),
}
_ONLY = {"vae": dict.fromkeys(_OF_VAE_TRAINING, frozenset({TrainingMethod.FINE_TUNE_VAE}))}


def _part(group: str, name: str) -> Show:
    usual = _TRANSFORMER_ONLY if name.startswith("text_encoder") else _FROZEN
    omitted = _OMITTED.get(name, usual)
    return Show(
        group=group,
        families=with_part(name),
        omit=omitted,
        only=_ONLY.get(name, {}),
    )


class PartSettings(Section):
    """The networks of the model, each in a section of its own."""

    GROUP: ClassVar[str] = "Text encoders"

    unet: Annotated[TrainModelPartConfig, _part("UNet", "unet")] = _denoiser()
    """The denoiser of Stable Diffusion."""

    prior: Annotated[TrainModelPartConfig, _part("Prior", "prior")] = _denoiser()
    """The denoiser of Wuerstchen and Cascade."""

    transformer: Annotated[TrainModelPartConfig, _part("Transformer", "transformer")] = _denoiser()
    """The denoiser of newer models."""

    unconditional_transformer: Annotated[
        TrainModelPartConfig, _part("Unconditional transformer", "unconditional_transformer")
    ] = TrainModelPartConfig(train=False, gradient_checkpointing=False)
    """The second denoiser of Ideogram, which sees no prompt."""

    text_encoder: Annotated[TrainModelPartConfig, _part("Text encoder", "text_encoder")] = (
        _trained_until_epoch_30()
    )
    """The first text encoder."""

    text_encoder_layer_skip: Annotated[Count, Show(unit="layers", families=_SKIPPED)] = 0
    """Last layers of the text encoder that are left out (clip skip)."""

    text_encoder_sequence_length: Annotated[
        Positive | None, Show(unit="tokens", families=frozenset({ModelType.FLUX_2}))
    ] = 512
    """Longest caption for models whose encoder has no fixed length; empty for the longest."""

    text_encoder_2: Annotated[TrainModelPartConfig, _part("Text encoder 2", "text_encoder_2")] = (
        _trained_until_epoch_30()
    )
    """The second text encoder."""

    text_encoder_2_layer_skip: Annotated[
        Count, Show(unit="layers", families=with_part("text_encoder_2"))
    ] = 0
    """Last layers of the second text encoder that are left out."""

    text_encoder_2_sequence_length: Annotated[
        Positive | None, Show(unit="tokens", families=_FLUX_1)
    ] = 77
    """Longest caption for the second text encoder; empty for the longest."""

    text_encoder_3: Annotated[TrainModelPartConfig, _part("Text encoder 3", "text_encoder_3")] = (
        _trained_until_epoch_30()
    )
    """The third text encoder."""

    text_encoder_3_layer_skip: Annotated[
        Count, Show(unit="layers", families=with_part("text_encoder_3"))
    ] = 0
    """Last layers of the third text encoder that are left out."""

    text_encoder_4: Annotated[TrainModelPartConfig, _part("Text encoder 4", "text_encoder_4")] = (
        _trained_until_epoch_30()
    )
    """The fourth text encoder."""

    text_encoder_4_layer_skip: Annotated[
        Count, Show(unit="layers", families=with_part("text_encoder_4"))
    ] = 0
    """Last layers of the fourth text encoder that are left out."""

    vae: Annotated[TrainModelPartConfig, _part("VAE", "vae")] = TrainModelPartConfig()
    """The network between pixels and latents."""

    effnet_encoder: Annotated[TrainModelPartConfig, _part("EffNet encoder", "effnet_encoder")] = (
        TrainModelPartConfig()
    )
    """The image encoder of Wuerstchen and Cascade."""

    decoder: Annotated[TrainModelPartConfig, _part("Decoder", "decoder")] = TrainModelPartConfig()
    """The decoder of Wuerstchen and Cascade."""

    decoder_text_encoder: Annotated[
        TrainModelPartConfig, _part("Decoder text encoder", "decoder_text_encoder")
    ] = TrainModelPartConfig()
    """The decoder's own text encoder, in Wuerstchen."""

    decoder_vqgan: Annotated[TrainModelPartConfig, _part("Decoder VQGAN", "decoder_vqgan")] = (
        TrainModelPartConfig()
    )
    """The last stage of the decoder."""


class AdapterSettings(Section):
    """Which layers train, and the adapter on them."""

    GROUP: ClassVar[str] = "Adapter"

    layer_filter_preset: Annotated[
        str, Show(level="basic", methods=_LAYERS, families=_FILTERED, offers="filters")
    ] = "full"
    """Ready-made choice of layers of the model type; "custom" for the filter below."""

    layer_filter: Annotated[str, Show(methods=_LAYERS)] = ""
    """Comma-separated parts of layer paths that train; empty for all layers."""

    layer_filter_regex: Annotated[bool, Show(methods=_LAYERS)] = False
    """Read the items of the filter as regular expressions."""

    peft_type: Annotated[PeftType, Show(level="basic", methods=_LORA)] = PeftType.LORA
    """Kind of adapter."""

    lora_model_name: Annotated[str, Show(methods=_LORA)] = ""
    """Adapter file to go on from; empty begins anew."""

    lora_rank: Annotated[Positive, Show(level="basic", methods=_LORA, when=_LOW_RANK)] = 16
    """Width of the adapter: more can hold more, and is larger."""

    lora_alpha: Annotated[NonNegative, Show(level="basic", methods=_LORA, when=_LOW_RANK)] = 1.0
    """Strength of the adapter: its change is scaled by alpha / rank."""

    dropout_probability: Annotated[
        Annotated[NonNegative, Field(lt=1)], Show(methods=_LORA, applies="now")
    ] = 0.0
    """Share of the adapter's inputs that are left out in each step."""

    lora_decompose: Annotated[bool, Show(methods=_LORA, when={"peft_type": (PeftType.LORA,)})] = (
        False
    )
    """Train size and direction of the weights apart (DoRA)."""

    lora_decompose_norm_epsilon: Annotated[bool, Show(methods=_LORA, when=_DORA)] = True
    """Keep DoRA's norms from dividing by zero."""

    lora_decompose_output_axis: Annotated[bool, Show(methods=_LORA, when=_DORA)] = False
    """One size an output row, as other tools read DoRA, instead of one an input column."""

    lora_weight_dtype: Annotated[DataType, Show(methods=_LORA)] = DataType.FLOAT_32
    """How the adapter's numbers are stored during training."""

    bundle_additional_embeddings: Annotated[
        bool, Show(methods=_LORA, families=_WITH_EMBEDDINGS)
    ] = True
    """Write trained embeddings into the adapter's file."""

    oft_block_size: Annotated[Positive, Show(methods=_LORA, when=_OFT)] = 32
    """Size of OFT's rotation blocks."""

    oft_block_share: Annotated[bool, Show(methods=_LORA, when=_OFT)] = False
    """Use one rotation for all blocks of a layer."""

    oft_scaled: Annotated[bool, Show(methods=_LORA, when=_OFT)] = False
    """Train a scale of each output beside the rotation."""

    lokr_dim: Annotated[Positive, Show(methods=_LORA, when=_LOKR)] = 16
    """Rank of LoKr's second factor."""

    lokr_decompose_both: Annotated[bool, Show(methods=_LORA, when=_LOKR)] = False
    """Decompose both factors."""

    lokr_decompose_factor: Annotated[_Factor, Show(methods=_LORA, when=_LOKR)] = -1
    """Size of LoKr's first factor; -1 for the most even split."""

    lokr_use_tucker: Annotated[bool, Show(methods=_LORA, when=_LOKR)] = False
    """Decompose convolutions by Tucker's method."""

    lokr_weight_decompose: Annotated[bool, Show(methods=_LORA, when=_LOKR)] = False
    """Train size and direction of the weights apart."""

    lokr_dora_on_output: Annotated[
        bool, Show(methods=_LORA, when={**_LOKR, "lokr_weight_decompose": (True,)})
    ] = True
    """One size an output row."""

    lokr_full_matrix: Annotated[bool, Show(methods=_LORA, when=_LOKR)] = False
    """Keep the second factor whole."""

    lokr_vec_trick: Annotated[bool, Show(methods=_LORA, when=_LOKR)] = True
    """Apply the factors one after the other instead of building their product."""


class EmbeddingSettings(Section):
    """Words that the model learns."""

    GROUP: ClassVar[str] = "Embedding"

    embedding: Annotated[
        TrainEmbeddingConfig,
        Show(group="Embedding", methods=_EMBEDDING, families=_WITH_EMBEDDINGS),
    ] = Field(default_factory=TrainEmbeddingConfig)
    """The embedding that training method EMBEDDING trains."""

    embedding_learning_rate: Annotated[
        NonNegative | None, Show(methods=_READS, families=_WITH_EMBEDDINGS, applies="now")
    ] = None
    """Learning rate of embeddings; empty for the global one."""

    preserve_embedding_norm: Annotated[bool, Show(methods=_READS, families=_WITH_EMBEDDINGS)] = (
        False
    )
    """Hold embeddings to the usual length of the encoder's own."""

    embedding_weight_dtype: Annotated[DataType, Show(methods=_READS, families=_WITH_EMBEDDINGS)] = (
        DataType.FLOAT_32
    )
    """How embeddings are stored during training."""

    additional_embeddings: Annotated[
        tuple[TrainEmbeddingConfig, ...], Show(methods=_READS, families=_WITH_EMBEDDINGS)
    ] = ()
    """Embeddings that train together with the model or its adapter."""
