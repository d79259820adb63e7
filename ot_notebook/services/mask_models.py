"""Models that say where on pictures something is: CLIPSeg by a text, rembg by what stands out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ot_notebook.services.caption_models import best_device, needed

Mask = NDArray[np.float32]
"""[h, w] as large as its image; 1 where it is learnt, 0 where it is not."""


class ClipSegMasker:
    """CLIPSeg: finds what a text names.

    Args:
        model: folder or hub id.
        prompt: what to look for, such as "a face".
        threshold: how sure it must be, 0 to 1; None keeps shades.
        device: where it runs; by default the GPU where there is one.

    Raises:
        ValueError: if there is no prompt.
    """

    def __init__(
        self,
        model: str,
        prompt: str,
        threshold: float | None = 0.5,
        device: str | None = None,
    ) -> None:
        if not prompt.strip():
            raise ValueError("There is no prompt. Say what to look for, such as: a face")
        from transformers import AutoProcessor, CLIPSegForImageSegmentation

        self._device = device or best_device()
        self._processor = AutoProcessor.from_pretrained(model)
        self._model = CLIPSegForImageSegmentation.from_pretrained(model).eval().to(self._device)
        self._prompt, self._threshold = prompt, threshold

    def __call__(self, images: Sequence[Image.Image]) -> list[Mask]:
        """RGB images -> a mask for each."""
        import torch

        inputs = self._processor(
            text=[self._prompt] * len(images),
            images=list(images),
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits = self._model(**inputs.to(self._device)).logits
        sure = torch.sigmoid(logits).reshape(len(images), *logits.shape[-2:]).cpu().numpy()
        scaled = (Image.fromarray(one.astype(np.float32)) for one in sure)
        grey = [
            np.asarray(one.resize(image.size), np.float32).clip(0, 1)
            for one, image in zip(scaled, images, strict=True)
        ]
        return grey if self._threshold is None else [_sharp(one, self._threshold) for one in grey]


class RembgMasker:
    """rembg: finds what stands before the background.

    Args:
        model: one of rembg's names, such as "u2net" or "isnet-anime", which it downloads; or an
            onnx file in U2Net's form, which rembg only takes from its own folder (`~/.rembg`).
        threshold: how sure it must be, 0 to 1; None keeps soft edges.

    Raises:
        ImportError: if rembg or onnxruntime is not installed.
        ValueError: if rembg knows no such model.
    """

    def __init__(self, model: str = "u2net", threshold: float | None = None) -> None:
        needed("onnxruntime", "rembg")  # rembg itself would end the process without it
        rembg: Any = needed("rembg", "Masking the foreground")
        path = Path(model).expanduser()
        if path.is_file():
            self._session = rembg.new_session("u2net_custom", model_path=str(path))
        else:
            self._session = rembg.new_session(model)
        self._remove, self._threshold = rembg.remove, threshold

    def __call__(self, images: Sequence[Image.Image]) -> list[Mask]:
        """RGB images -> a mask for each."""
        found = []
        for image in images:
            grey = self._remove(image, session=self._session, only_mask=True).convert("L")
            mask = (np.asarray(grey, np.float32) / 255).astype(np.float32)
            found.append(mask if self._threshold is None else _sharp(mask, self._threshold))
        return found


def _sharp(mask: Mask, threshold: float) -> Mask:
    return (mask >= threshold).astype(np.float32)
