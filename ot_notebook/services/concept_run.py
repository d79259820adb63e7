"""What of a run decides what is told of its training set: sizes, batches, what its cache holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from modules.config import MODELS, ConfigError, TrainConfig, TrainingMethod
from modules.config.enums import Leftovers
from modules.config.models import Hint
from modules.config.paths import resolve
from modules.data.encoder_notes import Settings
from modules.data.plan import Framing
from ot_notebook.services.concept_items import Resolution


@dataclass(frozen=True)
class RunFacts:
    """A run as far as it matters to its images.

    Attributes:
        resolution: decides at which size an image trains.
        batch_size: images of a batch.
        leftovers: what becomes of images that fill no batch of their size.
        seed: decides the order.
        cache_dir: folder of its cache; what is known there of images is not read again.
        cached: whether images are encoded into it.
        encoders: the settings that decide how.
        masked: whether the loss reads masks.
        conditioned: whether an inpainting model is shown the conditioning image.
        hint: what the denoiser reads of the picture itself.
        model: the base model, whose tokenizer counts.
        tokens: what its architecture reads of a caption; 0 for as many as that tokenizer says.
    """

    resolution: Resolution = field(default_factory=Resolution)
    batch_size: int = 1
    leftovers: Leftovers = Leftovers.PAD
    seed: int = 0
    cache_dir: Path | None = None
    cached: bool = True
    encoders: Settings | None = None
    masked: bool = False
    conditioned: bool = False
    hint: Hint = "none"
    model: str = ""
    tokens: int = 0

    @classmethod
    def of(cls, config: TrainConfig) -> RunFacts:
        """Those of a config."""
        facts = MODELS[config.model_type]
        decodes = config.training_method is TrainingMethod.FINE_TUNE_VAE
        return cls(
            Resolution.of(config),
            config.batch_size,
            config.ot.leftovers,
            config.ot.seed,
            _folder(config.cache_dir),
            config.latent_caching,
            Settings.of(config),
            config.masked_training,
            config.custom_conditioning_image,
            "none" if decodes else facts.hint,  # the denoiser takes no part
            config.base_model_name,
            facts.tokens,
        )

    @property
    def listed(self) -> tuple[Path | None, bool]:
        """Where headers of files are known, and whether films train: what lists images."""
        return self.cache_dir, self.resolution.films is not None

    @property
    def framing(self) -> Framing:
        """The same, as the engine has it."""
        sizes = self.resolution
        return Framing.for_hint(
            self.hint,
            sizes.text,
            sizes.quantum,
            sizes.bucketing,
            masks=self.masked,
            conditioning=self.conditioned,
            films=sizes.films,
        )


def _folder(text: str) -> Path | None:
    try:
        return Path(resolve(text)) if text else None
    except ConfigError:
        return None  # the settings' own checks name the package that is missing
