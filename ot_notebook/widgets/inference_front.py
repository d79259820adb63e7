"""What the inference panel's module holds, and its state in words."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import traitlets as t

from modules.config import MODELS, ConfigError, NoiseScheduler, Problem
from ot_notebook.services.inference_axes import WORDS, read_axis
from ot_notebook.services.inference_grid import axis_names
from ot_notebook.services.inference_request import ONE_PROMPT, START, refused
from ot_notebook.services.inference_service import InferenceService
from ot_notebook.widgets import markup
from ot_notebook.widgets.live import Front, esm

SAFE = 2**53 - 1
"""Largest whole number that a page holds as it is."""


Place = Literal["model", "draw", "start", "loras", "words", "grid"]
"""Part of a page where something was asked, and where it is refused."""


class InferenceFront(Front):
    """Prompt, settings, LoRAs, result and history. Python holds everything."""

    _esm = esm(
        "concept_mask.js",
        "inference_start.js",
        "inference_tools.js",
        "inference_show.js",
        "inference_stack.js",
        "inference.js",
    )
    _css = markup.css("ot.css", "form.css", "inference.css")

    view = t.Dict(help="State, progress, model, notice, LoRAs and choices.").tag(sync=True)
    settings = t.Dict(help="What the next picture is drawn with.").tag(sync=True)
    picture = t.Dict(help="The picture shown large; empty where there is none.").tag(sync=True)
    preview = t.Dict(help="What there is of the picture that is being drawn.").tag(sync=True)
    other = t.Dict(help="The picture beside it, and where they differ.").tag(sync=True)
    start = t.Dict(help="The picture to begin with, and its mask.").tag(sync=True)
    sheet = t.Dict(help="The last grid as one image.").tag(sync=True)
    starts = t.List(help="Pictures that are offered to begin with.").tag(sync=True)
    choices = t.Dict(help="Model types and precisions to load as; the largest file.").tag(sync=True)
    history = t.List(help="Small pictures, newest first.").tag(sync=True)


def choices() -> dict[str, list[tuple[str, str]]]:
    """What a model can be loaded as: value and name for people."""
    return {
        "types": [(kind.value, facts.title) for kind, facts in MODELS.items()],
        "dtypes": [
            ("FLOAT_32", "32 bit"),
            ("BFLOAT_16", "16 bit (bfloat16)"),
            ("FLOAT_16", "16 bit (float16)"),
        ],
    }


def for_page(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a page holds them, whose own numbers have 53 bits: a larger seed is text."""
    seed = settings.get("seed")
    large = isinstance(seed, int) and abs(seed) > SAFE
    return {**settings, **({"seed": str(seed)} if large else {})}


def asked_for(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as `generate` takes them: strength goes only with a picture."""
    left_out = () if settings.get("image") else START
    return {name: value for name, value in settings.items() if name not in left_out}


def grid_for(
    service: InferenceService, axes: Sequence[tuple[str, str]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Axes as they were written, and the settings that are on none, as `grid` takes them.

    Raises:
        ConfigError: where no setting is on an axis, or for values that cannot be read.
    """
    read = [read_axis(service, name, text) for name, text in axes]
    if not read:
        raise refused("x", "No setting is on an axis.", "Choose one, and write its values.")
    chosen = {name for axis in read for name in axis}
    others = {name: value for name, value in asked_for(settings).items() if name not in chosen}
    return {**dict(zip("xyz", read, strict=False)), **others}


def seed_of(written: Any) -> Any:
    """A seed from a page: -1 is another one each time; what is no number is refused by name later.

    Digits may come as text, for the same reason.
    """
    if isinstance(written, str):
        with contextlib.suppress(ValueError):
            written = int(written)
    return None if written == -1 else written


def word_of(word: object, path: object) -> Any:
    """A word and its file, as `set_embeddings` takes them; without a word the file's name is it."""
    named = str(word).strip()
    return (named, str(path)) if named else str(path)


def told(error: Exception) -> str:
    """What is refused, for a page: settings are called as there, and once."""
    if not isinstance(error, ConfigError):
        return str(error)
    return "\n".join(_problem(one) for one in error.problems)


def _problem(one: Problem) -> str:
    if not one.message.startswith(one.field):
        return str(one)
    text = f"{one.message} {one.fix}".rstrip()
    return text.replace(one.field, WORDS.get(one.field, one.field))


def view_of(
    service: InferenceService, settings: Mapping[str, Any], abilities: Mapping[str, bool]
) -> dict[str, Any]:
    """State, model, stack and what can be chosen, as both kinds of page draw them."""
    status = service.status
    own = bool(settings) and "scheduler" not in settings
    held = settings.keys() - {"image", "mask"}
    axes = axis_names(service.loras)
    return {
        "state": status.state,
        "status": state_words(service),
        "model": status.model,
        "percent": 100 * status.done / status.total if status.total else 0,
        "loras": [
            {"path": str(path), "name": path.stem, "strength": strength}
            for path, strength in service.loras
        ],
        "words": [{"word": word, "path": str(path)} for word, path in service.embeddings],
        "schedulers": [] if own else [scheduler.value for scheduler in NoiseScheduler],
        "negative": status.model_type not in ONE_PROMPT,
        "abilities": {**abilities, "clip_skip": "clip_skip" in settings},
        "axes": [name for name in axes if name in held or name.startswith(("lora", "save"))],
    }


def state_words(service: InferenceService) -> str:
    """What the service does, in words."""
    status = service.status
    match status.state:
        case "empty":
            return "No model is loaded."
        case "loading":
            return status.words
        case "drawing":
            if not status.total:
                return status.words
            return f"{status.words or 'Drawing'}: step {status.done} of {status.total}"
        case _:
            return f"Ready: {status.model}"
