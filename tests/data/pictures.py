"""A small real training set, and an encoder that is cheap and counts its work."""

import hashlib

import numpy as np
import torch
from imageio_ffmpeg import write_frames
from PIL import Image

from modules.config import ConceptConfig
from modules.data import build, scan


class PoolingEncoder:
    """Latents are 8 x 8 means of the pixels, text is the caption's hash; both tell what went in."""

    def __init__(self, image="vae", text="clip", hint="none"):
        self.image_identity, self.text_identity = image, text
        self.hint, self.hint_identity, self.lanes = hint, f"{image}-{hint}", 1
        self.images, self.texts, self.hints = 0, [], 0

    def encode_images(self, pixels):
        self.images += len(pixels)
        if pixels.ndim == 5:  # a film: every fourth frame
            return torch.nn.functional.avg_pool3d(pixels[:, :, ::4], (1, 8, 8))
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def encode_hints(self, pixels, mask, hide):
        self.hints += len(pixels)
        kept = torch.nn.functional.avg_pool2d(pixels * (1 - mask) if hide else pixels, 8)
        return {"kept": kept, "mask": mask[:, :, ::8, ::8]}

    def encode_text(self, captions):
        self.texts += captions
        rows = [list(hashlib.sha256(caption.encode()).digest()) for caption in captions]
        return {"hidden": torch.tensor(rows, dtype=torch.float32)[:, None]}


def picture(seed, width=64, height=64, mode="RGB"):
    """A smooth random picture, so that scaling it loses little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return image.convert(mode)


def film(path, frames, rate=24, codec=None):
    """Write frames [h, w, 3] as a film; without loss where the file can hold that."""
    lossless = path.suffix in (".mkv", ".avi")
    writer = write_frames(
        str(path),
        frames[0].shape[1::-1],
        fps=rate,
        codec=codec or ("ffv1" if lossless else "libx264"),
        pix_fmt_out="bgr0" if lossless else "yuv420p",
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-fflags", "+bitexact"],  # or some files would hold a random name
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def counting(count, width=64, height=64):
    """Frames that each say by their grey, 4 times it, which they are."""
    return [np.full((height, width, 3), 4 * number, np.uint8) for number in range(count)]


def concept(path, **settings):
    return ConceptConfig(path=str(path)).update(**settings)


def prepare(concepts, encoder, cache, resolution="64", **settings):
    """Scan and build with everything else as usual."""
    concepts = concepts if isinstance(concepts, list) else [concepts]
    films = settings.get("films")
    usual = {
        "quantum": 8,
        "bucketing": True,
        "threads": 2,
        "report": lambda done, total: None,
        "should_stop": lambda: False,
    }
    found = scan(concepts, cache, films=films is not None)
    return build(found, encoder, cache, resolution=resolution, **usual | settings)
