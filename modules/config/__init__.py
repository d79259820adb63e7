"""What a run is: every setting with its type, bounds, unit and help. Loads no torch.

config, warnings = TrainConfig.load("config.json")
problems = validate(config)
"""

from __future__ import annotations

from modules.config.case import DataFacts
from modules.config.checks import validate
from modules.config.cloud_config import CloudConfig
from modules.config.concept_config import ConceptConfig, ConceptImageConfig, ConceptTextConfig
from modules.config.describe import Setting, settings
from modules.config.enums import (
    AttentionMechanism,
    AudioFormat,
    BalancingStrategy,
    CloudAction,
    CloudFileSync,
    CloudType,
    ConceptType,
    ConfigPart,
    DataType,
    EMAMode,
    GradientReducePrecision,
    ImageFormat,
    LearningRateScaler,
    LearningRateScheduler,
    Leftovers,
    LossScaler,
    LossWeight,
    ModelFormat,
    ModelType,
    NoiseScheduler,
    Optimizer,
    PeftType,
    PromptSource,
    SpecialTagsMode,
    TagDropoutMode,
    TimestepDistribution,
    TimeUnit,
    TrainingMethod,
    VideoFormat,
)
from modules.config.files import load_concepts, load_samples
from modules.config.hardware import Hardware
from modules.config.models import MODELS, ModelFacts
from modules.config.optimizer_config import TrainOptimizerConfig
from modules.config.part_config import (
    QuantizationConfig,
    TrainEmbeddingConfig,
    TrainModelPartConfig,
)
from modules.config.problems import ConfigError, Problem
from modules.config.sample_config import SampleConfig
from modules.config.secrets import Secrets
from modules.config.section import Section, Show
from modules.config.train_config import OwnSettings, TrainConfig

__all__ = [
    "MODELS",
    "AttentionMechanism",
    "AudioFormat",
    "BalancingStrategy",
    "CloudAction",
    "CloudConfig",
    "CloudFileSync",
    "CloudType",
    "ConceptConfig",
    "ConceptImageConfig",
    "ConceptTextConfig",
    "ConceptType",
    "ConfigError",
    "ConfigPart",
    "DataFacts",
    "DataType",
    "EMAMode",
    "GradientReducePrecision",
    "Hardware",
    "ImageFormat",
    "LearningRateScaler",
    "LearningRateScheduler",
    "Leftovers",
    "LossScaler",
    "LossWeight",
    "ModelFacts",
    "ModelFormat",
    "ModelType",
    "NoiseScheduler",
    "Optimizer",
    "OwnSettings",
    "PeftType",
    "Problem",
    "PromptSource",
    "QuantizationConfig",
    "SampleConfig",
    "Secrets",
    "Section",
    "Setting",
    "Show",
    "SpecialTagsMode",
    "TagDropoutMode",
    "TimeUnit",
    "TimestepDistribution",
    "TrainConfig",
    "TrainEmbeddingConfig",
    "TrainModelPartConfig",
    "TrainOptimizerConfig",
    "TrainingMethod",
    "VideoFormat",
    "load_concepts",
    "load_samples",
    "settings",
    "validate",
]
