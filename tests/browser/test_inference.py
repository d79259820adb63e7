"""The inference panel on a real page."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from test_views import violations

SETUP = """
    import ot_notebook as ot
    from ot_notebook.services.inference_service import InferenceService
    service = InferenceService("{folder}").load(ot.assets.model())
    panel = ot.InferencePanel(service{mode})
    panel.set(steps=4, cfg_scale=3.0, scheduler="DDIM")
"""


@pytest.fixture
def folder(request):
    """Of the pictures of one test: a panel begins with those that are there."""
    return request.node.name


@pytest.fixture
def panel(notebook, folder):
    setup = SETUP.format(mode="", folder=folder)
    notebook.open("inference.ipynb", [setup, "panel", "panel.settings"])
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
    panel.get_by_label("Copy the settings of this picture").select_option("python")
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


def test_what_is_refused_is_said_and_escape_stops(notebook, page, panel):
    panel.get_by_label("Width, px").fill("67")
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.get_by_role("alert")).to_contain_text("The nearest is 68")
    panel.get_by_label("Width, px").fill("64")
    panel.get_by_label("Steps").first.fill("900")
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    page.keyboard.press("Escape")
    expect(panel.get_by_role("alert")).to_contain_text("Stopped")
    notebook.shot("inference-stopped", panel)


TOPS = """(root) => [".ot-past", ".ot-draw-actions", ".ot-draw-more"].map((name) => {
    const [all, part] = [root, root.querySelector(name)].map((one) => one.getBoundingClientRect());
    return Math.round(part.top - all.top);
})"""


def test_nothing_moves_while_it_draws_and_a_new_panel_shows_what_was_drawn(notebook, page, panel):
    draw(panel, "a fox")
    root = panel.locator(".ot-draw")
    before = root.evaluate(TOPS)
    panel.get_by_label("Steps").first.fill("900")
    panel.get_by_label("Prompt", exact=True).press("Control+Enter")
    expect(panel.locator(".ot-preview")).to_be_visible()
    assert root.evaluate(TOPS) == before
    page.keyboard.press("Escape")
    expect(panel.get_by_role("alert")).to_contain_text("Stopped")
    assert root.evaluate(TOPS)[:2] == before[:2]
    page.set_viewport_size({"width": 700, "height": 1000})
    past, actions, more = root.evaluate(TOPS)
    assert actions < past < more  # the picture is right below what draws it
    notebook.run(0)
    notebook.run(1)
    tiles = panel.locator(".ot-past .ot-tile")
    expect(tiles.first).to_have_attribute("aria-label", re.compile("a fox"))
    tiles.first.click()
    expect(panel.locator("figcaption b")).to_have_text("a fox")
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-earlier-narrow", panel)


def test_it_begins_with_a_picture_and_paints_into_a_mask(notebook, page, panel):
    draw(panel, "a red apple")
    panel.get_by_text("Begin with a picture").click()
    panel.locator(".ot-offered .ot-tile").first.click()
    canvas = panel.get_by_role("img", name="Mask: dimmed parts stay as they are")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] - 30, steps=5)
    page.mouse.up()
    draw(panel, "a green apple")
    expect(panel.locator("figcaption span").first).to_contain_text("from a picture, strength 0.75")
    expect(panel.locator(".ot-draw-more .ot-fold-note").first).to_have_text("with a mask")
    notebook.run(2)
    assert "'mask': '" in notebook.text(2)
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-mask-light", panel)
    notebook.theme(dark=True)
    page.set_viewport_size({"width": 460, "height": 1000})
    notebook.shot("inference-mask-dark-narrow", panel)
    panel.get_by_role("button", name="Remove", exact=True).click()
    expect(canvas).to_be_hidden()


FILM = """
    import ot_notebook as ot
    from modules.config import ModelType
    from modules.families import family_for
    from ot_notebook.services.inference_service import InferenceService
    family_for(ModelType.WAN_2).tiny().pipeline.save_pretrained("wan")
    service = InferenceService("films").load("wan", device="cpu")
    panel = ot.InferencePanel(service)
    panel.set(width=128, height=64, steps=2)
