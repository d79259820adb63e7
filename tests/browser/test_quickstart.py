"""The quickstart as a person goes through it: a real model, trained, stopped, reloaded."""

import json
import shutil

import pytest
from playwright.sync_api import expect
from rig import REPOSITORY
from test_views import badge, press, step_of, stop, wait_for_step

QUICKSTART = REPOSITORY / "notebooks" / "00_quickstart.ipynb"


@pytest.fixture
def cells(lab):
    """Places of the cells that matter, by what stands in them."""
    shutil.copy(QUICKSTART, lab.folder / "quickstart.ipynb")
    sources = ["".join(c["source"]) for c in json.loads(QUICKSTART.read_text())["cells"]]

    def place(text):
        (found,) = (index for index, source in enumerate(sources) if text in source)
        return found

    return {
        "studio": place("ot.studio(job)"),
        "pictures": place('ot.assets.dataset("line art")'),
        "start": place("svc.start(job.config)"),
    }


def test_the_quickstart_trains_live_stops_and_survives_a_reload(notebook, page, cells):
    notebook.show("quickstart.ipynb")
    for name in ("studio", "pictures", "start"):
        notebook.run(cells[name])
    studio = notebook.output(cells["studio"])
    expect(badge(studio)).to_have_text("Training", timeout=90_000)
    expect(studio.locator(".ot-tile")).to_have_count(8, timeout=60_000)  # before the first step
    wait_for_step(page, studio, 5)
    curve = studio.locator(".ot-chart path.line").nth(1)
    before = curve.get_attribute("d")
    wait_for_step(page, studio, 15)
    expect(curve).not_to_have_attribute("d", before)  # drawn a moment after its step is told
    page.set_viewport_size({"width": 1500, "height": 1600})
    studio.scroll_into_view_if_needed()
    page.wait_for_timeout(800)  # bqplot fits a figure 300 ms after its card has another width
    notebook.shot("quickstart-light")
    notebook.theme(dark=True)
    notebook.shot("quickstart-dark")
    notebook.theme(dark=False)
    page.set_viewport_size({"width": 1280, "height": 1000})

    stop(studio)
    expect(badge(studio)).to_have_text("Stopped", timeout=60_000)
    at = step_of(studio)
    notebook.save()
    notebook.reload()
    studio = notebook.output(cells["studio"])
    expect(badge(studio)).to_have_text("Stopped")
    assert step_of(studio) == at
    expect(studio.locator(".ot-tile").first).to_be_visible()

    press(studio, "Start")  # a second run in the same kernel, from the reloaded page
    expect(badge(studio)).to_have_text("Training", timeout=90_000)
    stop(studio)
    expect(badge(studio)).to_have_text("Stopped", timeout=60_000)
