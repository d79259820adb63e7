"""The views on a real page: live, in step, after a reload, in every look."""

from pathlib import Path

import axe_core_python
from colab import ColabSim
from playwright.sync_api import expect
from rig import Notebook

SETUP = """
    import ot_notebook as ot
    import play
    svc = play.service(steps={steps}, seconds={seconds})
    job = ot.JobConfig()
    job.update(workspace_dir="run-{name}")
"""
AXE = Path(axe_core_python.__file__).with_name("axe.min.js")


def setup(name, steps=300, seconds=6.0):
    return SETUP.format(name=name, steps=steps, seconds=seconds)


def caption(output):
    return output.locator(".ot-caption").first


def step_of(output):
    text = output.locator(".ot-bar-text span").nth(3).inner_text()
    return int(text.split()[1]) if text.startswith("step") else 0


def wait_for_step(page, output, least):
    page.wait_for_function(
        """([node, least]) => {
            const text = node?.querySelectorAll('.ot-bar-text span')[3]?.textContent ?? '';
            return Number((text.match(/step (\\d+)/) ?? [0, 0])[1]) >= least;
        }""",
        arg=[output.element_handle(), least],
    )


def press(output, name):
    output.get_by_role("button", name=name, exact=True).click()


def stop(output):
    """Stop a run that takes steps: the dashboard asks in place, and a second click confirms."""
    press(output, "Stop")
    expect(output.get_by_text("Stop after step")).to_be_visible()
    output.page.wait_for_timeout(500)  # a double click is no answer
    press(output, "Stop")


def badge(output):
    return output.locator(".ot-badge")


def violations(page, selector):
    """What the accessibility checker finds serious."""
    page.add_script_tag(path=AXE)
    found = page.evaluate(
        """selector => axe.run(selector, {runOnly: ['wcag2a', 'wcag2aa']})
            .then(({ violations }) => violations.map(({ id, impact, nodes }) =>
                [id, impact, nodes.map((node) => node.html.slice(0, 160))]))""",
        selector,
    )
    return [one for one in found if one[1] in ("serious", "critical")]


def test_two_dashboards_are_live_and_in_step(notebook, page):
    notebook.open(
        "two.ipynb",
        [setup("two", 3000, 90), "ot.Dashboard(svc, job)", "ot.Dashboard(svc, job)", "svc.state"],
    )
    for cell in range(3):
        notebook.run(cell)
    one, two = notebook.output(1), notebook.output(2)
    expect(badge(one)).to_have_text("Ready")
    press(one, "Start")
    wait_for_step(page, two, 20)
    path = one.locator(".ot-chart path.line").nth(1)
    before = path.get_attribute("d")
    wait_for_step(page, one, 80)
    expect(path).not_to_have_attribute("d", before)
    press(two, "Pause")
    expect(badge(one)).to_have_text("Paused")
    assert step_of(one) == step_of(two)
    press(one, "Resume")
    expect(badge(two)).to_have_text("Training")
    stop(two)
    expect(badge(one)).to_have_text("Stopped")
    expect(badge(two)).to_have_text("Stopped")
    assert (
        one.locator(".ot-log li").all_inner_texts() == two.locator(".ot-log li").all_inner_texts()
    )
    notebook.run(3)
    assert "stopped" in notebook.text(3)


def test_a_reloaded_page_finds_the_run_still_live(notebook, page):
    notebook.open("reload.ipynb", [setup("reload", 3000, 90), "ot.studio(job, service=svc)"])
    notebook.run(0)
    notebook.run(1)
    press(notebook.output(1), "Start")
    wait_for_step(page, notebook.output(1), 20)
    notebook.save()
    notebook.reload()
    output = notebook.output(1)
    expect(badge(output)).to_have_text("Training")
    expect(output.locator(".ot-tile").first).to_be_visible()
    expect(output.locator(".ot-chart path.line").first).to_be_visible()
    expect(output.locator(".ot-form .ot-field").first).to_be_visible()
    at = step_of(output)
    wait_for_step(page, output, at + 20)
    stop(output)
    expect(badge(output)).to_have_text("Stopped")
    notebook.run(1)  # the same line again, in the same kernel: everything is replayed
    expect(badge(notebook.output(1))).to_have_text("Stopped")
    assert step_of(notebook.output(1)) >= at
    press(notebook.output(1), "Start")
    expect(badge(notebook.output(1))).to_have_text("Training")


