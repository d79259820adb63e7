"""What an architecture must offer for the shared trainer to train it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from modules.config import MODELS, ModelFormat, ModelType, SampleConfig, TrainConfig
from modules.config.models import Hint
from modules.config.problems import error
from modules.families import latents as space

if TYPE_CHECKING:
    from modules.adapters.key_map import KeyMap, Native

Condition = dict[str, Tensor]
"""Encoded captions by name, each [B, ...]: what the cache stores and `predict` reads.

Every caption of a run gives tensors of the same shape (text is padded to the length of the run and
comes with a mask), so that the rows of any two captions make a batch.
"""

Settings = Callable[[str], Mapping[str, Any]]
"""The config of a part of the pipeline, by its name there."""

Objective = Literal["epsilon", "v_prediction", "flow", "cosine", "cosine_dwelling"]
"""What the denoiser predicts, and so how latents are noised and what the loss compares.

The last two predict noise on a continuous cosine schedule; the latter dwells on pure noise.
"""
SCHEDULED: tuple[Objective, ...] = ("epsilon", "v_prediction")
"""Those with a schedule of whole timesteps, which any of diffusers' schedulers for them can walk;
the others sample by their own scheduler alone."""


@dataclass(frozen=True)
class TextOptions:
    """How captions are encoded, besides the encoders: a part of the cache's key."""

    layer_skip: Mapping[str, int] = field(default_factory=dict)
    """Last layers that are left out, by text encoder; none where it is not named."""
    length: Mapping[str, int | None] = field(default_factory=dict)
    """Tokens that a caption is padded or cut to, by text encoder; None for the model's most."""

    def skip(self, encoder: str) -> int:
        """Last layers of a text encoder to leave out."""
        return self.layer_skip.get(encoder, 0)

    def tokens(self, encoder: str, default: int) -> int:
        """Length of the encoder's captions, where the run names none the default."""
        return self.length.get(encoder) or default

    @property
    def identity(self) -> str:
        """Text that differs wherever these options make another encoding."""
        skips = [f"skip{count}" for _, count in sorted(self.layer_skip.items())]
        lengths = [f"length{count}" for _, count in sorted(self.length.items())]
        return "-".join([*skips, *lengths])


@dataclass(frozen=True)
class WordTable:
    """How a text encoder takes words that a user trained."""

    key: str
    """Name of its vectors in an embedding file."""
    layer: int | None = None
    """Which hidden state the model reads of it, -1 for the last; None where only the pooled one."""
    normed: bool = True
    """Whether it reads the last one behind the encoder's final norm."""


@dataclass
class Parts:
    """The loaded networks of one model: a diffusers pipeline and the name of its denoiser.

    Sampling uses the pipeline as it is, so that samples come from the very modules that train.
    """

    pipeline: Any
    denoiser_name: str
    text: TextOptions = field(default_factory=TextOptions)
    guidance: float = 1.0
    """What weights that were distilled to a guidance are told while training."""
    encoder_name: str = "vae"
    """Name of the network that encodes pictures."""
    beside: dict[str, nn.Module] = field(default_factory=dict)
    """Networks that the pipeline lacks, by their section of the config."""
    finisher: Any = None
    """A second pipeline, for models of several stages, which draws what the first one planned."""

    @property
    def denoiser(self) -> Any:
        """The network that trains: a UNet or a transformer."""
        return self.module(self.denoiser_name)

    @property
    def vae(self) -> Any:
        """The network between pixels and latents."""
        return self.module(self.encoder_name)

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.module(self.denoiser_name).parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the denoiser's own weights; that of an adapter on it may be another."""
        for name, weight in self.module(self.denoiser_name).named_parameters():
            packed = not weight.is_floating_point()  # as in GGUF files
            if not packed and not any(word in name for word in ("lora_", "hada_", "lokr_", "oft_")):
                return weight.dtype
        raise TypeError(f"{self.denoiser_name} has no weights")

    @property
    def scheduler(self) -> Any:
        """The model's own noise schedule, as its folder describes it."""
        return self.pipeline.scheduler

    def module(self, name: str) -> nn.Module:
        """A network by its pipeline name, such as "text_encoder".

        Raises:
            TypeError: if the pipeline has none there.
        """
        module = self.beside[name] if name in self.beside else getattr(self.pipeline, name)
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name} is {type(module).__name__}, not a network")
        return module

    def modules(self) -> dict[str, nn.Module]:
        """Every network by its pipeline name."""
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if isinstance(part, nn.Module)} | self.beside


