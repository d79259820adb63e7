"""Queue, comparison of runs and sample definitions on a real page: used, checked, and looked at."""

import re

from playwright.sync_api import expect
from test_views import setup, violations

LOOKS = [(False, "wide", 1280), (True, "wide", 1280), (False, "narrow", 560), (True, "narrow", 560)]


def look(notebook, page, name, output, selector):
    """Keep pictures of a view in every look; nothing may be wider than its place."""
    for dark, word, width in LOOKS:
        notebook.theme(dark)
        page.set_viewport_size({"width": width, "height": 1000})
        over = output.locator(selector).evaluate("node => node.scrollWidth - node.clientWidth")
        assert over <= 0, f"{name} {word}: {over} px too wide"
        notebook.shot(f"{name}-{'dark' if dark else 'light'}-{word}", output)
        assert violations(page, selector) == []
    notebook.theme(dark=False)
    page.set_viewport_size({"width": 1280, "height": 1000})


def test_jobs_are_added_reordered_run_and_tried_again(notebook, page):
    notebook.open(
        "queue.ipynb",
        [
            setup("queue", 40, 1.5),
            """
            from ot_notebook.services.queue_service import QueueService
            queue = QueueService("queue-folder", svc)
            ot.QueuePanel(queue, job)
            """,
            "job.update(workspace_dir='run-2', output_model_destination='run-2/b.safetensors')",
        ],
    )
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.get_by_text("No jobs yet.")).to_be_visible()
    notebook.shot("queue-empty", output)
    name = output.get_by_label("Name of the job")
    name.fill("first <b>")
    page.keyboard.press("Enter")
    expect(output.locator(".ot-job b")).to_have_text(["first <b>"])
    name.fill("again")
    page.keyboard.press("Enter")
    expect(output.get_by_role("alert")).to_contain_text("Give this one another")
    notebook.shot("queue-refused", output)
    notebook.run(2)
    name.fill("second")
    output.get_by_role("button", name="Add these settings").click()
    expect(output.locator(".ot-job b")).to_have_text(["first <b>", "second"])
    earlier = output.get_by_role("button", name="Run earlier: second")
    earlier.focus()
    page.keyboard.press("Enter")
    expect(output.locator(".ot-job b")).to_have_text(["second", "first <b>"])
    expect(earlier).to_be_focused()
    page.keyboard.type("b")  # JupyterLab's key for a new cell
    assert page.locator(".jp-NotebookPanel:visible .jp-Cell").count() == 3
    output.get_by_role("button", name="Start", exact=True).click()
    expect(output.locator(".ot-job").first.locator(".ot-badge")).to_have_text("Running")
    look(notebook, page, "queue", output, ".ot-queue")
    expect(output.locator(".ot-job > .ot-badge")).to_have_text(["Finished", "Finished"])
    output.get_by_role("button", name="Wait again, to begin anew: second").click()
    expect(output.locator(".ot-job > .ot-badge").first).to_have_text("Finished")
    output.get_by_role("button", name="Clear ended").click()


def test_samples_are_defined_beside_the_form(notebook, page):
    notebook.open(
        "definitions.ipynb",
        [
            setup("definitions", 40, 1.5),
            "ot.SampleDefinitions(job, svc)",
            "[(sample.prompt, sample.width) for sample in job.config.samples[:2]]",
            "job.update(samples=[])",
        ],
    )
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".ot-definition")).to_have_count(8)
    first = output.locator(".ot-definition").first
    first.get_by_label("Prompt", exact=True).fill("a fox & a <b>hat</b>")
    output.get_by_role("button", name="Remove sample 3").click()
    expect(output.locator(".ot-definition")).to_have_count(7)
    first.get_by_label("Width (px)").fill("wide")
    expect(first.locator(".ot-field-error:visible")).to_contain_text("must be a whole number")
    look(notebook, page, "definitions", output, ".ot-definitions")
    first.get_by_label("Width (px)").fill("128")
    expect(first.locator(".ot-field-error:visible")).to_have_count(0)
    notebook.run(2)
    assert "('a fox & a <b>hat</b>', 128)" in notebook.text(2)
    notebook.run(3)
    expect(output.get_by_text("No samples yet.")).to_be_visible()
    notebook.shot("definitions-empty", output)


def test_runs_are_laid_over_one_another(notebook, page):
    notebook.open(
        "compare.ipynb",
        [
            setup("compare", 40, 0.4),
            """
            for rate in (1e-3, 2e-3, 4e-3):
                svc.start(job.config.update(learning_rate=rate)).wait(30)
            ot.RunCompare("run-compare")
            """,
            "ot.RunCompare('run-compare', mode='core')",
        ],
    )
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".ot-overlay polyline")).to_have_count(2)
    expect(output.locator("code")).to_have_text(["learning_rate"])
    third = output.get_by_role("checkbox").nth(2)
    third.focus()
    page.keyboard.press("Space")
    expect(output.locator(".ot-overlay polyline")).to_have_count(3)
    expect(third).to_be_focused()
    expect(output.get_by_text("3 runs, 3 compared")).to_be_visible()
    expect(output.locator("td img").first).to_be_visible()
    output.get_by_label("logarithmic").check()
    output.get_by_label("Curve").select_option("Learning rate")
    expect(output.get_by_text("Learning rate at the end")).to_be_visible()
    svg = output.locator(".ot-overlay")
    svg.hover()
    readout = output.locator(".ot-readout")
    expect(readout).to_have_text(re.compile(r"Step \d+: .* 0\.001 · .* 0\.001"))
    svg.focus()
    page.mouse.move(0, 0)
    page.keyboard.press("ArrowRight")
    expect(readout).to_have_text(re.compile(r"Step [12]: "))
    output.get_by_role("button", name="Large: a fox").first.click()
    large = page.get_by_role("dialog", name="Samples of one prompt and seed")
    expect(large.locator("figure img")).to_have_count(3)
    notebook.shot("compare-large")
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()
    look(notebook, page, "compare", output, ".ot-compare")
    notebook.run(2)
    core = notebook.output(2)
    expect(core.locator(".ot-overlay polyline")).to_have_count(2)
    notebook.shot("compare-core", core)
