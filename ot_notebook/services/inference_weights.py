"""Weights inside prompts, such as (red fox:1.3), read by compel."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING, Any

from modules.config import ConfigError, Problem

if TYPE_CHECKING:
    from modules.config import SampleConfig
    from modules.families import Family, Parts

WEIGHT = re.compile(r"(?<!\\)\((?P<text>[^()]*?)(?<!\\):(?P<weight>\s*\d*\.?\d+)\)")
"""How web UIs write a weight."""

COMPEL_WEIGHT = re.compile(r"(?<!\\)\)(\d*\.?\d+|[+-]+)")
"""How compel writes one: behind the parenthesis."""

READERS = {
    "StableDiffusionPipeline": "CompelForSD",
    "StableDiffusionInpaintPipeline": "CompelForSD",
    "StableDiffusionXLPipeline": "CompelForSDXL",
    "StableDiffusionXLInpaintPipeline": "CompelForSDXL",
}
"""What of compel reads the weights for a pipeline."""


def written(text: str) -> bool:
    """Whether a prompt holds weights."""
    return bool(WEIGHT.search(text) or COMPEL_WEIGHT.search(text))


def readable(family: Family) -> bool:
    """Whether weights in the family's prompts have a meaning; others read them as words."""
    return family.pipeline in READERS


def as_compel(text: str) -> str:
    """A prompt as compel reads it: (red fox)1.3 for (red fox:1.3)."""
    while (changed := WEIGHT.sub(r"(\g<text>)\g<weight>", text)) != text:
        text = changed
    return re.sub(r"\)\s+(?=\d)", ")", text)


def check(family: Family, definition: SampleConfig, clip_skip: int) -> None:
    """Refuse weights that would have to be ignored.

    Raises:
        ConfigError: if compel is not installed, or layers are to be skipped as well.
    """
    if not readable(family) or not _used(definition):
        return
    if importlib.util.find_spec("compel") is None:
        message, fix = (
            "The prompt holds weights such as (red fox:1.3), which compel reads; it is not here.",
            "Run pip install compel, or write \\( for a parenthesis that is none.",
        )
    elif clip_skip:
        message = f"clip_skip is {clip_skip}, which does not go with weights in the prompt."
        fix = "Set clip_skip to 0, or take the weights out."
    else:
        return
    raise ConfigError([Problem("prompt", "error", message, fix)])


def encoded(family: Family, parts: Parts, definition: SampleConfig) -> dict[str, Any]:
    """The encoded prompts with their weights, by argument of the pipeline; none where none are."""
    if not readable(family) or not _used(definition):
        return {}
    import compel
    import torch

    reader = getattr(compel, READERS[family.pipeline])(parts.pipeline, device=parts.device)
    prompt, negative = map(as_compel, (definition.prompt, definition.negative_prompt))
    with torch.no_grad():
        found = reader(prompt, negative_prompt=negative)
    texts = {"prompt_embeds": found.embeds, "negative_prompt_embeds": found.negative_embeds}
    if found.pooled_embeds is not None:
        texts["pooled_prompt_embeds"] = found.pooled_embeds
        texts["negative_pooled_prompt_embeds"] = found.negative_pooled_embeds
    return {name: tensor.to(parts.dtype) for name, tensor in texts.items()}


def _used(definition: SampleConfig) -> bool:
    return written(definition.prompt) or written(definition.negative_prompt)