class Family(Protocol):
    """One architecture, over the diffusers pipeline of that architecture.

    Whatever is peculiar to it (reversed time, packed tokens, negated output) stays inside. What is
    the same for most has a body here, which a family inherits by naming this class as its base.

    Shapes: B batch, C latent channels, H W latent height and width, h w pixels. Models of moving
    pictures have latents [B, C, F, H, W], F frames.
    """

    model_types: tuple[ModelType, ...]
    architecture: str
    """Name of the architecture in a file's metadata (modelspec)."""
    pipeline: str
    """diffusers class of its pipeline."""
    denoiser: str = "transformer"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    """Networks that encode captions, by pipeline name."""
    trainable_encoders: tuple[str, ...] = ()
    """Those of them that can train."""
    idle: Mapping[str, tuple[str, ...]] = {}
    """By text encoder: what the paths begin with of its layers that no caption passes through."""
    optional_encoders: tuple[str, ...] = ()
    """Those of them that can be left out."""
    words: Mapping[str, WordTable] = {}
    """Those of them that can learn new words, each with a tokenizer of the same number."""
    guides: tuple[str, ...] = ()
    """Further networks of the pipeline, which samples need."""
    conditioners: Mapping[str, str] = {}
    """Further networks that captions pass through. By part: the prefix of its keys in a file of
    ORIGINAL_TRANSFORMER, which holds them beside the denoiser."""
    skipping_encoders: tuple[str, ...] = ()
    """Those of them whose last layers can be left out."""
    lora_formats: Mapping[ModelFormat, KeyMap]
    """The key layout of each adapter format that the family can write."""
    single_file: Mapping[str, tuple[str, str]] = {}
    """How a single file of the original layout holds the model; empty where there is none.

    By part: the prefix of its keys, and its layout: denoiser, vae, clip, open_clip or t5.
    """
    comfy_layout: Native | None = None
    """The layout of COMFY_TRANSFORMER, for families that have it."""
    file_layout: Native | None = None
    """The layout of a file of the denoiser, where it is another than that of ORIGINAL_LORA."""
    read_also: tuple[Native, ...] = ()
    """Further layouts in which other tools write its adapters."""
    latent_space: str = ""
    """Tells latents from what the same encoder gives another architecture, where that is so."""

    @property
    def networks(self) -> tuple[str, ...]:
        """What its pipeline holds, by pipeline name."""
        return (self.denoiser, "vae", *self.guides, *self.text_encoders)

    file_notes: Mapping[str, str] = {}
    """What its files tell of themselves besides title and architecture, for the readers that ask.

    A1111's know SDXL and Stable Diffusion 2 by what kohya's tools write.
    """

    def metadata(self, what: Literal["", "lora", "embedding"] = "") -> dict[str, str]:
        """What a file says of itself: a whole model, an adapter or an embedding.

        Source: https://github.com/Stability-AI/ModelSpec.
        """
        title = MODELS[self.model_types[0]].title
        endings = {
            "": ("", ""),
            "lora": (" LoRA", "/lora"),
            "embedding": (" Embedding", "/embedding"),
        }
        of_title, of_architecture = endings[what]
        return {
            "modelspec.title": f"{title}{of_title}",
            "modelspec.architecture": f"{self.architecture}{of_architecture}",
            **self.file_notes,
        }

    def file_extras(self, settings: Settings) -> dict[str, Tensor]:  # noqa: ARG002
        """What a file of the model in its original layout holds besides weights, by key."""
        return {}

    @property
    def tokens(self) -> int:
        """Length of its captions, where it is the same for each run; else 0."""
        return MODELS[self.model_types[0]].tokens

    @property
    def pixel_multiple(self) -> int:
        """Edges of pictures are multiples of this many pixels."""
        return MODELS[self.model_types[0]].pixel_multiple

    def pipeline_class(self) -> Any:
        """The class of its pipeline.

        Raises:
            ConfigError: if the installed diffusers has none; says which version is installed.
        """
        import diffusers

        found = getattr(diffusers, self.pipeline, None)
        if found is None:
            raise error(
                "model_type",
                f"model_type is {self.model_types[0].value}, which needs {self.pipeline}; the "
                f"installed diffusers, {diffusers.__version__}, does not have it.",
                "Install a newer one: pip install -U diffusers.",
            )
        return found

    def load(self, config: TrainConfig) -> Parts:
        """Load the networks that `config` names.

        Raises:
            ConfigError: if the source is missing, incomplete or holds another architecture.
        """
        from modules.families.loading import load_parts

        return load_parts(self, config)

    @property
    def frames_per_second(self) -> int:
        """Of the films that most of its weights read and draw; 0 for a model of pictures."""
        return MODELS[self.model_types[0]].frames_per_second

    def film_rate(self, parts: Parts) -> int:  # noqa: ARG002
        """The same of these weights."""
        return self.frames_per_second

    def components(self, config: TrainConfig) -> dict[str, Any]:  # noqa: ARG002
        """Parts that take the place of what the source holds, for `load`."""
        return {}

    def objective(self, parts: Parts) -> Objective:  # noqa: ARG002
        """What these weights predict."""
        return "flow"

    def encode_images(self, parts: Parts, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in [-1, 1] -> latents [B, C, H, W] in the space of the loss.

        Of a film, [B, 3, f, h, w] -> [B, C, F, H, W], for models of films.
        """
        return space.encode_scaled(parts.vae, pixels)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> pixels [B, 3, h, w] in [-1, 1], the way back of encode_images."""
        return space.decode_scaled(parts.vae, latents)

    def finish(
        self,
        parts: Parts,
        latents: Tensor,
        definition: SampleConfig,  # noqa: ARG002
        generator: Any,  # noqa: ARG002
    ) -> Tensor:
        """Latents [B, C, H, W] that a sample came to -> pixels [B, 3, h, w] in [-1, 1].

        Models of several stages draw on here, with the prompt and the generator of the sample; to
        all others it is decoding.
        """
        return self.decode(parts, latents)

    @property
    def hint(self) -> Hint:
        """What the denoiser reads of the picture itself."""
        return MODELS[self.model_types[0]].hint

    def encode_hints(
        self,
        parts: Parts,  # noqa: ARG002
        pixels: Tensor,  # noqa: ARG002
        mask: Tensor,  # noqa: ARG002
        hide: bool = True,  # noqa: ARG002
    ) -> Condition:
        """What the denoiser reads of the picture itself, for `predict`'s condition: here nothing.

        Args:
            parts: the loaded networks.
            pixels: [B, 3, h, w] in [-1, 1].
            mask: [B, 1, h, w], 1 where the model shall paint and 0 elsewhere.
            hide: whether the model sees nothing of what it shall paint; False for a picture that
                was made to be shown to it.
        """
        return {}

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> Condition:
        """Encode captions as the pipeline does for a prompt, with `parts.text`."""

    def predict(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,
    ) -> Tensor:
        """What the objective compares, of the shape of the noisy latents [B, C, H, W].

        Args:
            parts: the loaded networks.
            noisy: latents with noise, [B, C, H, W].
            t: [B]; whole timesteps 0..999 for epsilon and v_prediction, sigma in (0, 1] for flow,
                time in (0, 1] for the cosine objectives.
            condition: what encode_text and encode_hints gave.
            size: [B, 6] pixels: original height and width, top and left of the crop, height and
                width of the result; None for pictures that were neither scaled nor cropped.
        """

    def predict_with_variance(
        self,
        parts: Parts,
        noisy: Tensor,
        t: Tensor,
        condition: Condition,
        size: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What `predict` gives, and the variance of that for models that learned one.

        It is of the latents' shape too: -1 for the least variance of a step, 1 for the greatest.
        """
        return self.predict(parts, noisy, t, condition, size), None

    def sample_arguments(self, parts: Parts, definition: SampleConfig) -> dict[str, Any]:  # noqa: ARG002
        """The pipeline's arguments that carry prompts, guidance and size; here texts as they are.

        Others carry encoded prompts.
        """
        return {
            "prompt": definition.prompt,
            "negative_prompt": definition.negative_prompt,
            "height": definition.height,
            "width": definition.width,
            "guidance_scale": definition.cfg_scale,
            "max_sequence_length": self.tokens,
        }

    def spatial(self, latents: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG002
        """What the pipeline calls latents of a picture [h, w] -> latents [B, C, H, W].

        Those of a film have frames, [B, C, F, H, W], where there is more than one.
        """
        return latents.squeeze(2) if latents.ndim == 5 else latents

    def learns(self, part: str, path: str) -> bool:
        """Whether a layer, or a weight, of a network has a say in what it is trained for."""
        return not path.startswith(self.idle.get(part, ()))

    def adapter_name(self, part: str, path: str) -> str:
        """The module path under which other tools know a layer of a network.

        transformers 5.6 dropped `text_model.` from CLIP's module paths; every file format has it.
        """
        if part in self.text_encoders and path.startswith(("encoder.layers.", "embeddings.")):
            return f"text_model.{path}"
        return path

    def tiny(self) -> Parts:
        """The real classes at toy size with random weights and real block topology, for tests."""
