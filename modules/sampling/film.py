"""Films that samples of video models come to: their files. ffmpeg encodes, as imageio packs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image

from modules.atomic import atomic_file, atomic_folder
from modules.config import VideoFormat

QUALITY = 8
"""Of 10: hard to tell from the frames themselves."""
SUFFIXES = {VideoFormat.PNG_IMAGE_SEQUENCE: ".png", VideoFormat.JPG_IMAGE_SEQUENCE: ".jpg"}


def write_film(frames: Sequence[Image], path: Path, video_format: VideoFormat, fps: int) -> Path:
    """Write a film: an MP4 file, or a folder of numbered pictures.

    Args:
        frames: at least one, all of one size.
        path: of the file or folder, without its suffix.
        video_format: which of them.
        fps: frames a second.

    Raises:
        ImportError: for MP4 without imageio-ffmpeg.
        OSError: if it cannot be written.
    """
    if video_format is not VideoFormat.MP4:
        with atomic_folder(path) as temporary:
            for number, frame in enumerate(frames):
                frame.save(temporary / f"{number:05}{SUFFIXES[video_format]}")
        return path
    from imageio_ffmpeg import write_frames

    file = path.with_name(f"{path.name}.mp4")
    with atomic_file(file) as temporary:
        writer = write_frames(
            str(temporary),
            frames[0].size,
            fps=fps,
            quality=QUALITY,
            codec="libx264",
            macro_block_size=2,  # the least that its colours allow, so that nothing is scaled
            output_params=["-f", "mp4"],  # the temporary file's name does not say it
        )
        writer.send(None)
        try:
            for frame in frames:
                writer.send(np.ascontiguousarray(frame.convert("RGB")))
        finally:
            writer.close()
    return file
