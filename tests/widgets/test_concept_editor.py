"""The concept editor without a front end: what it sends, what it does with what a page asks."""

import io
import threading
import time

import pytest
from PIL import Image

import ot_notebook as ot
from modules.config import ConceptConfig
from ot_notebook.widgets.concept_editor import ConceptEditor


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "foxes"
    folder.mkdir()
    for name, size, caption in (
        ("a", (600, 400), "red fox, snow"),
        ("b", (64, 64), "<img src=x onerror=alert(1)>, snow"),
        ("c", (64, 128), None),
    ):
        Image.new("RGB", size, "teal").save(folder / f"{name}.png")
        if caption:
            (folder / f"{name}.txt").write_text(caption)
    return folder


@pytest.fixture
def make(wire, tmp_path):
    made = []

    def make(source=None, **keys):
        editor = ConceptEditor(source, journal=tmp_path / "edits.db", **keys)
        deadline = time.monotonic() + 20
        reading = editor._reading
        while (not editor.store.scanned or reading.scanning) and time.monotonic() < deadline:
            time.sleep(0.01)
        made.append(editor)
        return editor

    yield make
    for editor in made:
        editor.close()


class Page:
    """Asks as the module does, and gives the answer."""

    def __init__(self, wire, editor):
        self.wire, self.editor, self.front = wire, editor, editor.children[0]

    def ask(self, op, buffers=(), **content):
        self.wire.clear()
        self.front._handle_custom_msg({"op": op, **content}, list(buffers))
        answers = [one for one in self.wire.messages if one[1].get("method") == "custom"]
        return [(data["content"], sent or []) for _, data, sent in answers]


@pytest.fixture
def page(wire, make, folder):
    return Page(wire, make(folder))


def text(path):
    return path.read_text() if path.exists() else None


def test_the_public_name_makes_an_editor():
    assert ot.ConceptEditor is ConceptEditor


def test_a_page_fetches_descriptions_and_small_pictures_piece_by_piece(page):
    head = page.front.head
    assert (head["found"], head["total"], head["scanning"]) == (3, 3, False)
    assert (head["undo"], head["redo"]) == ("", "")
    ((rows, _),) = page.ask("rows", **{"from": 1, "to": 3})
    assert [row["name"] for row in rows["rows"]] == ["b.png", "c.png"]
    assert rows["rows"][1]["problems"] == ["missing caption"]
    ((thumbs, pictures),) = page.ask("thumbs", ids=[0, 1], epoch=head["epoch"])
    assert thumbs["ids"] == [0, 1]
    sizes = [Image.open(io.BytesIO(one)).size for one in pictures]
    assert sizes == [(256, 171), (64, 64)]


def test_state_holds_no_picture_and_no_caption(page):
    state = str(page.front.get_state(["concepts", "head", "stats"]))
    assert "red fox, snow" not in state
    assert len(state) < 4000


def test_a_caption_is_saved_and_undone(page, folder):
    ((item, pictures),) = page.ask("open", id=2)
    assert (item["caption"], item["why"], item["crop"]["size"]) == ("", "", "384x704")
    assert Image.open(io.BytesIO(pictures[0])).size == (64, 128)
    ((saved, _),) = page.ask("caption", id=2, text="a fox", was="")
    assert (saved["op"], saved["row"]["problems"]) == ("saved", [])
    assert text(folder / "c.txt") == "a fox"
    assert page.front.stats["captioned"] == 3
    assert page.front.head["undo"] == "Caption of c.png"
    page.ask("undo")
    assert text(folder / "c.txt") is None


def test_a_refused_caption_says_why_on_the_page(page, folder):
    page.ask("open", id=0)
    (folder / "a.txt").write_text("from elsewhere")
    ((refused, _),) = page.ask("caption", id=0, text="mine", was="red fox, snow")
    assert (refused["op"], refused["id"]) == ("refused", 0)
    assert "changed by another program" in refused["why"]
    assert page.front.head["notice"]["tone"] == "bad"
    assert text(folder / "a.txt") == "from elsewhere"


