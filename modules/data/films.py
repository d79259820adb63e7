"""Films: what their files hold, which part of one trains, and its frames.

ffmpeg reads them, as imageio-ffmpeg packs it. It is a program of its own and reads files alone, so
a film inside an archive is copied out for it.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from modules.config import MODELS, TrainConfig
from modules.data.memo import Header
from modules.data.sources import Entry, Source, changed_at, digest_of

SQUARE = "scale=trunc(iw*sar+0.5):ih,setsar=1"
"""ffmpeg's filter that makes the pixels of a film square, as they are on a screen."""
UNKNOWN = -(1 << 63)
"""What ffmpeg lists for a time that the file leaves out."""
STILL = 60
"""Rate at which the first frame of a film is really its first."""
MISSING = 1
"""Frames that the end of a film may lack, as rates do not divide: its last one then stays."""


@dataclass(frozen=True, slots=True)
class Film:
    """How long a film is."""

    frames: int
    """Those of its file."""
    seconds: float

    def length(self, rate: int) -> int:
        """Frames that it has at so many a second."""
        return max(1, round(self.seconds * rate))


class Clip(NamedTuple):
    """A part of a film."""

    start: int
    """Number of its first frame, of those that the film has at `rate`."""
    frames: int
    rate: int
    """Frames a second."""


@dataclass(frozen=True)
class Lengths:
    """How long the films of a run are."""

    frames: tuple[int, ...]
    """What the settings name, ascending; each is 1 above a multiple of `multiple`."""
    multiple: int
    """Frames that one frame of the latents stands for, but for the first."""
    rate: int
    """Frames a second that the model draws, and so reads."""

    def of(self, film: Film) -> int:
        """The most frames that a film can fill: one of `frames`, or fewer if it is too short."""
        there = film.length(self.rate)
        fitting = [frames for frames in self.frames if frames <= there]
        return max(fitting) if fitting else (there - 1) // self.multiple * self.multiple + 1

    def too_short(self, film: Film) -> bool:
        """Whether a film fills none of them."""
        return film.length(self.rate) < self.frames[0]


def lengths_of(config: TrainConfig, rate: int | None = None) -> Lengths | None:
    """How long the films of a run are; None for a model of pictures.

    Args:
        config: names model and lengths.
        rate: frames a second of its weights; None for those of most weights of its kind.

    Raises:
        ConfigError: if it names a length that no film can have.
    """
    facts = MODELS[config.model_type]
    if rate is None:
        rate = facts.frames_per_second
    if not rate:
        return None
    return Lengths(facts.film_lengths(config.frames), facts.frame_multiple, rate)


def read_header(source: Source, entry: Entry) -> Header:
    """Size, frames and duration of a film, for which only its first frame is decoded.

    Raises:
        ImportError: without imageio-ffmpeg.
        OSError: if it cannot be read.
        ValueError: if it is no film, or ends before its first frame; the text says why.
    """
    with on_disk(source, entry.name) as path, tempfile.TemporaryDirectory() as folder:
        packets = Path(folder) / "packets"
        one, copied = ("-map", "0:V:0", "-frames:v", "1", "-vf", SQUARE), ("-c", "copy")
        outputs = ["-map", "0:V:0", *copied, "-f", "framecrc", str(packets)]
        outputs += [*one, "-f", "image2pipe", "-c:v", "ppm", "-"]
        with tempfile.TemporaryFile() as errors:
            command = [*_reading(path), *outputs]
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                check=False,
            )
            damage = _said(errors)
        if not done.stdout:
            raise ValueError(damage or "it has no frames")
        with Image.open(io.BytesIO(done.stdout)) as first:
            width, height = first.size
        frames, seconds = _timing(packets.read_text(encoding="ascii"))
    return Header(width, height, False, False, "RGB", frames, seconds, damage)


