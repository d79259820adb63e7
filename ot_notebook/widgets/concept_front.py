"""The concept editor's module in the front end, and the state that it draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import traitlets as t
from ipyfilechooser import FileChooser

from modules.config.enums import BalancingStrategy, ConceptType
from ot_notebook.services.annotate_models import ANNOTATORS
from ot_notebook.widgets import markup
from ot_notebook.widgets.live import Front, esm

PARTS = (
    "concept_mask.js",
    "concept_item.js",
    "concept_bulk.js",
    "concept_buckets.js",
    "concept_report.js",
    "concept_annotate.js",
    "concepts.js",
)
"""The module's files behind the grid, in order; the last one exports."""


def _script(name: str) -> str:
    return (markup.STATIC / name).read_text(encoding="utf-8")


def choices() -> dict[str, list[object]]:
    """Values that settings of a concept may have, and the models that a page offers."""
    return {
        "type": [[one.value, one.name.replace("_", " ").lower()] for one in ConceptType],
        "balancing_strategy": [[one.value, one.name.lower()] for one in BalancingStrategy],
        "annotators": [
            {
                "name": name,
                "label": kind.label,
                "makes": kind.makes,
                "model": kind.model,
                "options": [[key, *facts] for key, facts in kind.options.items()],
            }
            for name, kind in ANNOTATORS.items()
        ],
    }


def make_chooser(choose: Callable[[str], None]) -> FileChooser:
    """A widget to choose a folder with."""
    chooser = FileChooser(str(Path.cwd()), show_only_dirs=True, select_desc="Choose")
    chooser.add_class("ot-chooser")
    chooser.register_callback(lambda it: choose(it.selected_path))
    return chooser


class ConceptFront(Front):
    """The editor's module. Lists are fetched piece by piece; only figures are state."""

    _esm = "\n".join((esm("concept_grid.js"), *map(_script, PARTS)))
    _css = markup.css("ot.css", "form.css", "concepts.css")

    concepts = t.List(help="A summary of each concept, in order.").tag(sync=True)
    head = t.Dict(help="What is shown and what can be done; see `ConceptEditor._head`.").tag(
        sync=True
    )
    stats = t.Dict(help="Figures about the images of the concept chosen.").tag(sync=True)
    choices = t.Dict(help="Values that settings of a concept may have; fixed.").tag(sync=True)
