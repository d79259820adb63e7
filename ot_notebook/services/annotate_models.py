"""The models that a page offers for captions and masks, by name, and what each is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from ot_notebook.services.caption_models import (
    DESCRIBE,
    ChatCaptioner,
    Florence2Captioner,
    TransformersCaptioner,
    Wd14Tagger,
)
from ot_notebook.services.mask_models import ClipSegMasker, RembgMasker


@dataclass(frozen=True)
class Annotator:
    """A kind of model.

    Attributes:
        label: what a person calls it.
        makes: "caption" or "mask".
        model: what is usually named as its model.
        make: builds it.
        options: further arguments, by name: label and what is usual; a number where that is one.
    """

    label: str
    makes: Literal["caption", "mask"]
    model: str
    make: Callable[..., Any]
    options: Mapping[str, tuple[str, str | float]]


ANNOTATORS: dict[str, Annotator] = {
    "blip": Annotator(
        "BLIP, BLIP-2 or GIT: a sentence",
        "caption",
        "Salesforce/blip-image-captioning-large",
        TransformersCaptioner,
        {"prompt": ("Begins with", "")},
    ),
    "florence2": Annotator(
        "Florence-2: a detailed text",
        "caption",
        "florence-community/Florence-2-base",
        Florence2Captioner,
        {"task": ("Task", "<DETAILED_CAPTION>")},
    ),
    "chat": Annotator(
        "Qwen-VL or another chat model",
        "caption",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        ChatCaptioner,
        {"prompt": ("Question", DESCRIBE)},
    ),
    "wd14": Annotator(
        "WD14: tags for drawings",
        "caption",
        "SmilingWolf/wd-vit-tagger-v3",
        Wd14Tagger,
        {"threshold": ("At least as sure as", 0.35)},
    ),
    "clipseg": Annotator(
        "CLIPSeg: what a text names",
        "mask",
        "CIDAS/clipseg-rd64-refined",
        ClipSegMasker,
        {"prompt": ("Look for", ""), "threshold": ("At least as sure as", 0.5)},
    ),
    "rembg": Annotator("rembg: all but the background", "mask", "u2net", RembgMasker, {}),
}
"""Every kind, by the name that `ConceptEditor.annotate` and the page call it."""


class Later:
    """A captioner or masker that is loaded when it is first asked, and so in the background.

    Args:
        make: loads it.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def __call__(self, images: Sequence[Image.Image]) -> Any:
        """What the model gives for the images."""
        if self._made is None:
            self._made = self._make()
        return self._made(images)


def make(name: str, model: str = "", **options: str | float) -> Later:
    """A model of that kind, loaded when it is first used.

    Args:
        name: one of `ANNOTATORS`.
        model: folder, file or hub id; empty for the usual one.
        options: the kind's own; what is left out is as usual.

    Raises:
        ValueError: for an unknown name or option, or a bad number; says what there is.
    """
    if name not in ANNOTATORS:
        raise ValueError(f"{name!r} is no kind of model. There are {', '.join(ANNOTATORS)}.")
    kind = ANNOTATORS[name]
    given: dict[str, str | float] = {}
    for option, value in options.items():
        if option not in kind.options:
            there = ", ".join(kind.options) or "none"
            raise ValueError(f"{name} has no option {option}. It has {there}.")
        label, usual = kind.options[option]
        given[option] = _number(label, value) if isinstance(usual, float) else str(value)
    if "prompt" in kind.options and kind.makes == "mask" and not given.get("prompt"):
        raise ValueError("There is no prompt. Say what to look for, such as: a face")
    return Later(lambda: kind.make(model.strip() or kind.model, **given))


def _number(label: str, value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(f"{label} is {value!r}, but must be a number from 0 to 1, such as 0.35.")
    return number
