"""The inference panel on a real page."""

import pytest
from playwright.sync_api import expect
from test_views import violations

SETUP = """
    import ot_notebook as ot
    from ot_notebook.services.inference_service import InferenceService
    service = InferenceService("pictures").load(ot.assets.model())
    panel = ot.InferencePanel(service{mode})
    panel.set(steps=4, cfg_scale=3.0, scheduler="DDIM")
"""


@pytest.fixture
def panel(notebook):
    notebook.open("inference.ipynb", [SETUP.format(mode=""), "panel", "panel.settings"])
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".ot-draw")).to_be_visible()
    return output


def draw(panel, prompt):
    pictures = panel.locator(".ot-past .ot-tile").count()
    panel.get_by_label("Prompt", exact=True).fill(prompt)
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.locator(".ot-past .ot-tile")).to_have_count(pictures + 1)


def test_it_draws_keeps_and_gives_settings_back(notebook, page, panel):
    panel.get_by_label("Seed", exact=True).last.fill("7")
    for prompt in ("a fox", "a red apple", "an owl"):
        draw(panel, prompt)
    expect(panel.locator("figcaption b")).to_have_text("an owl")
    panel.locator(".ot-past .ot-tile").last.click()
    expect(panel.locator("figcaption b")).to_have_text("a fox")
    panel.get_by_role("button", name="Use its settings").click()
    expect(panel.get_by_label("Prompt", exact=True)).to_have_value("a fox")
    notebook.run(2)
    assert "'seed': 7" in notebook.text(2)
    panel.get_by_role("button", name="Copy as Python").click()
    expect(panel.locator(".ot-code")).to_contain_text("StableDiffusionPipeline.from_pretrained")
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-light", panel)
    notebook.theme(dark=True)
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-dark", panel)
    page.set_viewport_size({"width": 460, "height": 1000})
    notebook.shot("inference-narrow", panel)
    notebook.theme(dark=False)
    page.set_viewport_size({"width": 1800, "height": 1000})
    notebook.shot("inference-wide", panel)


def test_what_is_refused_is_said_and_stop_stops(notebook, panel):
    panel.get_by_label("Width, px").fill("67")
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.get_by_role("alert")).to_contain_text("The nearest is 68")
    panel.get_by_label("Width, px").fill("64")
    panel.get_by_label("Steps").first.fill("900")
    panel.get_by_role("button", name="Draw", exact=True).click()
    panel.get_by_role("button", name="Stop", exact=True).click()
    expect(panel.get_by_role("alert")).to_contain_text("Stopped")
    notebook.shot("inference-stopped", panel)


def test_core_widgets_do_the_same(notebook):
    notebook.open("core.ipynb", [SETUP.format(mode=', mode="core"'), "panel"])
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    output.get_by_label("Prompt").first.fill("a fox")
    output.get_by_role("button", name="Draw", exact=True).click()
    expect(output.locator("img")).to_be_visible()
    notebook.shot("inference-core", output)
