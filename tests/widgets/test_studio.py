"""The studio: its tabs, what each makes when it is opened, and what it leaves behind."""

import subprocess
import sys

import pytest
import traitlets

from ot_notebook.widgets.job_config import JobConfig
from ot_notebook.widgets.studio import TABS, studio


@pytest.fixture(params=["rich", "core"])
def page(stage, wire, request, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # runs and queues are looked for below it
    job = JobConfig(stage.config, mode=request.param)
    page = studio(job, service=stage.service, mode=request.param)
    yield page
    page.close()
    job.close()


def ask(page, name):
    """What a click on a tab does."""
    bar = page._bar
    if bar.mode == "rich":
        bar._front._handle_custom_msg({"op": "open", "name": name}, [])
    else:
        bar._buttons.value = name


def seen(page):
    return [name for name, box in page._pages.items() if "ot-away" not in box._dom_classes]


def marked(page):
    return page._bar._front.current if page._bar.mode == "rich" else page._bar._buttons.value


def test_what_a_page_shows_at_first_loads_neither_torch_nor_plots():
    """Each takes a second or a third of one; they come with the first step or picture."""
    code = (
        "import sys, ot_notebook as ot; ot.studio(mode='rich'); ot.InferencePanel(mode='rich')\n"
        "print([n for n in ('torch', 'diffusers', 'pandas', 'bqplot') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_it_opens_with_settings_run_and_samples_and_has_made_nothing_else(page):
    assert seen(page) == ["dashboard"]
    assert marked(page) == "dashboard"
    assert page.parts == {}
    assert page.gallery in page._pages["dashboard"].children
    assert [name for name, box in page._pages.items() if box.children] == ["dashboard"]


@pytest.mark.parametrize("name", TABS)
def test_each_tab_opens_once_and_shows_its_part(page, name):
    ask(page, name)
    assert (page.tab, seen(page), marked(page)) == (name, [name], name)
    made = page._pages[name].children
    assert made
    assert "cannot be shown" not in str(getattr(made[0], "value", ""))
    ask(page, "dashboard")
    ask(page, name)
    assert page._pages[name].children is made or page._pages[name].children == made


def test_code_opens_a_tab_and_is_told_of_those_that_a_person_opens(page):
    told = []
    page.observe(lambda change: told.append(change.new), "tab")
    page.show("queue")
    assert marked(page) == "queue"
    ask(page, "runs")
    assert told == ["queue", "runs"]
    with pytest.raises(traitlets.TraitError, match="settings"):
        page.show("settings")


def test_a_part_that_cannot_be_made_says_why_and_is_tried_again(page, monkeypatch):
    def broken(*_arguments, **_given):
        raise OSError("no disk <b>")

    with monkeypatch.context() as patch:
        patch.setattr("ot_notebook.widgets.queue_panel.QueuePanel", broken)
        ask(page, "queue")
        (message,) = page._pages["queue"].children
        assert "OSError: no disk &lt;b&gt;" in message.value
    ask(page, "runs")
    ask(page, "queue")
    assert page._pages["queue"].children == (page.parts["queue"],)


def test_what_the_tabs_made_is_closed_with_the_page_and_the_job_is_not(stage, wire, tmp_path):
    job = JobConfig(stage.config)
    page = studio(job, service=stage.service)
    for name in ("job", "training", "sampling"):
        page.show(name)
    definitions = page.parts["sampling"]
    page.close()
    assert definitions.comm is None
    assert job.comm is not None
    wire.clear()
    stage.go("loading", "training")
    assert wire.messages == []
    job.close()
