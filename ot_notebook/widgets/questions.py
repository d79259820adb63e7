"""What the dashboard asks in place, beside its buttons: before it stops a run, and about edits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from modules.config import settings
from modules.config.describe import Setting
from ot_notebook.services.refusals import STEPPING
from ot_notebook.widgets.form_rows import in_words, words
from ot_notebook.widgets.texts import brief
from ot_notebook.widgets.view_state import Control, Question, count

if TYPE_CHECKING:
    from modules.config import TrainConfig
    from ot_notebook.services.trainer_service import TrainerService

NAMED = 3
"""Settings that are named in full; of more there is a number."""

DOUBLE_CLICK_SECONDS = 0.4
"""Within this time of a question a second click is no answer: nobody has read it."""

NAMES_A_RUN = ("workspace_dir", "output_model_destination", "model_type")
"""Where a form agrees with a run in these, it is the run's form; jobs of a queue differ."""


def must_ask(service: TrainerService) -> bool:
    """Whether a stop would end something that took time: a run that takes steps, or another's."""
    return service.elsewhere is not None or service.state in STEPPING


def too_soon(asked: float) -> bool:
    """Whether a click is the second half of a double click.

    Args:
        asked: when its question was put, by `time.monotonic`.
    """
    return time.monotonic() - asked < DOUBLE_CLICK_SECONDS


def stop_question(service: TrainerService) -> Question:
    """Whether to stop, and what else there is to do."""
    choices = [Control(op="stop", label="Stop and save", enabled=True, hint=_TWICE, kind="danger")]
    if service.elsewhere is not None:
        text = f"Ask process {service.elsewhere.pid} to stop its run? It saves first."
        return Question(text=text, choices=[*choices, _KEEP])
    at = f"step {count(service.step)} of {count(service.max_step)}" if service.step else "no step"
    config = service.config
    backup = config is not None and config.backup_before_save
    what = "a backup to go on from, and the model" if backup else "the model, but no backup"
    if service.state != "paused":
        choices.append(
            Control(op="pause", label="Pause instead", enabled=True, hint=_PAUSE, kind="")
        )
    return Question(text=f"Stop after {at}? The run writes {what}.", choices=[*choices, _KEEP])


def edits(service: TrainerService, form: TrainConfig | None) -> list[tuple[Setting, object]]:
    """Settings of the form that the live run could take up now and has otherwise, with their value.

    Args:
        service: whose run it is.
        form: the settings of the form; None if the view has none. Those of another run, such as
            the next one of a queue, have nothing to say to this one.
    """
    live = service.config
    if live is None or form is None or service.state not in STEPPING:
        return []
    if any(form.get(name) != live.get(name) for name in NAMES_A_RUN):
        return []
    able = [one for one in settings(type(form)) if one.applies == "now" and one.applies_to(live)]
    return [(one, form.get(one.path)) for one in able if form.get(one.path) != live.get(one.path)]


def edits_question(found: list[tuple[Setting, object]], live: TrainConfig) -> Question:
    """Whether the run should take up what was changed in the form."""
    said = []
    for one, value in found[:NAMED]:
        now = in_words(live.get(one.path))
        said.append(f"{words(one.path.replace('.', ' '))} {in_words(value)} (run: {now})")
    more = [f"and {len(found) - NAMED} more"] if len(found) > NAMED else []
    choice = Control(
        op="apply",
        label="Apply to this run",
        enabled=True,
        hint="The run takes them up after this step",
        kind="",
    )
    text = f"The form differs from the run: {', '.join([*said, *more])}."
    return Question(text=brief(text), choices=[choice])


_TWICE = "A second click on Stop does the same"
_PAUSE = "Hold the run after this step; Resume goes on"
_KEEP = Control(op="keep", label="Keep training", enabled=True, hint="Esc does the same", kind="")
