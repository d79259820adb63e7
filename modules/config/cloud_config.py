"""Sections about remote machines and secrets."""

from __future__ import annotations

from typing import Annotated, ClassVar

from modules.config.enums import CloudAction, CloudFileSync, CloudType
from modules.config.section import Count, Section, Show

_ON = {"enabled": (True,)}


class CloudConfig(Section):
    """OneTrainer's remote training. Kept for its files; this engine runs where it is started."""

    GROUP: ClassVar[str] = "Cloud"

    enabled: Annotated[bool, Show()] = False
    """Train on a remote machine."""

    type: Annotated[CloudType, Show(when=_ON)] = CloudType.RUNPOD
    """Kind of machine."""

    file_sync: Annotated[CloudFileSync, Show(when=_ON)] = CloudFileSync.NATIVE_SCP
    """How files travel."""

    create: Annotated[bool, Show(when=_ON)] = False
    """Rent a new machine if none is named."""

    name: Annotated[str, Show(when=_ON)] = "OneTrainer"
    """Name of the new machine."""

    tensorboard_tunnel: Annotated[bool, Show(when=_ON)] = True
    """Show the remote TensorBoard here."""

    sub_type: Annotated[str, Show(when=_ON)] = ""
    """Offer to rent from."""

    gpu_type: Annotated[str, Show(when=_ON)] = ""
    """GPU to rent."""

    volume_size: Annotated[Count, Show(unit="GB", when=_ON)] = 100
    """Disk to rent."""

    min_download: Annotated[Count, Show(unit="Mbit/s", when=_ON)] = 0
    """Slowest connection to rent."""

    remote_dir: Annotated[str, Show(when=_ON)] = "/workspace"
    """Folder of the remote machine."""

    huggingface_cache_dir: Annotated[str, Show(when=_ON)] = "/workspace/huggingface_cache"
    """Hub cache of the remote machine."""

    onetrainer_dir: Annotated[str, Show(when=_ON)] = "/workspace/OneTrainer"
    """Where OneTrainer is on the remote machine."""

    install_cmd: Annotated[str, Show(when=_ON)] = "git clone https://github.com/Nerogar/OneTrainer"
    """Command that installs it."""

    install_onetrainer: Annotated[bool, Show(when=_ON)] = True
    """Install it if it is missing."""

    update_onetrainer: Annotated[bool, Show(when=_ON)] = True
    """Update it first."""

    detach_trainer: Annotated[bool, Show(when=_ON)] = False
    """Let the run go on without a connection."""

    run_id: Annotated[str, Show(when=_ON)] = "job1"
    """Name under which to find a detached run."""

    download_samples: Annotated[bool, Show(when=_ON)] = True
    """Fetch samples."""

    download_output_model: Annotated[bool, Show(when=_ON)] = True
    """Fetch the final model."""

    download_saves: Annotated[bool, Show(when=_ON)] = True
    """Fetch saved models."""

    download_backups: Annotated[bool, Show(when=_ON)] = False
    """Fetch backups."""

    download_tensorboard: Annotated[bool, Show(when=_ON)] = False
    """Fetch TensorBoard logs."""

    delete_workspace: Annotated[bool, Show(when=_ON)] = False
    """Delete the remote workspace afterwards."""

    on_finish: Annotated[CloudAction, Show(when=_ON)] = CloudAction.NONE
    """What happens to the machine after a run."""

    on_error: Annotated[CloudAction, Show(when=_ON)] = CloudAction.NONE
    """What happens to the machine after a failed run."""

    on_detached_finish: Annotated[CloudAction, Show(when=_ON)] = CloudAction.NONE
    """The same for a run without a connection."""

    on_detached_error: Annotated[CloudAction, Show(when=_ON)] = CloudAction.NONE
    """The same for a failed run without a connection."""
