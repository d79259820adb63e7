"""The concept editor on a real page: by keyboard alone, with very many images, without modules."""

import io

import pytest
from PIL import Image
from playwright.sync_api import expect
from rig import Notebook
from test_views import violations

MANY = 10_000
FRAME_MS = 400
"""Longest gap between two frames while scrolling, on two busy cores; smooth is far below."""


def setup(folder):
    return f"""
        import os; os.environ["OT_NOTEBOOK_DATA"] = {str(folder.parent / "journal")!r}
        import ot_notebook as ot
        print(ot.ConceptEditor)"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "foxes"
    folder.mkdir()
    for number, size in enumerate(((640, 420), (400, 600), (64, 64), (900, 500))):
        picture = Image.radial_gradient("L").resize(size)
        channels = (picture, picture.rotate(90).resize(size), Image.new("L", size, 60 * number))
        Image.merge("RGB", channels).save(folder / f"{number}.png")
        if number != 2:
            (folder / f"{number}.txt").write_text(f"a fox, number {number}, snow")
    (folder / "3.txt").write_bytes(b"a fox, number 3, snow\r\n")
    (folder / "9.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def editor(notebook, folder):
    notebook.open("set.ipynb", [setup(folder), f"ot.ConceptEditor({str(folder)!r})"])
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".ot-cell img[src]")).to_have_count(4)
    return output


def words(folder, number):
    path = folder / f"{number}.txt"
    return path.read_text() if path.exists() else None


def test_captions_are_written_by_keyboard_alone(notebook, page, editor, folder):
    keys = page.keyboard
    editor.get_by_role("listbox").focus()
    keys.press("ArrowRight")
    keys.press("Enter")
    caption = page.get_by_role("textbox", name="Caption")
    expect(caption).to_have_value("a fox, number 1, snow")
    expect(caption).to_be_focused()
    keys.press("End")
    keys.type(", at night")
    keys.press("Control+Enter")
    expect(caption).to_have_value("")
    keys.type("a bddm fox")  # letters that are commands of the notebook elsewhere
    keys.press("PageDown")
    expect(caption).to_have_value("a fox, number 3, snow\n")
    keys.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(editor.locator(".ot-figures")).to_contain_text("4 with a caption")
    assert words(folder, 1) == "a fox, number 1, snow, at night"
    assert (folder / "3.txt").read_bytes() == b"a fox, number 3, snow\r\n"  # seen, not touched
    assert words(folder, 2) == "a bddm fox"
    expect(editor.get_by_role("listbox")).to_be_focused()
    editor.get_by_role("button", name="Undo: Caption of 2.png").press("Enter")
    expect(editor.locator(".ot-figures")).to_contain_text("3 with a caption")
    assert words(folder, 2) is None
    assert page.locator(".jp-NotebookPanel:visible .jp-Cell").count() == 2


def test_a_mask_is_painted_and_the_editor_reads_well(notebook, page, editor, folder):
    assert violations(page, ".ot-set") == []
    notebook.shot("concepts-light", editor)
    editor.get_by_role("option", name="0.png").click()
    dialog = page.get_by_role("dialog", name="Image")
    dialog.get_by_role("button", name="Mask", exact=True).click()
    box = dialog.locator(".ot-mask-canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    notebook.shot("concepts-mask")
    dialog.get_by_role("button", name="Close").click()
    expect(editor.locator(".ot-mask-mark")).to_have_count(1)
    with Image.open(folder / "0-masklabel.png") as mask:
        assert (mask.size, mask.mode) == ((640, 420), "L")
        assert mask.getpixel((240, 210)) == 255
        assert mask.getpixel((600, 50)) == 0
    editor.get_by_label("Search captions and names").fill("number 3")
    expect(editor.get_by_text("1 of 5 images shown")).to_be_visible()
    editor.locator(".ot-cell").first.click()  # of the new list, even where the old one shows still
    expect(dialog.locator(".ot-item-title p")).to_have_text("3.png")
    page.keyboard.press("Escape")
    editor.get_by_label("Search captions and names").fill("")
    notebook.theme(dark=True)
    page.set_viewport_size({"width": 640, "height": 1000})
    editor.get_by_role("button", name="Edit captions").click()
    bulk = page.get_by_role("dialog", name="Edit captions")
    bulk.get_by_label("Find", exact=True).fill("snow")
    bulk.get_by_label("Replace with").fill("<b>ice</b>")
    expect(bulk.get_by_role("button", name="Change 3")).to_be_enabled()
    assert violations(page, ".ot-bulk") == []
    notebook.shot("concepts-bulk-dark-narrow")
    bulk.get_by_role("button", name="Change 3").click()
    expect(editor.locator(".ot-cell").first).to_contain_text("a fox, number 0, <b>ice</b>")
    assert violations(page, ".ot-set") == []
    assert words(folder, 3) == "a fox, number 3, <b>ice</b>\n"


def test_ten_thousand_images_scroll_smoothly(notebook, page, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, "PNG")
    for number in range(MANY):
        (folder / f"{number:05}.png").write_bytes(buffer.getvalue())
    notebook.open("many.ipynb", [setup(folder), f"ot.ConceptEditor({str(folder)!r})"])
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".ot-figures")).to_contain_text("10,000 images", timeout=30_000)
    expect(output.locator(".ot-cell img[src]").first).to_be_visible()
    longest = page.evaluate(
        """async () => {
            const port = document.querySelector('.ot-grid');
            let last = performance.now(), longest = 0;
            for (let frame = 0; frame < 90; frame += 1) {
                port.scrollTop += port.scrollHeight / 100;
                await new Promise(requestAnimationFrame);
                longest = Math.max(longest, performance.now() - last);
                last = performance.now();
            }
            return longest;
        }"""
    )
    assert longest < FRAME_MS
    assert output.locator(".ot-cell").count() < 60
    output.get_by_role("listbox").press("End")
    last = output.get_by_role("option", name="09999.png")
    expect(last.locator("img[src]")).to_be_visible()
    assert output.locator(".ot-cell").count() < 60


def test_core_widgets_list_and_edit_where_modules_do_not_load(
    core_lab, chromium, finishing, folder
):
    page = core_lab.page(chromium)
    notebook = Notebook(core_lab, page)
    notebook.open(
        "core_set.ipynb", [setup(folder), f"ot.ConceptEditor({str(folder)!r}, mode='core')"]
    )
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".ot-core-tile img")).to_have_count(4)
    caption = output.get_by_label("Caption")
    expect(caption).to_have_value("a fox, number 0, snow")
    caption.fill("a calm fox")
    output.get_by_role("button", name="Next", exact=True).click()
    expect(caption).to_have_value("a fox, number 1, snow")
    assert words(folder, 0) == "a calm fox"
    notebook.shot("concepts-core", output)
    finishing(notebook)
    page.context.close()
