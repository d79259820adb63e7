"""The concept editor's core on real files: what is written, what is refused, what comes back."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from PIL import Image

from modules.config import ConceptConfig, ConfigError
from ot_notebook.services.concept_store import ConceptStore, Filter
from ot_notebook.services.edit_journal import EditJournal


def picture(path, size=(64, 64), caption=None, colour="teal"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "foxes"
    picture(folder / "a.png", caption="red fox, snow, line art")
    picture(folder / "b.png", (96, 64), caption="Blue Fox, grass\nfox at night\n")
    picture(folder / "c.png", (64, 128))
    return folder


@pytest.fixture
def make(tmp_path):
    def make(*folders):
        concepts = [ConceptConfig(name=one.name, path=str(one)) for one in folders]
        return ConceptStore(concepts, journal=tmp_path / "state" / "edits.db")

    return make


def text(path):
    return path.read_text(encoding="utf-8") if path.exists() else None


# captions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "options", "a", "b", "c"),
    [
        (
            "replace",
            {"find": "fox", "text": "cat"},
            "red cat, snow, line art",
            "Blue cat, grass\ncat at night\n",
            None,
        ),
        (
            "replace",
            {"find": "Fox", "text": "cat", "match_case": True},
            "red fox, snow, line art",
            "Blue cat, grass\nfox at night\n",
            None,
        ),
        (
            "replace",
            {"find": r"(\w+) fox", "text": r"fox of \1", "regex": True},
            "fox of red, snow, line art",
            "fox of Blue, grass\nfox at night\n",
            None,
        ),
        (
            "replace",
            {"find": "snow", "text": r"\1 $&"},
            r"red fox, \1 $&, line art",
            "Blue Fox, grass\nfox at night\n",
            None,
        ),
        (
            "add_tags",
            {"tags": "SNOW, new", "at": "start"},
            "new, red fox, snow, line art",
            "SNOW, new, Blue Fox, grass\nSNOW, new, fox at night\n",
            "SNOW, new",
        ),
        (
            "remove_tags",
            {"tags": "GRASS, line art"},
            "red fox, snow",
            "Blue Fox\nfox at night\n",
            None,
        ),
        (
            "order_tags",
            {"tags": "line art, snow"},
            "line art, snow, red fox",
            "Blue Fox, grass\nfox at night\n",
            None,
        ),
        (
            "order_tags",
            {},
            "line art, red fox, snow",
            "Blue Fox, grass\nfox at night\n",
            None,
        ),
        (
            "prefix",
            {"text": "sks "},
            "sks red fox, snow, line art",
            "sks Blue Fox, grass\nsks fox at night\n",
            "sks ",
        ),
    ],
)
def test_a_bulk_edit_writes_what_its_preview_says(make, folder, action, options, a, b, c):
    store = make(folder)
    before = [text(folder / f"{name}.txt") for name in "abc"]
    preview = store.preview(action, **options)
    assert [text(folder / f"{name}.txt") for name in "abc"] == before
    store.edit(action, **options)
    assert [text(folder / f"{name}.txt") for name in "abc"] == [a, b, c]
    shown = {one.name: one.after for one in preview}
    changed = {
        f"{name}.png": after
        for name, was, after in zip("abc", before, (a, b, c), strict=True)
        if was != after
    }
    assert shown == changed
    if changed:
        store.undo()
    assert [text(folder / f"{name}.txt") for name in "abc"] == before


def test_windows_line_ends_stay(make, folder):
    (folder / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    make(folder).edit("suffix", text="!")
    assert (folder / "a.txt").read_bytes() == b"one!\r\ntwo!\r\n"


@pytest.mark.parametrize(
    ("action", "options", "message"),
    [
        ("replace", {"find": "(", " regex": True}, "has no option  regex"),
        ("replace", {"find": "(", "regex": True}, "'(' with '' is no regular expression"),
        ("replace", {"find": "a", "text": r"\9", "regex": True}, "invalid group reference 9"),
        ("replace", {"find": ""}, "The text to find is empty"),
        ("add_tags", {"tags": " "}, "There are no tags"),
        ("add_tags", {}, "add_tags also needs tags"),
        ("shuffle", {}, "'shuffle' is no edit. There are caption, replace"),
    ],
)
def test_a_bad_edit_is_refused_in_words(make, folder, action, options, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the message is what counts
        make(folder).edit(action, **options)
    assert message in str(refusal.value)


def test_a_caption_changed_outside_is_not_overwritten(make, folder):
    store = make(folder)
    was = store.caption(0)
    (folder / "a.txt").write_text("from elsewhere")
    with pytest.raises(ValueError, match="was changed by another program meanwhile"):
        store.write_caption(0, "mine", was)
    assert text(folder / "a.txt") == "from elsewhere"
    assert store.items(0).caption[0] == "from elsewhere"


def test_captions_from_elsewhere_are_refused(make, folder):
    store = make(folder)
    store.change(0, **{"text.prompt_source": "filename"})
    with pytest.raises(ValueError, match=r"come from file names\. Set its prompt_source to sample"):
        store.edit("prefix", text="x")


# undo --------------------------------------------------------------------------------------------


def test_undo_and_redo_survive_a_restart(make, folder):
    make(folder).edit("prefix", text="sks ")
    make(folder).write_caption(2, "a fox")
    store = make(folder)
    assert store.can() == ("Caption of c.png", "")
    store.undo()
    store.undo()
    assert (text(folder / "a.txt"), text(folder / "c.txt")) == ("red fox, snow, line art", None)
    store = make(folder)
    assert store.can()[1] == "Prefix: 3 captions"
    store.redo()
    store.redo()
    assert (text(folder / "a.txt"), text(folder / "c.txt")) == (
        "sks red fox, snow, line art",
        "a fox",
    )
    with pytest.raises(ValueError, match="nothing to redo"):
        store.redo()


def test_undo_keeps_what_another_program_wrote(make, folder):
    store = make(folder)
    store.write_caption(0, "mine")
    (folder / "a.txt").write_text("from elsewhere")
    with pytest.raises(ValueError, match=r"a\.txt was changed outside the editor"):
        store.undo()
    assert text(folder / "a.txt") == "from elsewhere"
    store.undo(force=True)
    assert text(folder / "a.txt") == "red fox, snow, line art"


def test_undo_leaves_other_sets_alone(make, folder, tmp_path):
    other = picture(tmp_path / "cats" / "x.png", caption="cat").parent
    make(other).edit("prefix", text="a ")
    store = make(folder)
    with pytest.raises(ValueError, match="nothing to undo"):
        store.undo()
    assert text(other / "x.txt") == "a cat"


def test_list_and_files_are_undone_in_the_order_they_were_changed(make, folder):
    store = make(folder)
    store.write_caption(0, "mine")
    store.change(0, balancing=3)
    store.duplicate(0)
    store.undo()
    store.undo()
    assert [concept.balancing for concept in store.concepts] == [1.0]
    assert store.undo() == "Caption of a.png"
    assert text(folder / "a.txt") == "red fox, snow, line art"


def test_a_failing_write_changes_nothing(folder, tmp_path):
    journal = EditJournal(tmp_path / "edits.db")
    files = {folder / "a.txt": b"new", folder / "b.txt" / "in a file.txt": b"new"}
    with pytest.raises(OSError):  # noqa: PT011 - the system's own
        journal.write(files, "edit")
    assert text(folder / "a.txt") == "red fox, snow, line art"
    assert journal.changes() == []


def test_a_refused_write_is_told_in_words(make, folder):
    picture(folder / f"{'x' * 251}.png")  # its mask would have a longer name than a file can have
    store = make(folder)
    with pytest.raises(OSError, match=r"too long.*nothing was changed\. Give the image a shorter"):
        store.write_mask(3, (folder / "a.png").read_bytes())
    assert store.can() == ("", "")


def test_a_caption_that_is_a_folder_is_named(make, folder):
    store = make(folder)
    assert store.find() == [0, 1, 2]
    (folder / "c.txt").mkdir()
    with pytest.raises(ValueError, match=r"c\.txt cannot be read \(Is a directory\)"):
        store.edit("prefix", text="sks ")
    assert text(folder / "a.txt") == "red fox, snow, line art"


def test_a_process_killed_in_the_middle_of_an_edit_leaves_the_old_captions(make, folder, tmp_path):
    killed = f"""
