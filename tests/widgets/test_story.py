"""What views leave in a saved notebook, and that text from outside stays text in it."""

from IPython.core.formatters import format_display_data

from modules.training import events as e
from ot_notebook.widgets.job_config import JobConfig
from ot_notebook.widgets.sample_gallery import SampleGallery
from ot_notebook.widgets.studio import studio

HOSTILE = "<img src=x onerror=alert(1)>\x00\u202e"


def test_hostile_text_is_text_in_every_piece_of_html(stage, core, wire, picture):
    gallery = SampleGallery(stage.service, mode="core")
    stage.go("loading", "training")
    stage.step(1)
    stage.say(picture(1, HOSTILE), e.StatusLine(HOSTILE), e.Warned(HOSTILE))
    stage.say(e.RunFailed(HOSTILE, HOSTILE))
    stage.run.end("failed")
    stage.service.flush()
    pieces = [core._core_panel.value, core._core_log.value, core.story(), gallery.story()]
    pieces += [words.value for _, _, words in gallery._core.cards.values()]
    for html in pieces:
        assert "<img src=x" not in html
        assert "&lt;img src=x" in html
    gallery.close()


def test_a_saved_notebook_keeps_the_story_and_stays_small(stage, wire, picture):
    page = studio(JobConfig(stage.config), service=stage.service)
    stage.go("loading", "training")
    stage.step(*range(1, 100))
    stage.say(
        *(picture(step, f"prompt {index}", 512, index) for step in (0, 90) for index in range(20))
    )
    stage.go("finished")
    data, _ = page._repr_mimebundle_()
    html = data["text/html"]
    assert "<polyline" in html
    assert "data:image/jpeg;base64," in html
    assert "Finished" in html
    assert "step 99 of 100" in data["text/plain"]
    assert len(html) < 1_000_000
    page.close()


def test_display_gives_the_widget_and_its_story_and_a_run_renews_it(stage, dashboard, monkeypatch):
    published = []
    monkeypatch.setattr(
        "ot_notebook.widgets.story.publish_display_data",
        lambda data, metadata, **given: published.append((data, given)),
    )
    assert format_display_data(dashboard) == ({}, {})  # it displayed itself
    ((data, given),) = published
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == dashboard.model_id
    assert "No run yet" in data["text/html"]
    assert given["update"] is False
    stage.go("loading", "training", "finished")
    assert published[-1][1]["update"] is True
    assert published[-1][1]["transient"] == given["transient"]
    assert "Finished" in published[-1][0]["text/html"]


def test_closing_the_studio_leaves_the_job(stage, wire):
    job = JobConfig(stage.config)
    page = studio(job, service=stage.service)
    page.close()
    job.update(epochs=3)
    assert job._front.values["epochs"] == "3"
    assert studio(job, service=stage.service).job is job
    job.close()
