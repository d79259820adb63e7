"""TrainConfig: everything that decides what a run does."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from modules.config.cloud_config import CloudConfig
from modules.config.enums import DataType, Leftovers, ModelType, TrainingMethod
from modules.config.model_settings import (
    AdapterSettings,
    EmbeddingSettings,
    ModelSettings,
    PartSettings,
)
from modules.config.models import MODELS
from modules.config.part_config import TrainEmbeddingConfig
from modules.config.problems import Problem
from modules.config.run_settings import BackupSettings, GeneralSettings, SamplingSettings
from modules.config.section import Count, Int, NonNegative, Section, Show
from modules.config.training_settings import (
    DataSettings,
    LossSettings,
    MaskSettings,
    OptimisationSettings,
)


class OwnSettings(Section):
    """Settings that OneTrainer has no name for. It ignores the section."""

    GROUP: ClassVar[str] = "General"

    seed: Annotated[Annotated[Int, Field(ge=0, lt=2**63)], Show(level="basic")] = 42
    """Start of everything random in the run; the same seed trains the same."""

    resume_from: Annotated[str, Show()] = ""
    """Backup that `continue_last_backup` goes on from: the name of its folder in the workspace, or
    a path; empty for the newest that can be read."""

    leftovers: Annotated[Leftovers, Show(group="Data")] = Leftovers.PAD
    """Images that fill no batch of their size: fill it with others of that size (PAD), let them
    lead the next epoch (ROTATE), or leave them out of this epoch as OneTrainer does (DROP)."""

    cache_limit: Annotated[NonNegative, Show(unit="GiB", group="Data")] = 100.0
    """Size above which encodings that no run used for longest leave the cache; 0 for no limit."""

    early_stop_patience: Annotated[Count, Show(unit="validations", applies="now")] = 0
    """End the run when so many validations in a row brought no better loss; 0 for never."""

    early_stop_min_delta: Annotated[NonNegative, Show(applies="now")] = 0.0
    """How much lower than the lowest so far a validation loss must be to count as better."""

    keep_best: Annotated[Count, Show(unit="models", applies="now")] = 0
    """Keep the models of so many lowest validation losses, in the workspace's folder `best`."""


# The bases are read from last to first: the order of the fields in files, forms and docs.
class TrainConfig(
    BackupSettings,
    SamplingSettings,
    EmbeddingSettings,
    AdapterSettings,
    MaskSettings,
    LossSettings,
    PartSettings,
    OptimisationSettings,
    DataSettings,
    ModelSettings,
    GeneralSettings,
):
    """What to train, on what, and how: OneTrainer's names and values, one immutable object."""

    VERSION: ClassVar[int] = 11

    cloud: Annotated[CloudConfig, Show(group="Cloud")] = CloudConfig()
    """OneTrainer's remote training."""

    ot: OwnSettings = OwnSettings()
    """Settings of ot_notebook."""

    @model_validator(mode="before")
    @classmethod
    def _fill_samples(cls, data: Any) -> Any:
        """Sample definitions that name no size or steps take the model type's."""
        if not isinstance(data, Mapping) or not isinstance(data.get("samples"), (list, tuple)):
            return data
        try:
            kind = ModelType(data.get("model_type", ModelType.STABLE_DIFFUSION_15))
        except ValueError:
            return data  # reported by the field itself
        usual = MODELS[kind].sampling
        filled = [
            {**usual, **sample} if isinstance(sample, Mapping) else sample
            for sample in data["samples"]
        ]
        return {**data, "samples": filled}

    @classmethod
    def load(
        cls,
        source: str | PathLike[str] | Mapping[str, Any],
        preset: str | PathLike[str] | Mapping[str, Any] | None = None,
    ) -> tuple[Self, list[Problem]]:
        """A config from a file or a dict, of any version of OneTrainer or ours.

        Full configs, packed exports, presets (with or without `#` in their name) and partial dicts
        all load; what they leave out has its default. Concepts and samples that are not inside are
        read from the files that the config names.

        Args:
            source: file or dict.
            preset: what gives the settings that `source` leaves out, instead of the defaults.

        Returns:
            The config, and a warning for each thing in it that was passed over.

        Raises:
            ConfigError: if it cannot be read, or has a value that its setting cannot take.
        """
        from modules.config.files import load

        return load(cls, source, preset)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the config as JSON that OneTrainer reads too; all of it, or nothing.

        Raises:
            OSError: if the file cannot be written.
        """
        from modules.config.files import write_json

        write_json(Path(path), self.to_dict())

    def update(self, **changes: Any) -> Self:
        """A copy with some settings changed; names may be dotted (`**{"unet.train": False}`).

        A dict given for a section changes what it names and keeps the rest of it. What one setting
        decides about others follows: another optimizer brings its usual parameters, another
        `layer_filter_preset` its filter, and another `layer_filter` makes the preset "custom".

        Raises:
            ConfigError: for an unknown name, or a value that its setting cannot take.
        """
        from modules.config.resolve import follow

        changed = super().update(**changes)
        return follow(self, changed, changes)

    @property
    def computed_dtype(self) -> DataType:
        """What a step computes in: `train_dtype`, or its fallback for a model that overflows."""
        facts = MODELS[self.model_type]
        overflows = self.train_dtype is DataType.FLOAT_16 and facts.denoiser in facts.overflows
        return self.fallback_train_dtype if overflows else self.train_dtype

    @property
    def embeddings_in_use(self) -> dict[str, TrainEmbeddingConfig]:
        """The embeddings that texts of the run may hold, by the path of their settings."""
        found: dict[str, TrainEmbeddingConfig] = {}
        methods = MODELS[self.model_type].methods
        if (
            self.training_method is TrainingMethod.FINE_TUNE_VAE
            or TrainingMethod.EMBEDDING not in methods
        ):
            return found
        if self.training_method is TrainingMethod.EMBEDDING:
            found["embedding"] = self.embedding
        for number, each in enumerate(self.additional_embeddings):
            found[f"additional_embeddings.{number}"] = each
        return found

    @property
    def denoiser(self) -> str:
        """Name of the part that is trained: unet, prior or transformer."""
        return MODELS[self.model_type].denoiser
