"""What the inference panel's module holds, and its state in words."""

from __future__ import annotations

import traitlets as t

from ot_notebook.services.inference_service import InferenceService
from ot_notebook.widgets import markup
from ot_notebook.widgets.live import Front, esm


class InferenceFront(Front):
    """Prompt, settings, LoRAs, result and history. Python holds everything."""

    _esm = esm(
        "concept_mask.js",
        "inference_start.js",
        "inference_tools.js",
        "inference_show.js",
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
    history = t.List(help="Small pictures, newest first.").tag(sync=True)


def state_words(service: InferenceService) -> str:
    """What the service does, in words."""
    status = service.status
    match status.state:
        case "empty":
            return "No model is loaded."
        case "loading":
            return status.words
        case "drawing":
            return f"{status.words or 'Drawing'}: step {status.done} of {status.total}"
        case _:
            return f"Ready: {status.model}"
