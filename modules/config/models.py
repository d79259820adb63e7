"""What the config must know of each model type: its parts, methods, formats and filter presets.

Only facts about files and settings stand here; how a model works stands in its family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from modules.config.enums import ModelFormat as F
from modules.config.enums import ModelType as M
from modules.config.enums import NoiseScheduler, TrainingMethod
from modules.config.problems import error
from modules.config.section import clip

Hint = Literal["none", "inpainting", "depth"]
"""What a denoiser reads of the picture itself: nothing, a mask and what it leaves, or its depth."""


@dataclass(frozen=True)
class FilterPreset:
    """What a `layer_filter_preset` stands for."""

    layer_filter: str
    regex: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """One model type, as far as its settings are concerned."""

    title: str
    """Name for people."""
    parts: tuple[str, ...]
    """Sections of the config that hold its networks, the denoiser first."""
    objective: Literal["diffusion", "flow", "cascade"]
    """Noise or velocity on a discrete schedule, rectified flow, or a continuous cosine schedule."""
    pixel_multiple: int
    """Edge lengths of images are multiples of this many pixels."""
    formats: tuple[F, ...]
    """Files it can be written as, over all methods."""
    filters: Mapping[str, FilterPreset]
    """Layer filter presets; "full" is among them."""
    methods: tuple[TrainingMethod, ...]
    sampling: Mapping[str, Any]
    """What a sample definition means where it names no size, steps, guidance or scheduler."""
    caption_dropout: bool = True
    """Whether captions can be dropped during training, and text layers skipped."""
    text_training: bool = True
    """Whether its text encoders can be trained."""
    conditioners: tuple[str, ...] = ()
    """Networks that captions pass through after the text encoders. They have no section: they are
    the base model's, or come in a file of the denoiser."""
    tokens: int = 0
    """Length of its captions, with what begins and ends each; 0 where its tokenizer names the most,
    or the run's settings do."""
    hint: Hint = "none"
    """What it reads of the picture itself."""
    overflows: tuple[str, ...] = ()
    """Sections of networks whose numbers grow too large for float16."""
    frames_per_second: int = 0
    """Of the films that it reads and draws; 0 for a model of pictures."""
    frame_multiple: int = 1
    """Frames of a film that one frame of its latents stands for, but for the first."""
    joined: tuple[str, ...] = ()
    """Layers of its denoiser, `{i}` for any number, that the original code holds as one with
    others: so do adapter files in its layout."""
    turned: tuple[str, ...] = ()
    """Layers whose halves it holds the other way round."""
    denoiser_only: tuple[F, ...] = (F.ORIGINAL_LORA,)
    """Adapter files without a place for its text encoders."""

    def film_lengths(self, text: str) -> tuple[int, ...]:
        """What the setting `frames` names, ascending: `25`, or several as `9,25`.

        Raises:
            ConfigError: if an entry is no length that a film can have.
        """
        found = set()
        for entry in text.split(","):
            word = entry.strip()
            if not (word.isascii() and word.isdigit() and 0 < int(word[:7]) < 10**6):
                message = f"frames is {clip(text)!r}, of which {clip(word)!r} is no number of them."
                raise error("frames", message, "Write 25, or 9,25 for several.")
            frames, multiple = int(word), self.frame_multiple
            if odd := (frames - 1) % multiple:
                message = (
                    f"frames is {clip(text)}, but {frames} is not 1 above a multiple of {multiple}."
                )
                raise error("frames", message, f"Use {frames - odd} or {frames - odd + multiple}.")
            found.add(frames)
        return tuple(sorted(found))

    @property
    def denoiser(self) -> str:
        """The section of the network that is trained."""
        return self.parts[0]

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Sections of the text encoders."""
        return tuple(part for part in self.parts if part.startswith("text_encoder"))


FULL, LORA = TrainingMethod.FINE_TUNE, TrainingMethod.LORA
EMBEDDING, VAE = TrainingMethod.EMBEDDING, TrainingMethod.FINE_TUNE_VAE

_LORAS = (F.DIFFUSERS_LORA, F.KOHYA_LORA, F.ORIGINAL_LORA, F.COMFY_LORA)
_LEGACY = (F.LEGACY_LORA, F.LEGACY_SAFETENSORS)
_SINGLE = (*_LORAS, *_LEGACY, F.DIFFUSERS, F.ORIGINAL_SINGLE_FILE, F.SAFETENSORS)
_TRANSFORMER = (*_LORAS, F.DIFFUSERS, F.ORIGINAL_TRANSFORMER)


def _filters(**presets: str | FilterPreset) -> Mapping[str, FilterPreset]:
    """Presets by name; `_` in a keyword is `-` in the name."""
    made = {"full": FilterPreset("")}
    for name, preset in presets.items():
        made[name.replace("_", "-")] = FilterPreset(preset) if isinstance(preset, str) else preset
    return MappingProxyType(made)


def _sampling(
    width: int,
    height: int,
    steps: int,
    cfg: float,
    scheduler: NoiseScheduler = NoiseScheduler.DDIM,
    negative: str = "",
) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "width": width,
            "height": height,
            "diffusion_steps": steps,
            "cfg_scale": cfg,
            "noise_scheduler": scheduler,
            "negative_prompt": negative,
        }
    )


_UNET_FILTERS = _filters(attn_mlp="attentions", attn_only="attn")
_FLUX_FILTERS = _filters(
    attn_mlp="attn,ff.net,proj_mlp", attn_only="attn", blocks="transformer_block"
)
_CASCADE_FILTERS = _filters(
    attn_only="attention", down_blocks="down_blocks", up_blocks="up_blocks", mapper_only="mapper"
)
_Z_ATTENTION = r"^(?=.*attention)(?!.*refiner).*"
_Z_FILTERS = _filters(
    attn_mlp=FilterPreset(rf"{_Z_ATTENTION},^(?=.*feed_forward)(?!.*refiner).*", regex=True),
    attn_only=FilterPreset(_Z_ATTENTION, regex=True),
    blocks="layers",
)


def _attention(*paths: str) -> tuple[str, ...]:
    """Queries, keys and values of attention layers."""
    return tuple(f"{path}.to_{leaf}" for path in paths for leaf in "qkv")


_OUTPUT = ("norm_out.linear",)
_DOUBLE_STREAM = (
    *_attention("transformer_blocks.{i}.attn"),
    *(f"transformer_blocks.{{i}}.attn.add_{leaf}_proj" for leaf in "qkv"),
)
_SINGLE_STREAM = (
    *_attention("single_transformer_blocks.{i}.attn"),
    "single_transformer_blocks.{i}.proj_mlp",
)


def _sd(title: str, size: int, scheduler: NoiseScheduler, hint: Hint = "none") -> ModelFacts:
    return ModelFacts(
        title,
        ("unet", "text_encoder", "vae"),
        "diffusion",
        8,
        _SINGLE,
        _UNET_FILTERS,
        (FULL, LORA, EMBEDDING, VAE),
        _sampling(size, size, 30, 7.5, scheduler),
        hint=hint,
    )


def _sdxl(title: str, hint: Hint = "none") -> ModelFacts:
    return ModelFacts(
        title,
        ("unet", "text_encoder", "text_encoder_2", "vae"),
        "diffusion",
        64,
        _SINGLE,
        _UNET_FILTERS,
        (FULL, LORA, EMBEDDING),
        _sampling(1024, 1024, 30, 7.5, NoiseScheduler.EULER_A),
        hint=hint,
        overflows=("vae",),
    )


def _transformer(
    title: str,
    filters: Mapping[str, FilterPreset],
    sampling: Mapping[str, Any],
    *,
    encoders: int = 1,
    extra: tuple[str, ...] = (),
    objective: Literal["diffusion", "flow"] = "flow",
    pixel_multiple: int = 64,
    formats: tuple[F, ...] = _TRANSFORMER,
    embedding: bool = False,
    caption_dropout: bool = True,
    text_training: bool | None = None,
    tokens: int = 0,
    joined: tuple[str, ...] = (),
    turned: tuple[str, ...] = (),
) -> ModelFacts:
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
    methods = (FULL, LORA, EMBEDDING) if embedding else (FULL, LORA)
    return ModelFacts(
        title,
        ("transformer", *names[:encoders], *extra, "vae"),
        objective,
        pixel_multiple,
        (*formats, F.SAFETENSORS) if embedding else formats,
        filters,
        methods,
        sampling,
        caption_dropout,
        caption_dropout if text_training is None else text_training,
        tokens=tokens,
        joined=joined,
        turned=turned,
    )


_SD3 = _transformer(
    "Stable Diffusion 3",
    _filters(attn_only="attn", blocks="transformer_block"),
    _sampling(1024, 1024, 28, 7.0),
    encoders=3,
    formats=(*_LORAS, *_LEGACY, F.DIFFUSERS, F.ORIGINAL_SINGLE_FILE),
    embedding=True,
    joined=(*_DOUBLE_STREAM, *_attention("transformer_blocks.{i}.attn2")),
    turned=_OUTPUT,
)
_FLUX = _transformer(
    "Flux.1",
    _FLUX_FILTERS,
    _sampling(1024, 1024, 30, 3.5),
    encoders=2,
    formats=(*_TRANSFORMER, *_LEGACY),
    embedding=True,
    joined=(*_DOUBLE_STREAM, *_SINGLE_STREAM),
    turned=_OUTPUT,
)
_PIXART = _transformer(
    "PixArt",
    _filters(attn_mlp="attn1,attn2,ff.net", attn_only="attn1,attn2", blocks="transformer_block"),
    _sampling(1024, 1024, 25, 4.5),
    objective="diffusion",
    pixel_multiple=16,
    formats=(*_TRANSFORMER, *_LEGACY),
    embedding=True,
    joined=(
        *_attention("transformer_blocks.{i}.attn1"),
        *_attention("transformer_blocks.{i}.attn2")[1:],
    ),
)
_CHROMA_NEGATIVE = (
    "low quality, ugly, unfinished, out of focus, deformed, disfigure, blurry, smudged, "
    "restricted palette, flat colors"
)
_WUERSTCHEN = ModelFacts(
    "Wuerstchen 2",
    ("prior", "text_encoder", "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan"),
    "cascade",
    128,
    (*_LORAS, F.DIFFUSERS, F.SAFETENSORS),
    _CASCADE_FILTERS,
    (FULL, LORA, EMBEDDING),
    _sampling(1024, 1024, 25, 4.0),
    denoiser_only=(F.ORIGINAL_LORA, F.COMFY_LORA),
)

MODELS: Mapping[M, ModelFacts] = MappingProxyType(
    {
        M.STABLE_DIFFUSION_15: _sd("Stable Diffusion 1.5", 512, NoiseScheduler.EULER_A),
        M.STABLE_DIFFUSION_15_INPAINTING: _sd(
            "Stable Diffusion 1.5 inpainting", 512, NoiseScheduler.EULER_A, "inpainting"
        ),
        M.STABLE_DIFFUSION_20: _sd("Stable Diffusion 2.0", 768, NoiseScheduler.DDIM),
        M.STABLE_DIFFUSION_20_BASE: _sd("Stable Diffusion 2.0 base", 768, NoiseScheduler.DDIM),
        M.STABLE_DIFFUSION_20_INPAINTING: _sd(
            "Stable Diffusion 2.0 inpainting", 768, NoiseScheduler.DDIM, "inpainting"
        ),
        M.STABLE_DIFFUSION_20_DEPTH: _sd(
            "Stable Diffusion 2.0 depth", 768, NoiseScheduler.DDIM, "depth"
        ),
        M.STABLE_DIFFUSION_21: _sd("Stable Diffusion 2.1", 768, NoiseScheduler.DDIM),
        M.STABLE_DIFFUSION_21_BASE: _sd("Stable Diffusion 2.1 base", 768, NoiseScheduler.DDIM),
        M.STABLE_DIFFUSION_3: _SD3,
        M.STABLE_DIFFUSION_35: _SD3,
        M.STABLE_DIFFUSION_XL_10_BASE: _sdxl("Stable Diffusion XL"),
        M.STABLE_DIFFUSION_XL_10_BASE_INPAINTING: _sdxl(
            "Stable Diffusion XL inpainting", "inpainting"
        ),
        M.WUERSTCHEN_2: _WUERSTCHEN,
        M.STABLE_CASCADE_1: replace(
            _WUERSTCHEN,
            title="Stable Cascade",
            parts=("prior", "text_encoder", "effnet_encoder", "decoder", "decoder_vqgan"),
            formats=(*_LORAS, *_LEGACY, F.DIFFUSERS, F.SAFETENSORS),
            overflows=("prior",),
        ),
        M.PIXART_ALPHA: replace(_PIXART, tokens=120),
        M.PIXART_SIGMA: replace(_PIXART, tokens=300),
        M.FLUX_DEV_1: _FLUX,
        M.FLUX_FILL_DEV_1: replace(_FLUX, title="Flux.1 Fill", hint="inpainting"),
        M.FLUX_2: _transformer(
            "Flux.2",
            _filters(blocks="transformer_block"),
            _sampling(1024, 1024, 30, 4.0),
            formats=(*_TRANSFORMER, *_LEGACY),
            caption_dropout=False,
            joined=_DOUBLE_STREAM,
            turned=_OUTPUT,
        ),
        M.SANA: replace(
            _transformer(
                "Sana",
                _filters(
                    attn_mlp="attn1,attn2,ff.", attn_only="attn1,attn2", blocks="transformer_block"
                ),
                _sampling(1024, 1024, 20, 4.5),
                pixel_multiple=32,
                formats=(*_LORAS, F.DIFFUSERS),
                embedding=True,
                tokens=300,
            ),
            denoiser_only=(F.ORIGINAL_LORA, F.COMFY_LORA),
        ),
        M.HUNYUAN_VIDEO: replace(
            _transformer(
                "HunyuanVideo",
                _FLUX_FILTERS,
                _sampling(848, 480, 30, 6.0),
                encoders=2,
                formats=(*_TRANSFORMER, *_LEGACY),
                embedding=True,
                tokens=256,
                joined=(
                    *_DOUBLE_STREAM,
                    *_attention("context_embedder.token_refiner.refiner_blocks.{i}.attn"),
                    *_SINGLE_STREAM,
                ),
                turned=_OUTPUT,
            ),
            frames_per_second=24,
            frame_multiple=4,
        ),
        M.HI_DREAM_FULL: _transformer(
            "HiDream",
            _filters(attn_mlp="attn1,ff_i", attn_only="attn1", blocks="stream_block"),
            _sampling(1024, 1024, 28, 5.0),
            encoders=4,
            formats=(*_TRANSFORMER, F.LEGACY_SAFETENSORS),
            embedding=True,
            tokens=128,
        ),
        M.CHROMA_1: _transformer(
            "Chroma",
            _FLUX_FILTERS,
            _sampling(1024, 1024, 30, 3.5, negative=_CHROMA_NEGATIVE),
            formats=(*_TRANSFORMER, *_LEGACY),
            embedding=True,
            joined=(*_DOUBLE_STREAM, *_SINGLE_STREAM),
        ),
        M.QWEN: _transformer(
            "Qwen-Image",
            _filters(attn_mlp="attn,img_mlp,txt_mlp", attn_only="attn", blocks="transformer_block"),
            _sampling(1024, 1024, 25, 3.5),
            formats=(*_TRANSFORMER, *_LEGACY),
            caption_dropout=False,
            text_training=True,
        ),
        M.ANIMA: replace(
            _transformer(
                "Anima",
                _filters(
                    attn_mlp="attn1,attn2,ff", attn_only="attn1,attn2", blocks="transformer_block"
                ),
                _sampling(
                    1024,
                    1024,
                    25,
                    4.0,
                    negative="worst quality, low quality, score_1, score_2, score_3, artist name",
                ),
                caption_dropout=False,
            ),
            conditioners=("text_conditioner",),
        ),
        M.KREA_2: _transformer(
            "Krea 2",
            _filters(attn_mlp="attn,ff", attn_only="attn", blocks="transformer_blocks"),
            _sampling(1024, 1024, 28, 3.5),
            caption_dropout=False,
        ),
        M.Z_IMAGE: _transformer(
            "Z-Image",
            _Z_FILTERS,
            _sampling(1024, 1024, 28, 4.0),
            formats=(*_TRANSFORMER, *_LEGACY, F.COMFY_TRANSFORMER),
            caption_dropout=False,
        ),
        M.ERNIE: _transformer(
            "Ernie-Image",
            _filters(attn_mlp="self_attention,mlp", attn_only="self_attention", blocks="layers"),
            _sampling(1024, 1024, 25, 4.0),
            formats=(*_TRANSFORMER, *_LEGACY),
            caption_dropout=False,
        ),
        M.IDEOGRAM_4: _transformer(
            "Ideogram 4",
            _filters(attn_mlp="attention,feed_forward", attn_only="attention", blocks="layers"),
            _sampling(1024, 1024, 25, 3.0),
            extra=("unconditional_transformer",),
            caption_dropout=False,
            joined=_attention("layers.{i}.attention"),
        ),
        M.LUMINA_2: _transformer(
            "Lumina 2",
            _filters(attn_mlp="attn,feed_forward", attn_only="attn", blocks="layers"),
            _sampling(1024, 1024, 30, 4.0),
            text_training=False,
            tokens=256,  # with the words that its pipeline puts before each
            joined=_attention(
                "layers.{i}.attn", "noise_refiner.{i}.attn", "context_refiner.{i}.attn"
            ),
        ),
        M.WAN_2: replace(
            _transformer(
                "Wan 2",
                _filters(attn_mlp="attn1,attn2,ffn", attn_only="attn1,attn2", blocks="blocks"),
                _sampling(832, 480, 30, 5.0),
                pixel_multiple=32,
                text_training=False,
                tokens=512,
            ),
            frames_per_second=16,
            frame_multiple=4,
        ),
        M.AURA_FLOW: _transformer(
            "AuraFlow",
            _filters(attn_mlp="attn,ff", attn_only="attn", blocks="transformer_block"),
            _sampling(1024, 1024, 30, 3.5),
            text_training=False,
            tokens=256,
            turned=_OUTPUT,
        ),
    }
)
"""The facts of every model type."""


def with_part(*names: str) -> frozenset[M]:
    """Model types that have any of the named parts."""
    return frozenset(kind for kind, facts in MODELS.items() if set(names) & set(facts.parts))


def with_hint(*hints: Hint) -> frozenset[M]:
    """Model types that read any of these of the picture itself."""
    return frozenset(kind for kind, facts in MODELS.items() if facts.hint in hints)


def of_films() -> frozenset[M]:
    """Model types that read and draw films."""
    return frozenset(kind for kind, facts in MODELS.items() if facts.frames_per_second)
