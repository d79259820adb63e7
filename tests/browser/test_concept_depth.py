"""What the concept editor knows of the cache, sizes and duplicates, on a real page."""

import shutil

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from test_concept_editor import setup
from test_views import violations

import ot_notebook as ot

CACHED = """
    from modules.families import family_for
    from modules.training.encoder import fill_cache
    from modules.training.method import method_for
    from modules.config import ConceptConfig
    job = ot.JobConfig("emoji LoRA")
    emoji = ConceptConfig(name="emoji", path={path!r})
    job.update(cache_dir={cache!r}, batch_size=8, concepts=(emoji,))
    family = family_for(job.config.model_type)
    parts = family.load(job.config)
    method = method_for(job.config, family, parts)
    fill_cache(job.config, family, parts, method, lambda event: None, lambda: False)"""
MANY = 10_000


@pytest.fixture
def emoji(tmp_path):
    """A copy of an embedded set, one image of it twice."""
    folder = tmp_path / "emoji"
    shutil.copytree(ot.assets.dataset("line art"), folder)
    first = sorted(folder.glob("*.png"))[0]
    shutil.copy(first, folder / "again.png")
    return folder


@pytest.fixture
def editor(notebook, emoji, tmp_path):
    cell = CACHED.format(cache=str(tmp_path / "cache"), path=str(emoji))
    notebook.open("depth.ipynb", [setup(emoji), cell, "ot.ConceptEditor(job)"])
    for index in range(3):
        notebook.run(index)
    output = notebook.output(2)
    expect(output.locator(".ot-cache-fresh").first).to_be_visible()
    return output


def test_the_cache_is_seen_image_by_image(notebook, page, editor, emoji):
    states = editor.get_by_label("Cache", exact=True)
    total = len(list(emoji.glob("*.png")))
    expect(states).to_contain_text(f"Cached ({total})")
    editor.get_by_role("listbox").press("Enter")
    caption = page.get_by_role("textbox", name="Caption")
    expect(caption).to_be_focused()
    caption.fill("something else")
    page.keyboard.press("Escape")
    expect(states).to_contain_text("Changed since cached (1)")
    notebook.shot("concepts-emoji-light", editor)
    states.select_option("stale")
    expect(editor.get_by_text(f"1 of {total} images shown")).to_be_visible()
    expect(editor.locator(".ot-cache-stale")).to_have_count(1)
    states.select_option("")
    assert violations(page, ".ot-set") == []


def test_sizes_and_the_report_lead_to_their_images(notebook, page, editor):
    editor.get_by_role("button", name="Sizes").press("Enter")
    expect(editor.locator(".ot-bucket-table tbody tr")).to_have_count(1)
    expect(editor.locator(".ot-when").last).to_contain_text("of 8 an epoch")
    assert violations(page, ".ot-set") == []
    editor.get_by_role("button", name="Report").press("Enter")
    expect(editor.locator(".ot-finding").first).to_contain_text("missing caption")
    assert violations(page, ".ot-set") == []
    editor.locator("[data-name='again.png']").press("Enter")  # a name leads to its image
    expect(editor.get_by_role("option", name="again.png")).to_be_visible()
    expect(editor.get_by_role("button", name="Images", exact=True)).to_be_focused()
    expect(editor.get_by_text("1 of 97 images shown")).to_be_visible()
    editor.get_by_label("Search captions and names").fill("")
    editor.get_by_role("button", name="Sizes").press("Enter")
    editor.locator(".ot-bucket-link").press("Enter")
    expect(editor.get_by_role("button", name="show all sizes")).to_be_visible()
    expect(editor.locator(".ot-cell").first).to_be_visible()


def test_duplicates_are_found_and_a_model_is_asked_from_the_page(notebook, page, editor):
    editor.get_by_role("button", name="Find duplicates").press("Enter")
    expect(editor.locator(".ot-notice")).to_contain_text("look like another", timeout=30_000)
    expect(editor.get_by_role("option", name="again.png")).to_be_visible()
    notebook.shot("concepts-duplicates", editor)
    editor.get_by_label("Show", exact=True).last.select_option(label="Show all")
    editor.get_by_role("button", name="Ask a model").press("Enter")
    dialog = page.get_by_role("dialog", name="Captions and masks by a model")
    dialog.get_by_label("Model").select_option("clipseg")
    expect(dialog.locator("select").last).to_have_text("All 97 shown")
    assert violations(page, ".ot-annotate") == []
    notebook.shot("concepts-annotate")
    dialog.get_by_role("button", name="Start").click()
    expect(editor.locator(".ot-notice")).to_contain_text("Say what to look for")
    editor.get_by_role("button", name="Ask a model").press("Enter")
    dialog.get_by_label("Look for").fill("a face")
    dialog.get_by_label("Folder or hub id").fill("/no/such/folder")
    dialog.get_by_role("button", name="Start").press("Enter")
    expect(editor.locator(".ot-notice")).to_contain_text("/no/such/folder", timeout=60_000)


@pytest.mark.slow
def test_ten_thousand_pictures_in_every_look(notebook, page, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    sizes = [(96, 64), (64, 64), (64, 112), (160, 64), (72, 64)]
    for number in range(MANY):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(sizes[number % 5], Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05}.jpg", quality=85)
        if number % 7:
            words = ["smooth", "colourful", "abstract", "warm", "cold"]
            text = f"{words[number % 5]}, {words[number % 3]}, number {number}"
            (folder / f"{number:05}.txt").write_text(text)
    notebook.open("pictures.ipynb", [setup(folder), f"ot.ConceptEditor({str(folder)!r})"])
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".ot-figures")).to_contain_text("10,000 images", timeout=60_000)
    expect(output.locator(".ot-cell img[src]").nth(8)).to_be_visible(timeout=30_000)
    for dark in (False, True):
        notebook.theme(dark=dark)
        for width in (1280, 560):
            page.set_viewport_size({"width": width, "height": 1000})
            look = f"{'dark' if dark else 'light'}-{'wide' if width > 1000 else 'narrow'}"
            output.get_by_role("button", name="Images", exact=True).click()
            expect(output.locator(".ot-cell.ot-waits")).to_have_count(0, timeout=20_000)
            notebook.shot(f"concepts-many-{look}", output)
            output.get_by_role("button", name="Sizes").click()
            expect(output.locator(".ot-bucket-table tbody tr")).to_have_count(5, timeout=20_000)
            notebook.shot(f"concepts-sizes-{look}", output)
            assert violations(page, ".ot-set") == []
    page.set_viewport_size({"width": 1280, "height": 1000})
    output.get_by_role("button", name="Report").click()
    output.get_by_role("button", name="and 1,417 more").click()  # of those without a caption
    expect(output.get_by_text("1,429 of 10,000 images shown")).to_be_visible(timeout=20_000)
    output.get_by_label("Show", exact=True).last.select_option(label="Show all")
    output.get_by_role("button", name="Images", exact=True).click()
    output.get_by_role("button", name="Find duplicates").click()
    output.get_by_role("button", name="Stop").click()
    expect(output.locator(".ot-notice")).to_contain_text("was stopped", timeout=30_000)
