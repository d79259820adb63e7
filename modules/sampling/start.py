"""Pictures that begin with a picture: which pipeline draws them, on the very same networks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image, Resampling
from torch import Tensor

from modules.families.base import Family, Parts

BROKEN = {"ChromaInpaintPipeline"}
"""Classes that fail on every call: it reads `guidance_embeds`, which its transformer has not."""


@dataclass(frozen=True)
class Start:
    """A picture to begin with."""

    image: Image
    mask: Image | None = None
    """Where to paint: white; None for everywhere."""
    strength: float = 0.75
    """How much of it goes, in (0, 1]: that share of the steps is taken, and as much noise added."""


def picture_pipeline(family: Family, masked: bool) -> str | None:
    """The diffusers class that draws from a picture, or into its mask; None where there is none."""
    import diffusers

    needed = {"image", "strength"} | ({"mask_image"} if masked else set())
    stem = family.pipeline.removesuffix("Pipeline")
    kind = "Inpaint" if masked else "Img2Img"
    for name in (family.pipeline, f"{stem}{kind}Pipeline"):
        found = getattr(diffusers, name, None) if name not in BROKEN else None
        if found is not None and needed <= inspect.signature(found.__call__).parameters.keys():
            return name
    return None


def beside(parts: Parts, name: str) -> Any:
    """A pipeline of another class on the networks of `parts`; nothing is copied or converted."""
    import diffusers

    own = parts.pipeline
    if type(own).__name__ == name:
        return own
    made = getattr(diffusers, name)
    held = {**own.config, **own.components}  # the config tells what is no network
    takes = inspect.signature(made.__init__).parameters
    pipeline = made(**{key: value for key, value in held.items() if key in takes})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def start_arguments(
    pipeline: Any, arguments: dict[str, Any], start: Start, size: tuple[int, int]
) -> dict[str, Any]:
    """The arguments of a picture from text, made those of one from a picture.

    Args:
        pipeline: takes them.
        arguments: those of the family.
        start: the picture, scaled and cropped here to the size.
        size: width and height in pixels.
    """
    from PIL import Image as Pictures
    from PIL import ImageOps

    takes = inspect.signature(pipeline.__call__).parameters
    # pictures tell their size, and what is behind the mask is of the picture
    left_out = {"height", "width", "masked_image_latents"}
    kept = {key: value for key, value in arguments.items() if key not in left_out or key in takes}
    kept.pop("masked_image_latents", None)
    fitted = ImageOps.fit(start.image.convert("RGB"), size, Resampling.LANCZOS)
    given: dict[str, Any] = {**kept, "image": fitted, "strength": start.strength}
    if "mask_image" in takes:
        mask = start.mask.convert("L") if start.mask else Pictures.new("L", size, 255)
        given["mask_image"] = ImageOps.fit(mask, size, Resampling.NEAREST)
    return given


@contextmanager
def vae_as_it_is(vae: Any) -> Iterator[None]:
    """Inside the block the VAE takes any type and keeps its own.

    These pipelines would convert a VAE that overflows in float16 and give it back in their own
    type, rounded: the weights of a run are not theirs to round.
    """
    encode, decode = vae.encode, vae.decode
    forced = vae.config.get("force_upcast")

    def encoding(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        return encode(pixels.to(vae.dtype), *args, **kwargs)

    def decoding(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        return decode(latents.to(vae.dtype), *args, **kwargs)

    vae.encode, vae.decode = encoding, decoding
    if forced:
        vae.register_to_config(force_upcast=False)
    try:
        yield
    finally:
        del vae.encode, vae.decode
        if forced:
            vae.register_to_config(force_upcast=True)