import os, signal
from pathlib import Path
from ot_notebook.services.edit_journal import EditJournal
folder = Path({str(folder)!r})
def report(done, of):
    if done == 1: os.kill(os.getpid(), signal.SIGKILL)
files = {{folder / "a.txt": b"new a", folder / "b.txt": b"new b"}}
EditJournal(Path({str(tmp_path / "state" / "edits.db")!r})).write(files, "edit", report)
"""
    done = subprocess.run([sys.executable, "-c", killed], check=False, timeout=60)
    assert done.returncode == -9
    assert text(folder / "a.txt") == "new a"
    store = make(folder)
    assert store.can() == ("", "edit")
    assert text(folder / "a.txt") == "red fox, snow, line art"
    store.redo()
    assert (text(folder / "a.txt"), text(folder / "b.txt")) == ("new a", "new b")


def test_a_file_torn_by_a_power_cut_gets_its_old_caption_back(make, folder, tmp_path):
    make(folder).edit("prefix", text="sks ")
    with closing(sqlite3.connect(tmp_path / "state" / "edits.db")) as database, database:
        database.execute("UPDATE changes SET state = 'begun'")
    (folder / "a.txt").write_text("")
    (folder / "b.txt").write_text("sks Bl")
    make(folder).can()
    assert text(folder / "a.txt") == "red fox, snow, line art"
    assert text(folder / "b.txt") == "Blue Fox, grass\nfox at night\n"


# hostile files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        'it\'s "quoted".png',
        "two\nlines.png",
        "🦊 fox.png",
        "<script>alert(1).png",
        "x" * 251 + ".png",
    ],
)
def test_any_name_can_be_captioned_and_undone(make, folder, name):
    caption = "<b>\"quotes\"</b> 'n' emoji 🦊 \\ & $1"
    picture(folder / name, caption="old")
    store = make(folder)
    (number,) = [row.id for row in store.rows if row.path.name == name]
    assert "\n" not in store.items(number).name[number]
    store.write_caption(number, caption)
    assert make(folder).caption(number) == caption
    store.undo()
    assert store.caption(number) == "old"


def test_a_mask_whose_name_would_be_too_long_is_refused_by_that_name(make, folder):
    picture(folder / ("x" * 251 + ".png"))
    store = make(folder)
    (number,) = store.find("x" * 251)
    assert store.mask(number) is None  # nothing of the kind can be there
    with pytest.raises(OSError, match=r"^x+-masklabel\.png cannot be written .* a shorter name"):
        store.write_mask(number, store.rows[0].path.read_bytes())


def test_a_name_that_is_no_text_can_be_captioned(make, folder):
    picture(folder / "a.png").rename(folder / "caf\udce9.png")
    store = make(folder)
    (number,) = store.find("caf")
    store.write_caption(number, "coffee")
    assert (folder / "caf\udce9.txt").read_text() == "coffee"
    store.items()[["name", "caption"]].to_string().encode()


def test_oversized_and_unreadable_captions_are_named_and_kept(make, folder):
    (folder / "a.txt").write_bytes(b"x" * 1_100_000)
    (folder / "b.txt").write_bytes(b"caf\xe9")
    store = make(folder)
    assert store.find(Filter(problem="unreadable caption")) == [0, 1]
    with pytest.raises(ValueError, match=r"a\.txt has 1,100,000 bytes, too many for a caption"):
        store.caption(0)
    with pytest.raises(ValueError, match=r"b\.txt is no UTF-8 text \(byte 3\)"):
        store.caption(1)
    with pytest.raises(ValueError, match=r"The caption of c\.png would have 1,048,577 bytes"):
        store.write_caption(2, "x" * 1_048_577)
    assert store.edit("prefix", text="a ") == 1  # only c's
    assert (folder / "b.txt").read_bytes() == b"caf\xe9"
    store.write_caption(1, "coffee")
    assert store.find(Filter(problem="unreadable caption")) == [0]
    store.undo()
    assert (folder / "b.txt").read_bytes() == b"caf\xe9"


def test_a_vanished_folder_is_not_made_anew(make, folder):
    store = make(folder)
    assert store.find() == [0, 1, 2]
    folder.rename(folder.with_name("gone"))
    with pytest.raises(ValueError, match=r"a\.png is in no folder that files can be written to"):
        store.write_caption(0, "new")
    assert not folder.exists()


def test_broken_images_are_listed_with_what_is_wrong(make, folder):
    (folder / "d.jpg").write_bytes(b"no picture")
    table = make(folder).items(Filter(problem="unreadable image"))
    assert list(table.name) == ["d.jpg"]
    assert list(table.width) == [0]


# masks -------------------------------------------------------------------------------------------


def test_a_mask_is_grey_as_large_as_its_image_and_undone(make, folder, tmp_path):
    painted = tmp_path / "painted.png"
    mask = Image.new("RGBA", (48, 32), "black")
    mask.paste("white", (0, 0, 24, 32))
    mask.save(painted)
    store = make(folder)
    store.write_mask(1, painted.read_bytes())
    with Image.open(folder / "b-masklabel.png") as written:
        assert (written.mode, written.size) == ("L", (96, 64))
        assert (written.getpixel((10, 32)), written.getpixel((80, 32))) == (255, 0)
    assert store.find(Filter(masked=True)) == [1]
    store.write_mask(1, None)
    assert store.find(Filter(masked=True)) == []
    store.undo()
    assert store.mask(1) is not None
    store.undo()
    assert not (folder / "b-masklabel.png").exists()
    with pytest.raises(ValueError, match="The mask is no picture"):
        store.write_mask(1, b"nothing")


# search and figures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (None, [0, 1, 2]),
        ("fox", [0, 1]),
        ("fox -snow", [1]),
        ("FOX NIGHT", [1]),
        ("c.png", [2]),
        (Filter(tag="Snow"), [0]),
        (Filter(tag="fox"), []),
        (Filter(captioned=False), [2]),
        (Filter(problem="any"), [2]),
        (Filter(problem="missing caption"), [2]),
        (Filter(largest=96), [0, 1]),
        (Filter(smallest=65), []),
        (Filter(bucket="384x704"), [2]),
        (Filter(concept=1), []),
        ([2, 0], [2, 0]),
        (1, [1]),
    ],
)
def test_search(make, folder, where, found):
    assert make(folder).find(where) == found


def test_figures_follow_an_edit(make, folder):
    store = make(folder)
    assert store.stats()["problems"] == {"missing caption": 1}
    store.write_caption(2, "snow, fox")
    stats = store.stats()
    assert (stats["images"], stats["captioned"], stats["problems"]) == (3, 3, {})
    assert stats["tags"]["snow"] == 2
    assert list(store.items().columns)[:4] == ["concept", "name", "path", "caption"]


# concepts ----------------------------------------------------------------------------------------


def test_concepts_are_added_moved_removed_and_written(make, folder, tmp_path):
    cats = picture(tmp_path / "cats" / "x.png", caption="cat").parent
    store = make()
    store.add(folder)
    store.add(cats, balancing=2.5)
    store.duplicate(0)
    assert [concept.name for concept in store.concepts] == ["foxes", "foxes copy", "cats"]
    store.move(2, 0)
    store.remove(2)
    store.save(tmp_path / "concepts.json")
    written = json.loads((tmp_path / "concepts.json").read_text())
    assert [(c["name"], c["balancing"], c["__version"]) for c in written] == [
        ("cats", 2.5, 2),
        ("foxes", 1.0, 2),
    ]
    again = make()
    assert again.load(tmp_path / "concepts.json") == []
    assert again.concepts == store.concepts
    assert len(again.find()) == 4


def test_disabled_concepts_stay_visible(make, folder):
    store = make(folder)
    store.change(0, enabled=False)
    assert len(store.find()) == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.add(""), ValueError, "There is no folder"),
        (lambda s: s.add("/no/such"), ValueError, "/no/such does not exist"),
        (lambda s: s.add(s.concepts[0].path), ValueError, "is a concept already"),
        (lambda s: s.remove(4), ValueError, "There is no concept 4. There are 1."),
        (lambda s: s.change(0, balancing=-1), ConfigError, "balancing"),
        (lambda s: s.change(0, ballancing=1), ConfigError, "balancing"),
        (lambda s: s.find(7), ValueError, "There is no image 7. Ids are 0 to 2."),
        (lambda s: s.load("nowhere.json"), ConfigError, "does not exist"),
    ],
)
def test_a_bad_call_is_refused_in_words(make, folder, call, error, message):
    store = make(folder)
    with pytest.raises(error) as refusal:
        call(store)
    assert message in str(refusal.value)
    assert len(store.concepts) == 1