def read_clip(
    path: Path, clip: Clip, size: tuple[int, int], note: Callable[[str], None] = lambda _text: None
) -> Iterator[Image.Image]:
    """The frames of a clip, upright, one after the other; never more than one is held.

    Args:
        path: the film.
        clip: which frames.
        size: width and height of the film.
        note: receives what ffmpeg says about damage that it gets by.

    Raises:
        ImportError: without imageio-ffmpeg.
        ValueError: if there are fewer frames.
    """
    last, found, bytes_each = Image.new("RGB", size), 0, size[0] * size[1] * 3
    with tempfile.TemporaryFile() as errors:
        with _decoding(path, clip, size, errors) as decoded:
            while len(pixels := decoded.read(bytes_each)) == bytes_each:
                last, found = Image.frombytes("RGB", size, pixels), found + 1
                yield last
        said = _said(errors)
    if not found or clip.frames - found > MISSING:
        raise ValueError(said or f"it ends after {found} of {clip.frames} frames")
    if found < clip.frames:
        yield last
    if said:
        note(said)


def first_frame(source: Source, name: str, size: tuple[int, int]) -> Image.Image:
    """The picture that stands for a film.

    Raises:
        ImportError: without imageio-ffmpeg.
        OSError: if it cannot be read.
        ValueError: if it cannot be decoded.
    """
    with on_disk(source, name) as path:
        return next(read_clip(path, Clip(0, 1, STILL), size))


@contextmanager
def on_disk(source: Source, name: str) -> Iterator[Path]:
    """A file of a source as one of its own, copied if it is part of an archive.

    Raises:
        OSError: if it is gone or cannot be read.
    """
    path = Path(source.path(name))
    if path.is_file():
        yield path.absolute()
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"film{Path(name).suffix}"
        with source.open(name) as file, copy.open("wb") as target:
            shutil.copyfileobj(file, target)
        yield copy


def same(path: Path, source: Source, entry: Entry, digest: bytes) -> bool:
    """Whether a film is still the one of that digest; it is read only if its time has changed."""
    status = path.stat()
    if (status.st_size, changed_at(status)) == (entry.size, entry.stamp):
        return True
    return digest_of(source, entry.name) == digest


def _reading(path: Path, start: float = 0.0) -> list[str]:
    """A command's beginning: quiet, from a second on; no other file or address is read."""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-protocol_whitelist", "file"]
    if start:
        command += ["-ss", f"{start:.6f}"]
    return [*command, "-i", f"file:{path}"]


@contextmanager
def _decoding(
    path: Path, clip: Clip, size: tuple[int, int], errors: IO[bytes]
) -> Iterator[IO[bytes]]:
    """What ffmpeg gives of a clip: 8-bit RGB, frame by frame.

    It begins half a frame early, so that a time that was rounded down still counts.
    """
    begins, early = 0.0, f"fps={clip.rate}"
    if clip.start:
        begins = (clip.start - 0.5) / clip.rate
        early = f"setpts=PTS-0.5/{clip.rate}/TB,{early}"
    filters = f"{early},setpts=N,scale={size[0]}:{size[1]},setsar=1"
    output = ["-map", "0:V:0", "-vf", filters, "-frames:v", str(clip.frames)]
    with subprocess.Popen(
        [*_reading(path, begins), *output, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    ) as process:
        if process.stdout is None:
            raise AssertionError("a pipe was asked for")
        try:
            yield process.stdout
        finally:
            process.stdout.close()  # ffmpeg ends where nobody listens
            process.wait()


def _timing(packets: str) -> tuple[int, float]:
    """Frames and seconds of a stream, from ffmpeg's list of its packets.

    Each line has stream, decoding time, time, duration, size and checksum, in units that a line
    `#tb 0: 1/12288` names. Some formats leave times out.

    Raises:
        ValueError: if there are none.
    """
    unit = re.search(r"^#tb 0: (\d+)/(\d+)", packets, re.MULTILINE)
    lines = [line.split(",") for line in packets.splitlines() if line and line[0] != "#"]
    rows = [[int(number) for number in line[1:4]] for line in lines]
    if unit is None or not rows:
        raise ValueError("it has no frames")
    times = [time if time > UNKNOWN else decoding for decoding, time, _ in rows]
    begins, ends = min(times), max(times)
    last = max(duration for time, (_, _, duration) in zip(times, rows, strict=True) if time == ends)
    usual = (ends - begins) // max(1, len(rows) - 1)
    length = ends - begins + (last or usual)
    return len(rows), float(length * Fraction(int(unit[1]), int(unit[2])))


def _said(errors: IO[bytes]) -> str:
    """The first that ffmpeg said, without the parts of it that speak; empty for nothing."""
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return re.sub(r"^(\[[^\]]*\]\s*)+", "", lines[0]).strip().rstrip(".") if lines else ""