def test_buttons_work_while_a_cell_blocks(notebook, page):
    notebook.open(
        "blocked.ipynb",
        [
            setup("blocked", 3000, 90),
            "ot.Dashboard(svc, job)",
            """
            import time
            end = time.monotonic() + 45
            while svc.state != "stopped" and time.monotonic() < end:
                time.sleep(0.02)
            svc.state
            """,
        ],
    )
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    press(output, "Start")
    wait_for_step(page, output, 10)
    notebook.run(2, wait=False)
    at = step_of(output)
    wait_for_step(page, output, at + 20)  # live though the main thread sleeps
    stop(output)
    expect(badge(output)).to_have_text("Stopped")
    expect(notebook.output(2)).to_contain_text("stopped")  # not "training", 45 seconds later


def test_the_dashboard_is_live_where_unasked_updates_are_dropped(lab, chromium, finishing):
    colab = ColabSim()
    page = lab.page(chromium, colab.install)
    notebook = Notebook(lab, page)
    notebook.open(
        "colab.ipynb",
        [
            setup("colab", 3000, 90),
            "ot.studio(job, service=svc)",
            "import threading; threading.Timer(0.5, lambda: job.update(lora_rank=3)).start()",
        ],
    )
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    press(output, "Start")
    wait_for_step(page, output, 30)
    expect(output.locator(".ot-tile")).to_have_count(4)
    at = step_of(output)
    wait_for_step(page, output, at + 30)
    output.get_by_label("Epochs", exact=True).fill("7")
    expect(output.get_by_role("button", name="Reset Epochs")).to_be_visible()  # the kernel answered
    stop(output)
    expect(badge(output)).to_have_text("Stopped")
    dropped = colab.dropped
    notebook.run(2)  # a thread changes the form while no cell runs: that is lost, and fetched
    expect(output.get_by_label("LoRA rank", exact=True)).to_have_value("3")
    assert colab.dropped > dropped
    finishing(notebook)
    page.context.close()


def test_core_widgets_are_live_where_modules_do_not_load(core_lab, chromium, finishing):
    page = core_lab.page(chromium)
    notebook = Notebook(core_lab, page)
    notebook.open(
        "core.ipynb",
        [
            "import os; os.environ['KAGGLE_KERNEL_RUN_TYPE'] = 'Interactive'",
            setup("core", 3000, 90),
            "ot.studio(job, service=svc)",
            "job['epochs']",
        ],
    )
    for cell in range(3):
        notebook.run(cell)
    output = notebook.output(2)
    expect(badge(output)).to_have_text("Ready")
    press(output, "Start")
    wait_for_step(page, output, 30)
    at = step_of(output)
    wait_for_step(page, output, at + 30)
    expect(output.locator("svg.ot-curve polyline").first).to_be_visible()
    expect(output.get_by_text("a fox, line art").first).to_be_visible()
    epochs = output.get_by_label("Epochs")
    epochs.fill("many")
    epochs.press("Enter")
    expect(output.locator(".ot-field-error")).to_contain_text("must be a whole number")
    epochs.fill("7")
    epochs.press("Enter")
    expect(output.locator(".ot-field-error")).to_have_count(0)
    page.set_viewport_size({"width": 1400, "height": 1500})
    notebook.shot("core", output)
    stop(output)
    expect(badge(output)).to_have_text("Stopped")
    notebook.run(3)
    assert notebook.text(3).strip() == "7"
    finishing(notebook)
    page.context.close()


def test_a_page_that_loads_no_modules_is_noticed(core_lab, chromium, finishing):
    page = core_lab.page(chromium)
    notebook = Notebook(core_lab, page)
    notebook.open("fallback.ipynb", [setup("fallback"), "ot.Dashboard(svc, job)"])
    notebook.run(0)
    notebook.run(1)
    expect(badge(notebook.output(1))).to_have_text("Ready", timeout=15_000)
    press(notebook.output(1), "Start")
    expect(badge(notebook.output(1))).to_have_text("Training")
    finishing(notebook)
    page.context.close()


LOOKS = {
    "light-wide": (False, 1500),
    "dark-wide": (True, 1500),
    "light-narrow": (False, 700),
    "dark-narrow": (True, 700),
}


