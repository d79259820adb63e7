"""The settings form on a real page."""

import json

import pytest
from playwright.sync_api import expect
from test_views import violations

from modules.config.enums import ModelType
from modules.config.models import MODELS

SETUP = "import ot_notebook as ot\nprint(ot.JobConfig, ot.studio)"


@pytest.fixture
def form(notebook):
    notebook.open(
        "form.ipynb",
        [
            SETUP,
            "job = ot.JobConfig(); job",
            "job.update(epochs=7, lora_rank=4)",
            "job['learning_rate']",
        ],
    )
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".ot-field").first).to_be_visible()
    return output


def field(form, label):
    return form.get_by_label(label, exact=True).first


def value(notebook):
    notebook.run(3)
    return notebook.text(3).strip()


def test_the_full_form_is_there_within_a_second(notebook, page):
    """From running the cell to all settings drawn; the best of three, as others may be busy."""
    notebook.open("speed.ipynb", [SETUP, *["ot.JobConfig()"] * 3])
    notebook.run(0)
    milliseconds = [
        page.evaluate(
            """async (index) => {
                const frame = () => new Promise(requestAnimationFrame);
                const app = window.jupyterapp, notebook = app.shell.currentWidget.content;
                notebook.activeCellIndex = index;
                const start = performance.now();
                app.commands.execute('notebook:run-cell');
                const form = () => document.querySelectorAll('.ot-form')[index - 1];
                while (!form()?.querySelector('.ot-field')) await frame();
                form().querySelectorAll('.ot-segments button')[1].click(); // all settings
                await frame();
                return performance.now() - start;
            }""",
            index,
        )
        for index in (1, 2, 3)
    ]
    assert page.locator(".ot-form .ot-field").count() > 300
    assert min(milliseconds) < 1000


def test_a_field_offers_the_names_that_the_model_type_has(form):
    names = field(form, "Layer filter preset").evaluate(
        "input => [...input.list.options].map((option) => option.value)"
    )
    assert names == list(MODELS[ModelType.STABLE_DIFFUSION_15].filters)
    assert "attn-only" in names


def test_an_error_appears_under_the_field_as_one_types(notebook, page, form):
    rate = field(form, "Learning rate")
    before = value(notebook)
    rate.fill("abc")
    error = form.locator(".ot-field-error:visible")
    expect(error).to_have_text("learning_rate is 'abc', but must be a number. Give a number.")
    expect(rate).to_have_attribute("aria-invalid", "true")
    expect(form.locator(".ot-wrong")).to_contain_text("1 problem")
    expect(error).to_be_in_viewport(ratio=1)
    notebook.shot("form-error", form)
    assert value(notebook) == before
    rate.fill("2e-4")
    expect(error).to_have_count(0)  # so the kernel has answered
    expect(rate).to_have_value("2e-4")  # what is being typed is left alone
    assert value(notebook) == "0.0002"  # runs a cell, which may take the focus
    rate.blur()
    expect(rate).to_have_value("0.0002")


def test_code_and_form_follow_each_other(notebook, form):
    notebook.run(2)
    expect(field(form, "Epochs")).to_have_value("7")
    expect(field(form, "LoRA rank")).to_have_value("4")
    expect(form.locator(".ot-field.ot-changed")).to_have_count(2)
    form.get_by_role("button", name="Reset Epochs").click()
    expect(field(form, "Epochs")).not_to_have_value("7")
    form.get_by_role("button", name="Undo", exact=True).click()
    expect(field(form, "Epochs")).to_have_value("7")
    form.get_by_role("button", name="Undo", exact=True).click()
    expect(form.locator(".ot-field.ot-changed")).to_have_count(0)
    form.get_by_role("button", name="Redo", exact=True).click()
    expect(field(form, "LoRA rank")).to_have_value("4")