def test_a_bulk_edit_is_shown_before_it_is_done(page, folder):
    given = {"action": "replace", "options": {"find": "snow", "text": "ice"}, "where": None}
    ((preview, _),) = page.ask("preview", **given)
    assert preview["total"] == 2
    assert preview["changes"][0] == {
        "name": "a.png",
        "before": "red fox, snow",
        "after": "red fox, ice",
    }
    assert text(folder / "a.txt") == "red fox, snow"
    page.ask("apply", **{**given, "where": [0]})
    assert (text(folder / "a.txt"), "snow" in text(folder / "b.txt")) == ("red fox, ice", True)
    bad = {"action": "replace", "options": {"find": "(", "regex": True}, "where": None}
    ((preview, _),) = page.ask("preview", **bad)
    assert "no regular expression" in preview["why"]


def test_a_painted_mask_is_written(page, folder):
    buffer = io.BytesIO()
    Image.new("L", (300, 200), 255).save(buffer, "PNG")
    ((masked, _),) = page.ask("mask", [memoryview(buffer.getvalue())], id=0)
    assert masked["row"]["masked"]
    assert Image.open(folder / "a-masklabel.png").size == (600, 400)
    ((_, pictures),) = page.ask("open", id=0)
    assert len(pictures) == 2
    page.ask("mask", id=0)
    assert not (folder / "a-masklabel.png").exists()


def test_a_filter_stays_while_one_goes_through_its_images(page):
    page.ask("filter", filter={"captioned": False})
    assert page.front.head["found"] == 1
    page.ask("caption", id=2, text="a fox", was="")
    assert page.front.head["found"] == 1
    page.ask("closed")
    assert page.front.head["found"] == 0


def test_concepts_are_changed_from_the_page(page, folder, tmp_path):
    page.ask("concept", action="change", index=0, settings={"balancing": 2.5})
    assert page.editor.concepts[0].balancing == 2.5
    page.ask("concept", action="change", index=0, settings={"balancing": -1})
    assert page.editor.concepts[0].balancing == 2.5
    assert "balancing" in page.front.head["notice"]["text"]
    page.ask("concept", action="duplicate", index=0)
    page.ask("concept", action="remove", index=0)
    assert [one.name for one in page.editor.concepts] == ["foxes copy"]
    page.ask("concept", action="import", name="mine.json", text="{")
    assert page.front.head["notice"]["text"].startswith("mine.json is no JSON")
    page.editor.store.save(tmp_path / "concepts.json")
    page.ask("concept", action="remove", index=0)
    page.ask("concept", action="import", name="x", text=(tmp_path / "concepts.json").read_text())
    assert [one.name for one in page.editor.concepts] == ["foxes copy"]


def test_variations_are_as_the_concept_says(page):
    page.ask("concept", action="change", index=0, settings={"image.enable_fixed_flip": True})
    ((answer, pictures),) = page.ask("variations", id=0)
    assert len(pictures) == len(answer["mimes"]) == 6


def test_job_and_editor_share_their_concepts(make, folder, config):
    job = ot.JobConfig(config)
    editor = make(job)
    editor.concepts = [*editor.concepts, ConceptConfig(name="foxes", path=str(folder))]
    assert [one.name for one in job.config.concepts] == ["line art", "foxes"]
    job.update(**{"concepts.1.name": "vixens"})
    assert [one.name for one in editor.concepts] == ["line art", "vixens"]
    job.undo()
    job.undo()
    assert [one.name for one in editor.concepts] == ["line art"]
    assert editor._tokens.told("a red fox")["limit"] > 10
    job.close()


def test_edits_from_code_reach_the_page(page, folder):
    assert page.editor.edit("prefix", where="snow", text="sks ") == 2
    assert page.front.head["undo"] == "Prefix: 2 captions"
    assert list(page.editor.preview("suffix", where=0, text="!").after) == ["sks red fox, snow!"]
    assert page.editor.undo() == "Prefix: 2 captions"
    assert text(folder / "a.txt") == "red fox, snow"


def test_what_is_told_without_a_kernel_is_escaped(page):
    data, _ = page.editor._repr_mimebundle_()
    assert "<img src=x" not in data["text/html"]
    assert "foxes: 3 images, 2 with a caption" in data["text/plain"]