def test_the_studio_looks_right_in_every_state_theme_and_width(notebook, page):
    notebook.open(
        "looks.ipynb",
        [
            setup("looks", 120, 2.5),
            "page = ot.studio(job, service=svc); page",
            "job.update(base_model_name='no/such/model')",
            """
            from modules.training import events as e
            svc._say(None, e.TrainingState("training"))
            svc._say(None, e.RunFailed("OutOfMemoryError: CUDA is full.", "Lower batch_size."))
            svc._say(None, e.TrainingState("failed"))
            """,
        ],
    )
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".ot-form .ot-field").first).to_be_visible()

    def shots(state):
        for look, (dark, width) in LOOKS.items():
            page.set_viewport_size({"width": width, "height": 1600 if width > 1000 else 2600})
            notebook.theme(dark)
            page.wait_for_timeout(150)  # the chart follows a new width after a moment
            over = output.evaluate("node => node.scrollWidth - node.clientWidth")
            assert over <= 0, f"{state}, {look}: {over} px too wide"
            notebook.shot(f"studio-{state}-{look}", output)

    shots("empty")
    assert violations(page, ".ot-studio") == []
    press(output, "Start")
    wait_for_step(page, output, 60)
    notebook.theme(dark=False)
    page.set_viewport_size({"width": 1500, "height": 1600})
    notebook.shot("studio-running-light-wide", output)
    expect(badge(output)).to_have_text("Finished")
    shots("finished")
    assert violations(page, ".ot-studio") == []  # in the dark theme
    notebook.run(2)
    press(output, "Start")
    expect(output.locator(".ot-alert:visible")).to_contain_text("base_model_name")
    shots("refused")
    notebook.run(3)
    expect(badge(output)).to_have_text("Failed")
    shots("failed")


def test_a_sample_opens_large_beside_over_and_against_another(notebook, page):
    notebook.open(
        "large.ipynb",
        [
            setup("large", 60, 1.5),
            "gallery = ot.SampleGallery(svc, job); gallery",
            "svc.start(job.config).wait()",
            "gallery.selection()['step'].tolist(), gallery.used.prompt, job['samples'][-1].seed",
        ],
    )
    for cell in range(3):
        notebook.run(cell)
    output = notebook.output(1)
    expect(output.locator(".ot-tile")).to_have_count(8)
    output.get_by_role("button", name="Latest a fox").click()
    viewer = page.get_by_role("dialog", name="Sample")
    expect(viewer).to_contain_text("step 50")
    viewer.get_by_role("button", name="Side by side").click()
    expect(viewer.locator("figcaption")).to_have_text(["step 0", "step 50"])
    viewer.get_by_role("button", name="Difference").click()
    expect(viewer.locator("figcaption")).to_contain_text("mean difference")
    assert "mean difference 0.0%" not in viewer.locator("figcaption").inner_text()
    viewer.get_by_role("button", name="Slider").click()
    split = viewer.get_by_label("Where one picture ends")
    split.fill("20")
    cut = viewer.locator(".ot-over").evaluate("node => getComputedStyle(node).clipPath")
    assert "80%" in cut, cut
    viewer.get_by_role("button", name="Zoom in").click()
    zoom = viewer.locator(".ot-over img").evaluate("node => getComputedStyle(node).transform")
    assert zoom.startswith("matrix(1.6"), zoom
    assert violations(page, ".ot-viewer") == []
    notebook.shot("gallery-large")
    viewer.get_by_role("button", name="Select", exact=True).click()
    viewer.get_by_role("button", name="Use these settings").click()
    expect(viewer).to_contain_text("one of the samples of the job")
    viewer.get_by_role("button", name="Alone").click()
    page.keyboard.press("ArrowLeft")
    expect(viewer.locator("figcaption")).to_have_text(["step 0"])
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(output.get_by_text("1 selected")).to_be_visible()
    notebook.run(3)
    assert "([50], 'a fox, line art', 42)" in notebook.text(3)


def test_the_tabs_of_the_studio_open_their_parts(notebook, page):
    notebook.open("tabs.ipynb", [setup("tabs", 20_000, 900), "ot.studio(job, service=svc)"])
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    press(output, "Start")
    wait_for_step(page, output, 20)
    landmarks = {
        "New job": ".ot-form",
        "Training": ".ot-panel",
        "Concepts": ".ot-set",
        "Sampling": ".ot-definition",
        "Queue": ".ot-queue",
        "Inference": ".ot-draw",
        "Runs": ".ot-compare",
    }
    tabs = output.get_by_role("navigation", name="Parts of the studio").get_by_role("button")
    tabs.first.focus()
    for label, landmark in landmarks.items():
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        expect(tabs.get_by_text(label, exact=True)).to_have_attribute("aria-current", "page")
        expect(output.locator(f".ot-page:not(.ot-away) {landmark}").first).to_be_visible()
        over = output.evaluate("node => node.scrollWidth - node.clientWidth")
        assert over <= 0, f"{label}: {over} px too wide"
        if label != "Concepts":  # it has a test of its own
            assert violations(page, ".ot-page:not(.ot-away)") == [], label
    at = step_of(output)
    tabs.first.click()
    wait_for_step(page, output, at + 20)  # what was out of sight is up to date
    expect(output.locator(".ot-page:not(.ot-away) .ot-chart path.line").first).to_be_visible()
