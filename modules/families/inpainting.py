"""What inpainting models are shown: where to paint, and the picture around it.

Shapes: B batch, C latent channels, H W latent height and width, h w pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from modules.config import SampleConfig
from modules.config.paths import resolve
from modules.config.problems import error
from modules.data.images import decode, fitted_mask
from modules.data.items import DAMAGE, reason
from modules.families import latents as space
from modules.families.base import Condition

ORDER = ("mask", "kept", "depth")
"""In which order a UNet reads hints behind the noisy latents."""


def inpainting_hints(vae: Any, pixels: Tensor, mask: Tensor, hide: bool) -> Condition:
    """{"mask": [B, 1, H, W], "kept": [B, C, H, W]}: where to paint, and latents of the rest.

    What is painted over is grey in the picture that "kept" encodes.

    Args:
        vae: the model's.
        pixels: [B, 3, h, w] in [-1, 1].
        mask: [B, 1, h, w], 1 where the model shall paint.
        hide: False for a picture that is shown whole.
    """
    kept = space.encode_scaled(vae, pixels * (mask < 0.5) if hide else pixels)
    return {"mask": F.interpolate(mask, kept.shape[-2:]).to(kept), "kept": kept}


def with_hints(noisy: Tensor, condition: Condition) -> Tensor:
    """[B, C + further, H, W]: noisy latents, and behind them what the UNet is shown."""
    shown = [condition[name].to(noisy) for name in ORDER if name in condition]
    return torch.cat([noisy, *shown], 1) if shown else noisy


def pictures(definition: SampleConfig) -> tuple[Image.Image, Image.Image]:
    """The picture that a sample is drawn into, and its mask, white where to draw.

    Both fill the sample's size; what stands over is cropped. Without `sample_inpainting` the
    picture is grey and all of it is drawn.

    Raises:
        ConfigError: if a file cannot be read.
    """
    size = (definition.width, definition.height)
    blank = Image.new("RGB", size, (127, 127, 127)), Image.new("L", size, 255)
    if not definition.sample_inpainting:
        return blank
    picture = _read("base_image_path", definition.base_image_path)
    if not definition.mask_image_path:
        return ImageOps.fit(picture, size), blank[1]
    mask = fitted_mask(_read("mask_image_path", definition.mask_image_path), picture.size)
    return ImageOps.fit(picture, size), ImageOps.fit(mask, size)


def _read(field: str, path: str) -> Image.Image:
    try:
        return decode(Path(resolve(path)).read_bytes())
    except (*DAMAGE, Image.DecompressionBombError) as failure:
        message = f"{field} is {path or 'empty'}, which cannot be read ({reason(failure)})."
        raise error(field, message, "Give the path of a picture.") from None
