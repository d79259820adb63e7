"""What to do about an error, for the person whose run it ended."""

from __future__ import annotations

import errno

import torch

from modules.config import ConfigError


def advice_for(error: BaseException) -> str:
    """One or two sentences on what to change; never empty."""
    if isinstance(error, ConfigError):
        return "Change the settings named above and start again."
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return (
            "The GPU's memory is full. Lower batch_size and raise gradient_accumulation_steps, "
            "turn gradient_checkpointing on, or lower resolution."
        )
    if isinstance(error, MemoryError):
        return "The machine's memory is full. Close other programs, or lower batch_size."
    if is_disk_full(error):
        return (
            "The disk is full. Free some space, or point workspace_dir and cache_dir at another "
            "disk, and start again: backups and the cache of this run are kept."
        )
    if isinstance(error, PermissionError):
        return "Choose a folder that this user may write to."
    if isinstance(error, FloatingPointError):
        return "Nothing was saved over the last good files. Change the settings and start again."
    return (
        "This looks like a defect of the program rather than of your settings. The traceback is in "
        "the log; please report it with your config."
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room to write; torch and safetensors hide the system's own error."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return True
    return any(words in str(error) for words in NO_ROOM_WORDS)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM_WORDS = ("No space left", "os error 28", "os error 27", "PytorchStreamWriter failed")
