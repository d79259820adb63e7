"""What the tests hold each architecture to, as a table: read off the tests that pytest collects.

`python -m tests.contract.proofs` prints it for docs/compatibility.md.
"""

import contextlib
import io
from collections import defaultdict
from pathlib import Path

import diffusers
import pytest

from modules.config import MODELS, ModelType
from modules.families import all_families, family_for

COLUMNS = {
    "as diffusers": (
        "test_prediction_is_what_the_pipeline_hands_its_scheduler",
        "test_captions_encode_alike_alone_and_together",
        "test_latents_come_back_as_the_vae_alone_gives_them_back",
        "test_samples_are_the_pictures_of_the_plain_pipeline",
    ),
    "learns": ("test_one_batch_is_learned", "test_an_adapter_learns_one_batch_in_twenty_steps"),
    "adapter files": ("test_names_are_the_committed_ones", "test_reading_finds_what_was_written"),
    "drawn by diffusers": ("test_diffusers_draws_with_the_file_what_the_live_adapter_draws",),
    "other kinds": ("test_every_kind_comes_back_from_every_format_or_is_refused",),
    "whole models": ("test_a_folder_holds_the_model_in_the_wanted_type",),
    "runs": (
        "test_a_run_of_each_architecture_trains_and_leaves_its_files",
        "test_an_adapter_learns",
    ),
    "resumes": ("test_a_resumed_run_of_each_architecture_is_straight",),
    "words": ("test_a_word_of_each_architecture_trains_and_leaves_its_file",),
}
"""By the head of a column: the tests that must all be there."""
ALWAYS, ON_DEMAND, NEVER = "●", "○", ""


def family_of(item):
    """The family that a test's case is about; None for tests about something else."""
    case = getattr(item, "callspec", None)
    for value in case.params.values() if case else ():
        if isinstance(value, ModelType):
            return family_for(value)
        if hasattr(value, "lora_formats"):
            return value
    return None


def table(items):
    """Lines of Markdown: by architecture, what every run proves, what `make test-all` does."""
    quick, slow = defaultdict(set), defaultdict(set)
    for item in items:
        family, name = family_of(item), getattr(item, "originalname", "")
        if family is not None:
            (slow if item.get_closest_marker("slow") else quick)[name].add(type(family))
    rows = defaultdict(list)
    for family in all_families():
        rows[type(family)].append(family)
    lines = ["| architecture | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for kind, families in rows.items():
        titles = dict.fromkeys(MODELS[each.model_types[0]].title for each in families)
        reader = hasattr(getattr(diffusers, families[0].pipeline), "load_lora_weights")
        cells = []
        for head, tests in COLUMNS.items():
            always = all(kind in quick[test] for test in tests)
            demand = all(kind in quick[test] | slow[test] for test in tests)
            unread = head == "drawn by diffusers" and not reader
            cells.append(NEVER if unread else ALWAYS if always else ON_DEMAND if demand else NEVER)
        lines.append(f"| {', '.join(titles)} | " + " | ".join(cells) + " |")
    return lines


class Collected:
    """A plugin of pytest that keeps the tests it finds."""

    def pytest_collection_modifyitems(self, items):
        self.items = list(items)


def proofs():
    """The table of the tests beside this file."""
    found = Collected()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([str(Path(__file__).parent), "--collect-only", "-q"], plugins=[found])
    return "\n".join(table(found.items))


if __name__ == "__main__":
    print(proofs())  # noqa: T201
