"""What a picture looks like before it is done, at the cost of one small matrix.

Shapes: B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from modules.families.base import Family, Parts
from modules.training.objective import cosine_alphas

CELLS = 16
"""Edge of the colour chart, in latent cells."""


class Previewer:
    """From latents to colours, by the linear map that fits one model's VAE best.

    Args:
        family: the architecture.
        parts: its networks; their VAE encodes one chart of colours.
    """

    def __init__(self, family: Family, parts: Parts) -> None:
        edge = CELLS * family.pixel_multiple
        colours = torch.rand(1, 3, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
        chart = F.interpolate(colours, size=(edge, edge), mode="bicubic").clamp(0, 1)
        latents = family.encode_images(parts, (chart * 2 - 1).to(parts.vae.device, parts.vae.dtype))
        seen = F.interpolate(chart, size=latents.shape[-2:], mode="area")
        cells, wanted = _with_one(_cells(latents)), _cells(seen)
        ridge = 1e-3 * len(cells) * torch.eye(cells.shape[1])
        self._map = torch.linalg.solve(cells.T @ cells + ridge, cells.T @ wanted)

    def picture(self, latents: Tensor) -> Image:
        """The first of latents [B, C, H, W] as a picture of H by W pixels; of a film its middle."""
        from PIL import Image as Pictures

        if latents.ndim == 5:  # [B, C, F, H, W]
            latents = latents[:, :, latents.shape[2] // 2]

        colours = _with_one(_cells(latents[:1])) @ self._map
        pixels = (colours.clamp(0, 1) * 255).round().to(torch.uint8)
        return Pictures.fromarray(pixels.reshape(*latents.shape[-2:], 3).numpy())


def denoised(scheduler: Any, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """The latents without noise as the denoiser sees them at a step, of the shape of `sample`.

    Source: Ho et al. 2020, arXiv:2006.11239, equation 15; Salimans and Ho 2022, arXiv:2202.00512,
    appendix D; for flows, x = (1 - t) latents + t noise.
    """
    if output.shape != sample.shape:
        return sample
    if type(scheduler).__name__ == "DDPMWuerstchenScheduler":
        share = float(cosine_alphas(timestep.flatten()[:1].float()))
        return (sample - math.sqrt(1 - share) * output) / math.sqrt(share)
    prediction = scheduler.config.get("prediction_type", "flow_prediction")
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or prediction == "flow_prediction":
        sigma = float(timestep) / int(scheduler.config.num_train_timesteps)
        return sample - sigma * output
    share = float(alphas[int(timestep)])
    signal, noise = math.sqrt(share), math.sqrt(1 - share)
    noisy: Tensor = scheduler.scale_model_input(sample, timestep)  # some count noise to infinity
    if prediction == "v_prediction":
        return signal * noisy - noise * output
    return (noisy - noise * output) / max(signal, 1e-2)


def _cells(image: Tensor) -> Tensor:
    """[1, C, H, W] or [1, C, 1, H, W] -> [H W, C]."""
    return image.flatten(2)[0].T.float().cpu()


def _with_one(cells: Tensor) -> Tensor:
    return F.pad(cells, (0, 1), value=1.0)
