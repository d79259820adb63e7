"""The image encoder of Würstchen and Cascade: an EfficientNetV2, and a layer on its features.

It turns a picture into a few numbers for each 32x32 pixels: the latents that a prior learns.

Shapes: B batch, C latent channels, h w pixels.

Source: Tan and Le 2021, arXiv:2104.00298, table 4 (the small network). Names of the weights are
those of the published files, in which blocks are lists of convolution, norm and activation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from modules.tensor_files import open_tensors

Stage = tuple[Literal["fused", "inverted"], int, int, int, int]
"""Kind of the blocks, their expansion, the stride of the first, their channels and number."""

STAGES: dict[str, tuple[Stage, ...]] = {
    "efficientnet_v2_s": (
        ("fused", 1, 1, 24, 2),
        ("fused", 4, 2, 48, 4),
        ("fused", 4, 2, 64, 4),
        ("inverted", 4, 2, 128, 6),
        ("inverted", 6, 1, 160, 9),
        ("inverted", 6, 2, 256, 15),
    )
}
"""The networks by the name that a folder's settings have."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours that it was trained on, red, green and blue in [0, 1]."""


class EfficientNetEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Pictures [B, 3, h, w], normalised -> latents [B, C, h / 32, w / 32].

    Args:
        c_latent: channels of the latents.
        c_cond: channels of the features.
        effnet: a network of `STAGES`.
        affine_batch_norm: whether the last norm has weights, as in Würstchen's but not Cascade's.
        stages: take the place of the network's own, for toys.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        c_latent: int = 16,
        c_cond: int = 1280,
        effnet: str = "efficientnet_v2_s",
        affine_batch_norm: bool = True,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        super().__init__()
        if stages is None and effnet not in STAGES:
            raise ValueError(
                f"effnet is {effnet!r}, but the encoder is one of {', '.join(STAGES)}."
            )
        self.backbone = nn.Sequential(*_features(stages or STAGES[effnet], c_cond))
        self.mapper = nn.Sequential(
            nn.Conv2d(c_cond, c_latent, 1, bias=False),
            nn.BatchNorm2d(c_latent, affine=affine_batch_norm),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Latents [B, C, h / 32, w / 32] of normalised pictures [B, 3, h, w]."""
        return cast(Tensor, self.mapper(self.backbone(pictures)))

    @classmethod
    def from_file(cls, path: Path, dtype: torch.dtype) -> EfficientNetEncoder:
        """The encoder of a file without settings, as Stable Cascade's is published.

        Raises:
            ValueError: if it holds something else, or is damaged.
            OSError: if it is missing.
        """
        with open_tensors(path) as opened:
            weights = {key: opened.read(key) for key in opened.shapes}
        if "mapper.0.weight" not in weights:
            raise ValueError(f"it has no mapper.0.weight, but {next(iter(weights), 'nothing')}")
        latent, features = weights["mapper.0.weight"].shape[:2]
        encoder = cls(latent, features, affine_batch_norm="mapper.1.weight" in weights)
        encoder.load_state_dict(weights)
        return cast(EfficientNetEncoder, encoder.to(dtype).eval())


def _features(stages: Sequence[Stage], last: int) -> Iterator[nn.Module]:
    channels = stages[0][3]
    yield _convolution(3, channels, 3, stride=2)
    for kind, expansion, stride, width, count in stages:
        block = _Fused if kind == "fused" else _Inverted
        widths = [channels, *[width] * count]
        pairs = pairwise(widths)
        yield nn.Sequential(
            *(
                block(before, after, stride if index == 0 else 1, before * expansion)
                for index, (before, after) in enumerate(pairs)
            )
        )
        channels = width
    yield _convolution(channels, last, 1)


def _convolution(
    before: int, after: int, size: int, stride: int = 1, groups: int = 1, activates: bool = True
) -> nn.Sequential:
    """A convolution, its norm, and an activation or none."""
    layers: list[nn.Module] = [
        nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([nn.SiLU()] if activates else []))


class _Block(nn.Module):
    """Layers, with a way around them where neither size nor channels change."""

    def __init__(self, layers: Sequence[nn.Module], around: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)
        self._around = around

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.block(inputs)
        return inputs + outputs if self._around else outputs


class _Fused(_Block):
    """Expansion and 3x3 convolution in one."""

    def __init__(self, before: int, after: int, stride: int, wide: int) -> None:
        if wide == before:
            layers = [_convolution(before, after, 3, stride)]
        else:
            narrow = _convolution(wide, after, 1, activates=False)
            layers = [_convolution(before, wide, 3, stride), narrow]
        super().__init__(layers, stride == 1 and before == after)


class _Inverted(_Block):
    """Expansion, a convolution of each channel by itself, attention to channels, and reduction."""

    def __init__(self, before: int, after: int, stride: int, wide: int) -> None:
        layers = [
            _convolution(before, wide, 1),
            _convolution(wide, wide, 3, stride, groups=wide),
            _Excitation(wide, max(1, before // 4)),
            _convolution(wide, after, 1, activates=False),
        ]
        super().__init__(layers, stride == 1 and before == after)


class _Excitation(nn.Module):
    """Weighs channels by what they hold over the whole picture.

    Source: Hu et al. 2018, arXiv:1709.01507.
    """

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, narrow, 1)
        self.fc2 = nn.Conv2d(narrow, channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        held: Any = inputs.mean((2, 3), keepdim=True)
        weights: Tensor = self.fc2(nn.functional.silu(self.fc1(held))).sigmoid()
        return inputs * weights
