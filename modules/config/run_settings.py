"""TrainConfig's settings about the run itself: folders, machine, samples, backups and output."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from modules.config.enums import (
    AudioFormat,
    ConfigPart,
    GradientReducePrecision,
    ImageFormat,
    TimeUnit,
    VideoFormat,
)
from modules.config.hardware import default_device
from modules.config.models import of_films
from modules.config.sample_config import SampleConfig
from modules.config.section import Count, Int, Positive, Section, Show

_VIDEO = of_films()
_MULTI = {"multi_gpu": (True,)}
_Port = Annotated[Int, Field(ge=1, le=65535)]


class GeneralSettings(Section):
    """Folders, the hub, TensorBoard, validation and several GPUs."""

    GROUP: ClassVar[str] = "General"

    debug_mode: Annotated[bool, Show()] = False
    """Write decoded batches to the debug folder."""

    debug_dir: Annotated[str, Show(when={"debug_mode": (True,)})] = "debug"
    """The debug folder."""

    workspace_dir: Annotated[str, Show(level="basic")] = "workspace/run"
    """Folder of the run: backups, saves, samples, logs."""

    cache_dir: Annotated[str, Show(level="basic")] = "workspace-cache/run"
    """Folder of encoded images and captions; runs may share one."""

    huggingface_cache_dir: Annotated[str, Show()] = ""
    """Folder of models from the hub; empty for the usual one."""

    offline_mode: Annotated[bool, Show()] = False
    """Never ask the hub; use what is there."""

    tensorboard: Annotated[bool, Show()] = True
    """Write TensorBoard logs."""

    tensorboard_expose: Annotated[bool, Show(when={"tensorboard": (True,)})] = False
    """Let other machines reach TensorBoard."""

    tensorboard_always_on: Annotated[bool, Show(when={"tensorboard": (True,)})] = False
    """Keep TensorBoard open between runs."""

    tensorboard_port: Annotated[_Port, Show(when={"tensorboard": (True,)})] = 6006
    """Port of TensorBoard."""

    validation: Annotated[bool, Show()] = False
    """Measure the loss of the validation concepts during the run."""

    validate_after: Annotated[Count, Show(when={"validation": (True,)})] = 1
    """How often, in the unit below."""

    validate_after_unit: Annotated[TimeUnit, Show(when={"validation": (True,)})] = TimeUnit.EPOCH
    """What `validate_after` counts."""

    continue_last_backup: Annotated[bool, Show(level="basic")] = False
    """Go on from the newest backup in the workspace."""

    prevent_overwrites: Annotated[bool, Show()] = False
    """Refuse to start where the output file exists."""

    include_train_config: Annotated[ConfigPart, Show()] = ConfigPart.NONE
    """How much of this config goes into the output file."""

    train_device: Annotated[str, Show(default="cuda where there is a GPU, else mps or cpu")] = (
        Field(default_factory=default_device)
    )
    """Device that trains, such as cuda, cuda:1 or cpu."""

    temp_device: Annotated[str, Show()] = "cpu"
    """Device where parts wait that are not in use."""

    multi_gpu: Annotated[bool, Show()] = False
    """Train on several GPUs of this machine."""

    device_indexes: Annotated[str, Show(when=_MULTI)] = ""
    """Which GPUs, such as 0,1; empty for all."""

    gradient_reduce_precision: Annotated[GradientReducePrecision, Show(when=_MULTI)] = (
        GradientReducePrecision.FLOAT_32_STOCHASTIC
    )
    """Precision in which GPUs add their gradients."""

    fused_gradient_reduce: Annotated[bool, Show(when=_MULTI)] = True
    """Add gradients during the backward pass."""

    async_gradient_reduce: Annotated[bool, Show(when=_MULTI)] = True
    """Add gradients while the backward pass goes on."""

    async_gradient_reduce_buffer: Annotated[Count, Show(unit="MB", when=_MULTI)] = 100
    """Gradients on their way at a time."""

    only_cache: Annotated[bool, Show()] = False
    """Fill the cache and stop."""


class SamplingSettings(Section):
    """What is drawn during the run, and when."""

    GROUP: ClassVar[str] = "Sampling"

    sample_definition_file_name: Annotated[str, Show()] = "training_samples/samples.json"
    """File of sample definitions, used if none are in the config itself."""

    samples: Annotated[tuple[SampleConfig, ...] | None, Show(level="basic", applies="now")] = None
    """Pictures to draw; empty list for none, null for those of the file."""

    sample_after: Annotated[Count, Show(level="basic", applies="now")] = 10
    """How often samples are drawn, in the unit below."""

    sample_after_unit: Annotated[TimeUnit, Show(level="basic", applies="now")] = TimeUnit.MINUTE
    """What `sample_after` counts."""

    sample_skip_first: Annotated[Count, Show(applies="now")] = 0
    """How long no samples are drawn at the beginning, in the same unit."""

    sample_image_format: Annotated[ImageFormat, Show(applies="now")] = ImageFormat.JPG
    """File type of sample images."""

    sample_video_format: Annotated[VideoFormat, Show(families=_VIDEO)] = VideoFormat.MP4
    """File type of sample videos."""

    sample_audio_format: Annotated[AudioFormat, Show(families=_VIDEO)] = AudioFormat.MP3
    """File type of sample sounds."""

    samples_to_tensorboard: Annotated[bool, Show(when={"tensorboard": (True,)})] = True
    """Show samples in TensorBoard."""

    non_ema_sampling: Annotated[bool, Show()] = True
    """Where an average of the weights is kept, draw each sample without it too."""


class BackupSettings(Section):
    """When the run is backed up and its model saved."""

    GROUP: ClassVar[str] = "Backup"

    backup_after: Annotated[Count, Show(level="basic", applies="now")] = 30
    """How often the run is backed up, in the unit below."""

    backup_after_unit: Annotated[TimeUnit, Show(level="basic", applies="now")] = TimeUnit.MINUTE
    """What `backup_after` counts."""

    rolling_backup: Annotated[bool, Show(applies="now")] = False
    """Keep only the newest backups."""

    rolling_backup_count: Annotated[
        Positive, Show(applies="now", unit="backups", when={"rolling_backup": (True,)})
    ] = 3
    """How many are kept."""

    backup_before_save: Annotated[bool, Show()] = True
    """Back up at the end of the run too."""

    save_every: Annotated[Count, Show(applies="now")] = 0
    """How often the model is saved during the run, in the unit below."""

    save_every_unit: Annotated[TimeUnit, Show(applies="now")] = TimeUnit.NEVER
    """What `save_every` counts."""

    save_skip_first: Annotated[Count, Show(applies="now")] = 0
    """How long nothing is saved at the beginning, in the same unit."""

    save_filename_prefix: Annotated[str, Show()] = ""
    """Beginning of the names of saved files."""