"""


def test_a_film_plays_and_words_are_added(notebook, page):
    notebook.open("film.ipynb", [FILM, "panel"])
    notebook.run(0)
    notebook.run(1)
    panel = notebook.output(1)
    panel.get_by_label("Frames").fill("9")
    draw(panel, "a fox runs")
    film = panel.locator("video")
    expect(film).to_be_visible()
    page.wait_for_function("film => film.videoWidth === 128", arg=film.element_handle())
    expect(panel.locator("figcaption span").first).to_contain_text("9 frames")
    panel.get_by_label("Path of an embedding file").fill("gone.safetensors")
    page.keyboard.press("Enter")
    expect(panel.get_by_role("alert")).to_contain_text("gone.safetensors does not exist")
    expect(panel.get_by_label("Path of an embedding file")).to_have_value("gone.safetensors")
    panel.get_by_text("How it is loaded").click()
    panel.get_by_label("Type").select_option("WAN_2")
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-film", panel)


def test_a_grid_is_leafed_through_and_pictures_are_laid_beside_one_another(notebook, page, panel):
    draw(panel, "a fox")
    panel.get_by_role("button", name="Compare others with it").click()
    panel.get_by_text("Grid of settings").click()
    panel.get_by_label("Across: setting").select_option("seed")
    panel.get_by_label("Across: values").fill("1-3")
    panel.get_by_label("Down: setting").select_option("cfg_scale")
    panel.get_by_label("Down: values").fill("1, 4")
    panel.get_by_role("button", name="Draw grid").click()
    expect(panel.locator(".ot-sheet img")).to_be_visible()
    expect(panel.locator(".ot-past .ot-tile")).to_have_count(7)
    series = panel.locator(".ot-series input")
    series.focus()
    page.keyboard.press("End")
    expect(panel.locator(".ot-series span")).to_have_text("seed 3, guidance 4")
    expect(panel.locator("figcaption span").first).to_contain_text("guidance 4")
    border = panel.get_by_label("Border between the two pictures")
    border.focus()
    page.keyboard.press("ArrowRight")
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-pair-light", panel)
    panel.get_by_role("button", name="Difference").click()
    expect(panel.get_by_text("of 255 on average")).to_be_visible()
    notebook.theme(dark=True)
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-difference-dark", panel)
    page.set_viewport_size({"width": 1800, "height": 1000})
    notebook.shot("inference-grid-dark-wide", panel)
    panel.get_by_role("button", name="Done").click()
    expect(border).to_be_hidden()
    panel.get_by_label("Down: values").fill("many")
    panel.get_by_role("button", name="Draw grid").click()
    expect(panel.get_by_role("alert")).to_contain_text("guidance is 'many'")


def test_a_grid_shows_its_newest_picture_and_a_panel_what_code_draws(notebook, page, folder):
    cells = [
        SETUP.format(mode="", folder=folder),
        "panel",
        'service.generate("an owl", steps=2).path',
    ]
    notebook.open("newest.ipynb", cells)
    notebook.run(0)
    notebook.run(1)
    panel = notebook.output(1)
    notebook.run(2)
    tiles = panel.locator(".ot-past .ot-tile")
    expect(tiles).to_have_count(1)
    expect(tiles.first).to_have_attribute("aria-label", re.compile("an owl"))
    expect(panel.get_by_text("Pictures appear here.")).to_be_visible()
    panel.get_by_label("Prompt", exact=True).fill("a fox")
    panel.get_by_label("Steps").first.fill("40")
    panel.get_by_text("Grid of settings").click()
    panel.get_by_label("Across: setting").select_option("seed")
    panel.get_by_label("Across: values").fill("1-60")
    panel.get_by_role("button", name="Draw grid").click()
    title = panel.locator("figcaption b")
    expect(title).to_have_text("a fox")
    expect(panel.locator(".ot-past .ot-tile[aria-pressed=true]")).to_have_count(1)
    assert panel.get_by_role("button", name="Stop", exact=True).is_enabled()
    notebook.shot("inference-grid-newest-light", panel)
    page.set_viewport_size({"width": 460, "height": 1000})
    notebook.theme(dark=True)
    tiles.last.click()
    expect(title).to_have_text("an owl")
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-grid-newest-dark-narrow", panel)
    expect(title).to_have_text("an owl")  # the grid goes on, and this one stays
    assert panel.get_by_role("button", name="Stop", exact=True).is_enabled()
    page.keyboard.press("Escape")
    expect(panel.get_by_text("It was stopped before it was whole.")).to_be_visible()


DROP = """(root, bytes) => {
    const file = new File([new Uint8Array(bytes)], 'old.png', {type: 'image/png'});
    const held = new DataTransfer();
    held.items.add(file);
    const options = {dataTransfer: held, bubbles: true, cancelable: true};
    root.dispatchEvent(new DragEvent('drop', options));
}"""


def test_a_dropped_picture_gives_its_settings_back(lab, panel, folder):
    panel.get_by_label("Seed", exact=True).last.fill("7")
    draw(panel, "a fox")
    (kept,) = sorted((lab.folder / folder).glob("*-7-*.png"))[-1:]
    panel.get_by_label("Prompt", exact=True).fill("something else")
    panel.locator(".ot-draw").evaluate(DROP, list(kept.read_bytes()))
    expect(panel.get_by_label("Prompt", exact=True)).to_have_value("a fox")
    expect(panel.get_by_role("alert")).to_contain_text("Settings read")
    panel.locator(".ot-draw").evaluate(DROP, [1, 2, 3])
    expect(panel.get_by_role("alert")).to_contain_text("is no picture")


PASTE = """(node, [bytes, words]) => {
    const held = new DataTransfer();
    for (const [type, text] of Object.entries(words)) held.setData(type, text);
    held.items.add(new File([new Uint8Array(bytes)], 'image.png', {type: 'image/png'}));
    const options = {clipboardData: held, bubbles: true, cancelable: true};
    return node.dispatchEvent(new ClipboardEvent('paste', options));
}"""

COPY = """async (bytes) => {
    const type = 'image/png', blob = new Blob([new Uint8Array(bytes)], {type});
    await navigator.clipboard.write([new ClipboardItem({[type]: blob})]);
}"""


def png(width, height):
    """A picture that no format makes smaller."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def begun_with(panel):
    """Width and height of the picture to begin with, as the page shows it."""
    image = panel.get_by_alt_text("The picture to begin with")
    expect(image).to_be_visible()
    return image.evaluate(
        "async (one) => (await one.decode(), [one.naturalWidth, one.naturalHeight])"
    )