def test_a_wrong_source_is_refused():
    with pytest.raises(ValueError, match="/no/such does not exist"):
        ConceptEditor("/no/such")


def test_a_model_captions_in_the_background_and_can_be_stopped(page, folder):
    looking, asked = threading.Event(), threading.Event()

    def slow(images):
        looking.set()
        assert asked.wait(20)
        return ["teal, flat"] * len(images)

    run = page.editor.caption(slow, mode="add")
    assert looking.wait(20)
    assert page.front.head["task"] == {"what": "A model captions images", "done": 0, "total": 3}
    page.ask("stop")
    asked.set()
    run.wait()
    assert page.front.head["task"] is None
    assert "3 of 3 images annotated" in page.front.head["notice"]["text"]
    assert text(folder / "a.txt") == "red fox, snow, teal, flat"
    page.ask("undo")
    assert text(folder / "a.txt") == "red fox, snow"


def test_a_model_that_fails_is_told_on_the_page(page):
    def broken(images):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        page.editor.caption(broken).wait()
    assert page.front.head["notice"]["text"] == "RuntimeError: out of memory"


# core widgets ------------------------------------------------------------------------------------


@pytest.fixture
def core(make, folder):
    editor = make(folder, mode="core")
    return editor, editor._core


def press(core, label):
    found = []

    def walk(widget):
        if getattr(widget, "description", None) == label:
            found.append(widget)
        for child in getattr(widget, "children", ()):
            walk(child)

    for child in core.children:
        walk(child)
    next(one for one in found if hasattr(one, "click")).click()


def test_core_widgets_list_edit_and_undo(core, folder):
    editor, core = core
    assert core._tiles.value.count("<img src=") == 3
    assert "<img src=x" not in core._tiles.value
    core._item.value = 0
    core._caption.value = "a calm fox"
    press(core, "Next")
    assert text(folder / "a.txt") == "a calm fox"
    assert core._item.value == 1
    press(core, "Undo")
    assert text(folder / "a.txt") == "red fox, snow"
    core._filters.search.value = "snow -red"
    assert "1 images" in core._where.value
    core._fields[0].value, core._fields[1].value = "snow", "ice"
    press(core, "Preview")
    assert "1 captions change" in core._preview.value
    press(core, "Change")
    assert text(folder / "b.txt").endswith("ice")
    assert text(folder / "a.txt") == "red fox, snow"
    assert editor.store.can()[0] == "Replace: 1 caption"


def test_core_widgets_say_what_is_refused(core):
    _, core = core
    core._folder.value = "/no/such"
    press(core, "Add")
    assert "/no/such does not exist" in core._notice.value


def test_core_widgets_filter_by_what_is_wrong_and_tell_sizes(core):
    editor, core = core
    labels = [label for label, _ in core._filters.show.options]
    assert "missing caption (1)" in labels
    core._filters.show.value = dict(core._filters.show.options)["missing caption (1)"]
    assert "1 images" in core._where.value
    assert editor._filter.problem == "missing caption"
    core._filters.search.value = "nothing like it"
    assert "No image fits." in core._tiles.value
    core._filters.show.value = ()
    core._filters.search.value = ""
    assert core._filters.cache.layout.display == "none"  # there is no cache
    core._tab.value = "Sizes"
    assert "batch" in core._other.value
    assert core._tiles.layout.display == "none"
    core._tab.value = "Images"
    assert core._tiles.layout.display == ""


def test_core_widgets_change_the_concept_that_is_shown(core, folder):
    editor, core = core
    assert core._chosen.row.layout.display == "none"
    core._concept.value = 0
    assert core._chosen.row.layout.display == "flex"
    core._chosen._balance.value = 2.5
    core._chosen._type.value = "VALIDATION"
    press(core, "Duplicate")
    assert [one.balancing for one in editor.concepts] == [2.5, 2.5]
    assert editor.concepts[0].type.value == "VALIDATION"
    assert core._concept.value == 1
    press(core, "Up")
    assert [one.name for one in editor.concepts] == ["foxes copy", "foxes"]
    press(core, "Remove")
    assert [one.name for one in editor.concepts] == ["foxes"]
    press(core, "Undo")
    assert len(editor.concepts) == 2
