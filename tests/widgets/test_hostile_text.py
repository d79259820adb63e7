"""Markup, scripts, a megabyte, control characters: in every view they are text, and not long."""

import json
import re

import pytest

from modules.config import ConceptConfig, SampleConfig
from modules.training import events as e
from ot_notebook.services.queue_service import QueueService
from ot_notebook.widgets.dashboard import Dashboard
from ot_notebook.widgets.job_config import JobConfig
from ot_notebook.widgets.queue_panel import QueuePanel
from ot_notebook.widgets.run_compare import RunCompare
from ot_notebook.widgets.sample_definitions import SampleDefinitions
from ot_notebook.widgets.sample_gallery import SampleGallery
from ot_notebook.widgets.studio import studio

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
CONTROL = "\x00\x07\x1b[31m\x7f\x9b\u202e"
EVIL = f"{MARKUP}{CONTROL}"
LONG = f"{EVIL}{'x' * 2**20}"

FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")

MAKE = {
    "dashboard": lambda stage, job, queue, mode: Dashboard(stage.service, job, mode=mode),
    "gallery": lambda stage, job, queue, mode: SampleGallery(stage.service, job, mode=mode),
    "definitions": lambda stage, job, queue, mode: SampleDefinitions(job, stage.service, mode=mode),
    "queue": lambda stage, job, queue, mode: QueuePanel(queue, job, mode=mode),
    "compare": lambda stage, job, queue, mode: RunCompare(stage.run_folder, mode=mode),
    "studio": lambda stage, job, queue, mode: studio(job, service=stage.service, mode=mode),
}


@pytest.fixture
def told(stage, wire, picture, tmp_path):
    """A run that failed with the worst of texts in every place that has some."""
    stage.config = stage.config.update(output_model_destination=f"{tmp_path}/{MARKUP[:20]}.x")
    stage.run_folder = stage.config.workspace_dir
    queue = QueueService(tmp_path / "queue", stage.service)
    queue.add(stage.config, EVIL)
    stage.go("loading", "training")
    stage.step(1, 2)
    stage.say(
        picture(1, EVIL, index=1),
        picture(2, LONG, index=2),
        e.StatusLine(LONG),
        e.Warned(LONG),
        e.SettingChanged("learning_rate", LONG, LONG, 2),
        e.RunFailed(LONG, LONG),
    )
    stage.run.end("failed")
    stage.service.flush()
    wire.clear()
    yield queue
    queue.close()


def strings(value):
    """Every text in what was sent."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from strings(each)


def check_html(html):
    assert "<script" not in html
    assert "<img src=x" not in html
    assert not FORBIDDEN.search(html)


@pytest.mark.parametrize("mode", ["rich", "core"])
@pytest.mark.parametrize("name", MAKE)
def test_it_stays_text_and_little_of_it_travels(stage, told, wire, name, mode):
    job = JobConfig(stage.config, mode=mode)
    view = MAKE[name](stage, job, told, mode)
    if name == "studio":
        for tab in ("training", "queue", "runs", "sampling"):
            view.show(tab)
    data, _ = view._repr_mimebundle_()
    check_html(data["text/html"])
    assert not FORBIDDEN.search(data["text/plain"].replace("\n", ""))
    assert len(data["text/html"]) < 500_000
    assert len(data["text/plain"]) < 50_000
    assert len(repr(view)) < 1_000
    sent = [state for _, content, _ in wire.messages for state in [content.get("state", {})]]
    texts = [text for state in sent for text in strings(state)]
    for text in texts:
        if re.search(r"<(div|span|svg|b|table)[ >]", text):
            check_html(text)
    assert max(map(len, texts), default=0) < 250_000
    assert len(json.dumps(sent, default=str)) < 3_000_000
    view.close()
    job.close()


@pytest.mark.parametrize("mode", ["rich", "core"])
def test_a_form_holds_the_whole_of_a_setting_and_shows_it_as_text(stage, wire, mode):
    concept = ConceptConfig(name=EVIL, path="/x")
    sample = SampleConfig(prompt=EVIL)
    config = stage.config.update(concepts=[concept], samples=[sample], base_model_name=EVIL)
    job = JobConfig(config, mode=mode)
    assert job["base_model_name"] == EVIL
    check_html(job.story())
    assert not FORBIDDEN.search(job.plain().replace("\n", ""))
    job.update(save_filename_prefix=LONG)
    assert len(job.story()) < 100_000
    assert len(job.plain()) < 100_000
    assert job["save_filename_prefix"] == LONG
    job.close()


def test_the_log_keeps_what_a_page_shortens(stage, told):
    failure = stage.service.run.events("failure")[-1]
    assert (failure.error, failure.advice) == (LONG, LONG)
    assert any(LONG in line.text for line in stage.service.history.log)


def test_the_report_of_such_a_run_is_small_and_plain(stage, told):
    html = stage.service.run.report().read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<img src=x" not in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)
    assert len(html) < 500_000