def test_search_levels_and_what_counts(form):
    form.get_by_label("Search all settings").fill("clear cache")
    expect(form.locator(".ot-field:visible")).to_have_count(1)
    form.get_by_label("Search all settings").fill("no such thing")
    expect(form.locator(".ot-nothing")).to_be_visible()
    form.get_by_label("Search all settings").fill("")
    basic = form.locator(".ot-field:visible").count()
    form.get_by_role("button", name="All", exact=True).click()
    assert form.locator(".ot-field:visible").count() > 2 * basic
    expect(form.locator("summary", has_text="UNet")).to_be_visible()
    field(form, "Model type").select_option("FLUX_DEV_1")
    expect(form.locator("summary", has_text="UNet")).to_be_hidden()
    expect(form.locator("summary", has_text="Transformer").first).to_be_visible()


def test_concepts_are_added_and_named(notebook, page, form):
    form.get_by_role("button", name="Add to concepts").click()
    expect(form.get_by_label("Include subdirectories")).to_have_count(2)
    second = form.locator(".ot-item").nth(1)
    second.get_by_label("Name", exact=True).fill("my cats")
    expect(second.locator(".ot-item-head")).to_contain_text("2. my cats")
    second.get_by_role("button", name="Remove 2").click()
    expect(form.locator(".ot-item-head", has_text="my cats")).to_have_count(0)


def test_windows_for_files_code_and_differences(notebook, page, form, tmp_path):
    notebook.run(2)
    expect(field(form, "Epochs")).to_have_value("7")
    form.get_by_role("button", name="Compare").click()
    window = page.get_by_role("dialog")
    expect(window.locator("tr")).to_have_count(3)
    notebook.shot("form-differences")
    window.get_by_role("button", name="Reset lora_rank").click()
    expect(window.locator("tr")).to_have_count(2)
    page.keyboard.press("Escape")
    form.get_by_role("button", name="Python").click()
    expect(window.get_by_label("Python code")).to_have_value(
        "import ot_notebook as ot\n\n"
        "job = ot.JobConfig('emoji LoRA')\njob.update(\n    epochs=7,\n)\n"
    )
    notebook.shot("form-python")
    page.keyboard.press("Escape")
    form.get_by_role("button", name="Save as").click()
    window.get_by_label("File on the kernel's machine").fill(str(tmp_path / "mine.json"))
    page.keyboard.press("Enter")
    expect(form.locator(".ot-notice")).to_contain_text("Saved to")
    assert json.loads((tmp_path / "mine.json").read_text())["epochs"] == 7
    with page.expect_download() as download:
        form.get_by_role("button", name="Export").click()
    assert json.loads(download.value.path().read_text())["epochs"] == 7
    (tmp_path / "theirs.json").write_text('{"epochs": 9}')
    form.locator("input[type=file]").set_input_files(tmp_path / "theirs.json")
    expect(form.locator(".ot-notice")).to_contain_text("Imported theirs.json")
    expect(field(form, "Epochs")).to_have_value("9")


def test_the_keyboard_is_enough_and_disturbs_no_cell(notebook, page, form):
    cells = page.locator(".jp-Cell").count()
    form.get_by_label("Preset", exact=True).focus()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate("() => document.activeElement.labels?.[0]?.textContent ?? ''")
        reached.append(name)
        if name == "Continue last backup":
            break
    assert "Workspace folder" in reached
    page.keyboard.press("Space")
    expect(field(form, "Continue last backup")).to_be_checked()
    page.keyboard.type("abddm")
    page.keyboard.press("Control+z")
    expect(field(form, "Continue last backup")).not_to_be_checked()
    assert page.locator(".jp-Cell").count() == cells


def test_the_form_passes_the_accessibility_checker_and_looks_right(notebook, page, form):
    form.get_by_role("button", name="All", exact=True).click()
    assert violations(page, ".ot-form") == []
    notebook.theme(dark=True)
    assert violations(page, ".ot-form") == []
    form.get_by_role("button", name="Basic", exact=True).click()
    for dark in (False, True):
        notebook.theme(dark)
        for name, width in (("wide", 1500), ("narrow", 700), ("phone", 440)):
            page.set_viewport_size({"width": width, "height": 1000})
            over = form.evaluate("node => node.scrollWidth - node.clientWidth")
            assert over <= 0, f"{name}: {over} px too wide"
            notebook.shot(f"form-{'dark' if dark else 'light'}-{name}", form)