def begin_with_none(panel):
    panel.get_by_role("button", name="Remove", exact=True).click()
    expect(panel.get_by_alt_text("The picture to begin with")).to_be_hidden()


def test_a_picture_is_pasted_to_begin_with_and_copied_text_stays_text(notebook, page, panel):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(COPY, list(png(40, 24)))
    prompt = panel.get_by_label("Prompt", exact=True)
    for place in (prompt, panel.get_by_role("heading", name="Inference")):
        place.click()
        page.keyboard.press("Control+V")
        assert begun_with(panel) == [40, 24]
        begin_with_none(panel)
    expect(prompt).to_have_value("")
    root, of_a_table = (
        panel.locator(".ot-draw"),
        {"text/plain": "a fox", "text/html": "<b>a fox</b>"},
    )
    copied = list(png(24, 40))
    assert prompt.evaluate(PASTE, [copied, of_a_table])  # left to the box, which takes the words
    assert not prompt.evaluate(PASTE, [copied, {"text/html": "<img>"}])
    assert begun_with(panel) == [24, 40]
    draw(panel, "a fox")
    expect(panel.locator("figcaption span").first).to_contain_text("from a picture")
    root.evaluate(PASTE, [[1, 2, 3], {}])
    expect(panel.get_by_role("alert")).to_contain_text("is no picture")
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-pasted", panel)


def test_a_chosen_file_of_any_size_is_taken(notebook, page, panel):
    panel.get_by_text("Begin with a picture").click()
    with page.expect_file_chooser() as asked:
        panel.get_by_role("button", name="Choose file…").click()
    large = png(2000, 2000)
    assert len(large) > 11 * 2**20  # Jupyter's server takes no message of 10 MiB
    asked.value.set_files({"name": "large.png", "mimeType": "image/png", "buffer": large})
    assert begun_with(panel) == [512, 512]
    begin_with_none(panel)
    box = panel.locator("input[type=file]").first
    box.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png(40, 24)})
    assert begun_with(panel) == [40, 24]
    box.set_input_files({"name": "words.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(panel.get_by_role("alert")).to_contain_text("is no picture")
    assert begun_with(panel) == [40, 24]
    notebook.shot("inference-chosen-light", panel)
    notebook.theme(dark=True)
    page.set_viewport_size({"width": 460, "height": 1000})
    assert violations(page, ".ot-draw") == []
    notebook.shot("inference-chosen-dark-narrow", panel)


PAINTED = """async () => {
    const late = performance.now() + 20000;
    while (!document.querySelector('.ot-draw') && performance.now() < late)
        await new Promise((done) => setTimeout(done, 5));
    await new Promise(requestAnimationFrame);
    return (performance.now() - window.otBegun) / 1000;
}"""


def test_the_panel_is_painted_within_a_second(notebook, page, folder):
    notebook.open("first.ipynb", [SETUP.format(mode="", folder=folder), "panel"])
    notebook.run(0)
    page.evaluate("() => { window.otBegun = performance.now(); }")
    notebook.run(1, wait=False)
    assert page.evaluate(PAINTED) < 1


def test_core_widgets_do_the_same(notebook, page, folder):
    setup = SETUP.format(mode=', mode="core"', folder=folder)
    notebook.open("core.ipynb", [setup, "panel", "ot.WeightTools()"])
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    output.get_by_label("Prompt").first.fill("a fox")
    output.get_by_role("button", name="Draw", exact=True).click()
    expect(output.locator("img:visible")).to_have_count(1)
    output.get_by_role("button", name="Compare others with it").click()
    output.get_by_label("Across").select_option("seed")
    output.get_by_placeholder("1, 3, 7 or 1-5").first.fill("1-3")
    output.get_by_role("button", name="Draw grid").click()
    expect(output.locator("img:visible")).to_have_count(5)  # large, three of a pair, the sheet
    assert violations(page, ".jp-OutputArea-output") == []
    notebook.shot("inference-core", output)
    notebook.theme(dark=True)
    page.set_viewport_size({"width": 460, "height": 1000})
    notebook.shot("inference-core-dark-narrow", output)
    notebook.theme(dark=False)
    page.set_viewport_size({"width": 1280, "height": 1000})
    notebook.run(2)
    tools = notebook.output(2)
    tools.get_by_role("button", name="Merge").click()
    tools.get_by_role("button", name="Write").click()
    expect(tools.get_by_role("alert")).to_contain_text("Model is empty")
    notebook.shot("weight-tools", tools)
