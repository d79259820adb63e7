"""The editor's cache states, sizes and duplicates: what the page is told, and the same in code."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from modules.config import ConceptConfig, TrainConfig
from modules.data import DataProblem, build, scan
from modules.data.report import DataReport
from ot_notebook.services.concept_report import LatestReport
from ot_notebook.widgets.concept_editor import ConceptEditor
from ot_notebook.widgets.concept_findings import page
from ot_notebook.widgets.concept_page import cache_stamp


class Encoder:
    image_identity, text_identity = "vae", "clip"
    hint, hint_identity, lanes = "none", "none", 1

    def encode_images(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def encode_text(self, captions):
        return {"hidden": torch.zeros(len(captions), 1, 2)}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "foxes"
    folder.mkdir()
    for index, size in enumerate([(64, 64), (64, 64), (64, 64), (128, 64), (128, 64)]):
        coarse = np.random.default_rng(index // 2).integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(coarse).resize(size).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"fox {index}")
    return folder


@pytest.fixture
def config(folder, tmp_path):
    concepts = (ConceptConfig(name="foxes", path=str(folder)),)
    given = {"resolution": "64", "batch_size": 2, "cache_dir": str(tmp_path / "cache")}
    return TrainConfig().update(concepts=concepts, **given)


@pytest.fixture
def fill(config, tmp_path):
    def fill():
        build(
            scan(config.concepts, tmp_path / "cache"),
            Encoder(),
            tmp_path / "cache",
            resolution="64",
            quantum=8,
            bucketing=True,
            threads=1,
            report=lambda done, total: None,
            should_stop=lambda: False,
        )

    return fill


@pytest.fixture
def make(wire, config, tmp_path):
    made = []

    def make():
        editor = ConceptEditor(config, journal=tmp_path / "edits.db")
        made.append(editor)
        until(lambda: editor.store.scanned and not editor._reading.scanning)
        return editor

    yield make
    for editor in made:
        editor.close()


def until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(wire, editor, op, **content):
    wire.clear()
    editor.children[0]._handle_custom_msg({"op": op, **content}, [])
    answers = [one for one in wire.messages if one[1].get("method") == "custom"]
    return [data["content"] for _, data, _ in answers]


def test_states_of_the_cache_are_shown_filtered_and_follow_an_edit(wire, make, fill):
    fill()
    editor = make()
    front = editor.children[0]
    until(lambda: front.stats.get("cache") == {"fresh": 5})
    editor.edit("caption", where=1, text="a cat")
    assert front.stats["cache"] == {"fresh": 4, "stale": 1}
    ask(wire, editor, "filter", filter={"cache": "stale"})
    assert front.head["found"] == 1
    (rows,) = ask(wire, editor, "rows", **{"from": 0, "to": 5})
    assert [(row["name"], row["cache"]) for row in rows["rows"]] == [("1.png", "stale")]
    assert editor.items()["cache"].tolist() == ["fresh", "stale", "fresh", "fresh", "fresh"]
    editor.undo()
    assert front.stats["cache"] == {"fresh": 5}


def test_a_cache_that_is_filled_meanwhile_is_looked_into(wire, make, fill):
    editor = make()
    front = editor.children[0]
    assert front.stats["cache"] == {}
    fill()
    ask(wire, editor, "filter", filter={})
    until(lambda: front.stats["cache"] == {"fresh": 5})


def test_code_is_told_of_the_cache_without_a_page(config, fill, tmp_path):
    fill()
    editor = ConceptEditor(config, mode="core", journal=tmp_path / "edits.db")
    assert set(editor.items()["cache"]) == {"fresh"}
    editor.close()


def test_sizes_tell_what_trains_when(wire, make):
    editor = make()
    (answer,) = ask(wire, editor, "buckets")
    square, lying = sorted(answer["rows"], key=lambda row: -row["images"])
    assert (square["bucket"], square["images"], square["kept"]) == ("64x64", 3, 1.0)
    assert square["when"] == "2 batches of 2 an epoch; 1 of the places show an image again"
    assert (lying["images"], lying["batches"], lying["again"]) == (2, 1, 0)
    assert editor.buckets()["images"].sum() == 5
    editor.store.change(0, enabled=False)
    assert ask(wire, editor, "buckets")[0]["rows"] == []


def test_duplicates_are_found_in_the_background_and_listed_by_group(wire, make):
    editor = make()
    front = editor.children[0]
    ask(wire, editor, "duplicates")
    until(lambda: front.head["task"] is None and front.head["notice"])
    assert front.head["notice"]["text"] == "4 images look like another."
    assert front.head["filter"]["twins"]
    (rows,) = ask(wire, editor, "rows", **{"from": 0, "to": 5})
    # pictures 0 and 1 are of one pattern, 2 and 3 of another, though 3 is wider
    assert [(row["name"], row["twins"]) for row in rows["rows"]] == [
        ("0.png", 1),
        ("1.png", 1),
        ("2.png", 2),
        ("3.png", 2),
    ]
    assert editor.duplicates()["twins"].tolist() == [1, 1, 2, 2]


def test_a_model_is_asked_from_the_page_one_at_a_time(wire, make):
    editor = make()
    front = editor.children[0]
    given = {"kind": "wd14", "model": "/nowhere", "mode": "fill", "where": None}
    ask(wire, editor, "annotate", options={"threshold": "2"}, **given)
    assert "must be a number from 0 to 1" in front.head["notice"]["text"]
    ask(wire, editor, "annotate", options={"threshold": "0.4"}, **given | {"mode": "replace"})
    until(lambda: front.head["task"] is None and front.head["notice"])
    assert front.head["notice"]["tone"] == "bad"
    with pytest.raises(ValueError, match="is no kind of model"):
        editor.annotate("yolo")


def test_the_cache_is_told_for_the_run_that_one_asks_about(make, fill, config, folder):
    fill()
    Image.new("L", (64, 64), 255).save(folder / "2-masklabel.png")
    editor = make()
    front = editor.children[0]
    until(lambda: front.stats.get("cache") == {"fresh": 5})
    editor.config = config.update(masked_training=True)
    until(lambda: front.stats["cache"] == {"stale": 1, "fresh": 4})
    assert editor.concepts == config.concepts
    editor.config = config.update(resolution="32")
    assert set(editor.items()["cache"]) == {"stale"}
    editor.config = config.update(latent_caching=False)
    until(lambda: front.stats["cache"] == {})


def test_core_widgets_filter_by_the_state_of_the_cache(config, fill, tmp_path, wire):
    fill()
    editor = ConceptEditor(config, mode="core", journal=tmp_path / "edits.db")
    core = editor._core
    until(lambda: ("Cached (5)", "fresh") in core._filters.cache.options)
    assert core._tiles.value.count("ot-cache-fresh") == 5
    editor.edit("caption", where=1, text="a cat")
    core._filters.cache.value = "stale"
    assert core._item.options == (("1.png", 1),)
    editor.close()


def test_the_report_is_made_in_the_background_and_its_names_are_text(wire, make, folder):
    (folder / "<b>bold<b>.png").write_bytes(b"no picture")
    (folder / "4.txt").unlink()
    editor = make()
    told = [{}]

    def ready():
        told[:] = ask(wire, editor, "report")
        return told[0]["ready"]

    until(ready)
    html = told[0]["html"]
    assert "unreadable image" in html
    assert "&lt;b&gt;bold&lt;b&gt;.png" in html
    assert "<b>bold" not in html
    assert 'data-name="4.png"' in html
    assert "tokens" not in html  # no model, no tokenizer
    assert html.index("left out of training") < html.index("missing caption")


def test_a_set_that_changes_while_it_is_read_is_read_again_one_reading_at_a_time(monkeypatch):
    begun, go, done = [], threading.Semaphore(0), threading.Semaphore(0)

    def slow(_store):
        begun.append(len(begun))
        assert go.acquire(timeout=20)
        return begun[-1]

    monkeypatch.setattr("ot_notebook.services.concept_report.report_on", slow)
    latest = LatestReport(None, done.release)
    assert [latest.get(version) for version in (1, 2, 3)] == [None] * 3
    until(lambda: begun)
    assert begun == [0]
    go.release()
    assert done.acquire(timeout=20)
    assert latest.get(3) is None  # asks anew: what was read was the set before
    go.release()
    assert done.acquire(timeout=20)
    assert latest.get(3) == (1, "")


def test_what_the_report_does_not_name_it_leads_to():
    def html(kind, **given):
        paths = tuple(f"/set/{number}.png" for number in range(30))
        problem = DataProblem(kind, "is wrong.", "Mend it.", False, paths)
        return page(DataReport((), (), (), None, (), (), (problem,)), **given)

    assert 'data-problem="missing caption">and 18 more</button>' in html("missing caption")
    assert "<button" not in html("orphan caption")  # no image has it
    assert "<button" not in html("missing caption", links=False)


def test_the_report_of_code_names_captions_that_are_cut_off_and_duplicates(make, config, folder):
    (folder / "2.txt").write_text("fox " * 40)
    torn = folder / "torn.jpg"
    Image.radial_gradient("L").save(torn)
    torn.write_bytes(torn.read_bytes()[:-900])
    editor = make()
    editor.config = config.update(base_model_name="package://ot_notebook/assets/emoji")
    told = editor.report(duplicates=True)
    assert [one.paths for one in told.problems if one.skipped] == [(str(torn),)]
    assert "unreadable image" in editor.items("torn")["problems"].item()
    assert [path for path, _ in told.tokens.over] == [str(folder / "2.png")]
    assert (told.tokens.longest, told.tokens.limit) == (80, 22)
    assert len(told.duplicates) == 2
    assert "2.png (80)" in str(told)


def test_core_widgets_show_the_report(config, tmp_path, wire):
    editor = ConceptEditor(config, mode="core", journal=tmp_path / "edits.db")
    until(lambda: editor.store.scanned and not editor._reading.scanning)
    editor._core._tab.value = "Report"
    until(lambda: "An epoch shows" in editor._core._other.value)
    editor.close()


def test_a_page_that_is_open_sees_what_a_run_has_cached(wire, make, fill, monkeypatch):
    monkeypatch.setattr("ot_notebook.widgets.concept_reading.CACHE_SECONDS", 0.0)
    editor = make()
    front = editor.children[0]
    assert front.stats["cache"] == {}
    fill()
    ask(wire, editor, "beat")
    until(lambda: front.stats["cache"] == {"fresh": 5})


def test_a_cache_that_goes_while_it_is_looked_at_is_passed_over(tmp_path, monkeypatch):
    for name in ("kept", "gone"):
        (tmp_path / name).mkdir()
    listed = sorted(tmp_path.glob("*/"))
    monkeypatch.setattr(type(tmp_path), "glob", lambda *_: iter(listed))
    both = cache_stamp(tmp_path)
    (tmp_path / "gone").rmdir()
    assert cache_stamp(tmp_path) == both[1:]


def test_a_drive_of_the_cache_that_does_not_answer_is_told_once(wire, make, fill, monkeypatch):
    monkeypatch.setattr("ot_notebook.widgets.concept_reading.CACHE_SECONDS", 0.0)
    asked = "ot_notebook.widgets.concept_page.cache_stamp"

    def silent(folder):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(asked, silent)
    fill()
    editor = make()
    ask(wire, editor, "beat")
    front = editor.children[0]
    notice = front.head["notice"]
    assert "could not be looked into: [Errno 107] Transport endpoint" in notice["text"]
    ask(wire, editor, "beat")
    assert front.head["notice"] == notice
    monkeypatch.setattr(asked, cache_stamp)
    ask(wire, editor, "beat")
    until(lambda: front.stats["cache"] == {"fresh": 5})
    monkeypatch.setattr(asked, silent)
    ask(wire, editor, "beat")
    assert front.head["notice"]["number"] == notice["number"] + 1, "drawn without another cause"


@pytest.mark.parametrize(
    ("kind", "most", "limit"),
    [
        ("PIXART_ALPHA", 512, 119),
        ("PIXART_SIGMA", 512, 299),
        ("PIXART_SIGMA", 200, 199),
        ("STABLE_DIFFUSION_15", 77, 76),
        ("STABLE_DIFFUSION_15", 10**30, None),
    ],
)
def test_captions_may_be_as_long_as_both_tokenizer_and_architecture_read(
    make, config, tmp_path, kind, most, limit
):
    """A tokenizer that ends each caption with a mark, as T5's does."""
    words = Tokenizer(WordLevel({"</s>": 0, "fox": 1, "?": 2}, "?"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    (tmp_path / "tokenizer").mkdir()
    words.save(str(tmp_path / "tokenizer/tokenizer.json"))
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(f'{{"model_max_length": {most}}}')
    editor = make()
    editor.config = config.update(model_type=kind, base_model_name=str(tmp_path))
    assert editor._tokens.told("fox fox fox") == {"tokens": 3, "limit": limit}
    assert editor.report().tokens.limit == limit
