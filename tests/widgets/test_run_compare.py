"""Runs beside one another: the table, what differs, curves and same-seed samples."""

import math
import re
import sqlite3

import pytest

from modules.training import events as e
from ot_notebook.services.run_store import FILE, RunStore
from ot_notebook.widgets.overlay import COLOURS, MAX_RUNS, overlay, overlay_svg
from ot_notebook.widgets.run_compare import RunCompare


@pytest.fixture
def workspace(config, picture, tmp_path):
    """A store with three runs that ended: a is the oldest."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    store = RunStore(folder / FILE)
    for number, (name, rate) in enumerate((("a", 1e-3), ("b", 2e-3), ("c", 1e-3))):
        settings = config.update(learning_rate=rate, lora_rank=8 if name != "c" else 32)
        store.begin(name, settings.to_dict(), 1000.0 + number)
        events = []
        for step in range(1, 11):
            loss = 1.0 / step + number
            events.append(e.LossUpdate(step, 1, loss, loss, {"unet": rate}, 1.0, 8.0, 0))
            events.append(e.Progress(step, 10, 1, 1, step, 10, loss, loss, rate, 1.0, 0.0))
        events.append(picture(step=number + 1, prompt="a fox", index=number))
        if name == "b":
            events.append(picture(step=9, prompt="<b>an owl</b>", index=9))
        events.append(e.TrainingState("finished"))
        store.append(name, [(2000.0, event) for event in events])
    yield folder
    store.close()


@pytest.fixture
def compare(workspace, wire):
    compare = RunCompare(workspace)
    yield compare
    compare.close()


def say(compare, op, **given):
    compare._front._handle_custom_msg({"op": op, **given}, [])
    return compare._front.view


def key(compare, name):
    return next(run["key"] for run in compare._front.view["runs"] if run["id"] == name)


def test_the_two_newest_are_compared_at_first(compare):
    view = compare._front.view
    assert [run["id"] for run in view["runs"]] == ["c", "b", "a"]
    assert view["names"] == ["c", "b"]
    assert view["summary"] == "3 runs, 2 compared"
    assert [(run["label"], run["steps"]) for run in view["runs"]] == [("Finished", "10 of 10")] * 3
    assert [run["loss"] for run in view["runs"]] == ["2.1", "1.1", "0.1"]


def test_only_settings_that_differ_are_listed_with_the_value_of_each_run(compare):
    rows = {path: values for path, *values in compare._front.view["differences"]}
    assert rows == {"learning_rate": ["0.001", "0.002"], "lora_rank": ["32", "8"]}
    say(compare, "choose", key=key(compare, "b"), on=False)
    view = say(compare, "choose", key=key(compare, "a"), on=True)
    assert view["names"] == ["c", "a"]
    assert [row[0] for row in view["differences"]] == ["lora_rank"]
    assert len(RunCompare(compare.workspace, ["a", "c"])._front.view["differences"]) == 1


def test_a_run_keeps_its_colour_while_others_come_and_go(compare):
    before = {run["id"]: run["colour"] for run in compare._front.view["runs"]}
    assert before == {"c": 0, "b": 1, "a": None}
    view = say(compare, "choose", key=key(compare, "c"), on=False)
    assert {run["id"]: run["colour"] for run in view["runs"]} == {"c": None, "b": 1, "a": None}
    view = say(compare, "choose", key=key(compare, "a"), on=True)
    assert {run["id"]: run["colour"] for run in view["runs"]} == {"c": None, "b": 1, "a": 0}


def ends(line):
    points = [tuple(map(float, pair.split(","))) for pair in line["points"].split()]
    return points[0], points[-1]


def test_curves_share_their_axes(compare):
    view = compare._front.view["curves"]
    c, b = view["lines"]
    assert (c["name"], b["name"]) == ("c", "b")
    assert c["colour"] != b["colour"]
    assert c["dash"] != b["dash"]
    (c0, c1), (b0, b1) = ends(c), ends(b)
    left, top, right, bottom = view["frame"]
    assert c0 == (left, top), "3.0, the highest value of all, at the first step"
    assert b1 == (right, bottom), "1.1, the lowest"
    unit = (bottom - top) / (3.0 - 1.1)
    assert c1[1] == pytest.approx(top + (3.0 - 2.1) * unit, abs=0.1)
    assert b0[1] == pytest.approx(top + (3.0 - 2.0) * unit, abs=0.1)
    assert compare._front.view["caption"] == "Loss, smooth at the end: c 2.1, b 1.1."


def test_another_curve_and_a_logarithmic_axis(compare):
    view = say(compare, "metric", name="learning_rate")
    assert view["metric"] == "learning_rate"
    assert view["caption"] == "Learning rate at the end: c 0.001, b 0.002."
    say(compare, "metric", name="smooth_loss")
    view = say(compare, "log", on=True)
    _, top, _, bottom = view["curves"]["frame"]
    part = math.log10(3.0 / 2.1) / math.log10(3.0 / 1.1)
    assert ends(view["curves"]["lines"][0])[1][1] == pytest.approx(
        top + part * (bottom - top), abs=0.1
    )
    assert say(compare, "metric", name="no such")["metric"] == "smooth_loss"


def test_a_logarithmic_axis_leaves_out_what_has_no_logarithm():
    view = overlay([("a", 0, [(1, 0.0), (2, -1.0), (3, 0.1)]), ("b", 1, [(1, 0.0)])], True, "x")
    assert [len(line["points"].split()) for line in view["lines"]] == [1]
    assert overlay([], False, "x")["lines"] == []


def test_samples_of_one_prompt_and_seed_stand_side_by_side(compare):
    fox, owl = compare._front.view["samples"]
    assert (fox["prompt"], fox["seed"]) == ("a fox", 42)
    assert [cell["step"] for cell in fox["cells"]] == [3, 2]
    assert all(cell["image"] for cell in fox["cells"])
    assert owl["cells"][0] is None
    assert owl["cells"][1]["step"] == 9


def test_a_sample_whose_file_is_gone_says_so(compare, workspace):
    store = RunStore(workspace / FILE)
    for _, sample in store.events("c", "sample"):
        sample.path.unlink()
    compare._tiles.clear()
    compare.do("refresh")
    assert compare._front.view["samples"][0]["cells"][0]["image"] == b""
    assert "the file is gone" in compare.story()


def test_more_runs_than_colours_are_refused(compare):
    compare.choice.keys = [f"k{n}" for n in range(MAX_RUNS)]
    alert = say(compare, "choose", key=key(compare, "a"), on=True)["alert"]
    assert f"{MAX_RUNS} runs are compared at most" in alert["text"]


def test_the_story_escapes_prompts_and_shows_pictures(compare):
    story = compare.story()
    assert "<b>an owl" not in story
    assert "&lt;b&gt;an owl" in story
    assert story.count("data:image/png") == 3
    assert "<polyline" in story
    assert "learning_rate: 0.001 | 0.002" in compare.plain()


def test_core_widgets_do_the_same(workspace, wire):
    compare = RunCompare(workspace, mode="core")
    checks = {check.description.split(" ")[0]: check for check in compare._checks.values()}
    assert [checks[name].value for name in "abc"] == [False, True, True]
    checks["b"].value = False
    checks["a"].value = True
    assert [found for _, found in compare.choice.chosen()] == [
        next(k for k in compare._checks if k.endswith(f"|{name}")) for name in "ca"
    ]
    assert "lora_rank" in compare._rest.value
    compare._log.value = True
    assert compare.choice.log
    compare.close()


def test_a_live_run_is_read_again_and_one_that_ended_is_not(stage, compare, workspace, monkeypatch):
    reads = []
    monkeypatch.setattr(compare, "_read", lambda: reads.append(1))
    compare._read_at = -math.inf
    compare._front._handle_custom_msg({"op": "beat"}, [])
    assert reads == []
    compare._found[0].state = "training"
    compare._front._handle_custom_msg({"op": "beat"}, [])
    assert reads == [1]


def test_without_runs_it_says_what_to_do(tmp_path, wire, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare = RunCompare()
    assert compare._front.view["alert"] is None
    assert "No runs yet." in compare.story()
    missing = RunCompare(tmp_path / "nowhere")
    assert "no run has used that workspace" in missing._front.view["alert"]["text"]
    with pytest.raises(ValueError, match=r"There is no run 'x'\. Known: none"):
        RunCompare(runs=["x"])


def test_a_foreign_database_is_named_and_others_are_shown(workspace, tmp_path, wire, monkeypatch):
    (tmp_path / "other").mkdir()
    sqlite3.connect(tmp_path / "other" / FILE).execute("CREATE TABLE mine (x)").connection.close()
    monkeypatch.chdir(tmp_path)
    compare = RunCompare()
    assert len(compare._front.view["runs"]) == 3
    assert str(tmp_path / "other" / FILE) in compare._front.view["alert"]["text"]


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("ground", ["#ffffff", "#1e1f24"])
def test_every_line_can_be_told_from_its_ground(colour, ground):
    """WCAG 2.1, 1.4.11: 3 to 1 for what carries meaning."""
    dark, light = sorted((luminance(colour), luminance(ground)))
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_the_svg_is_well_formed_and_names_itself():
    import xml.etree.ElementTree as ET

    view = overlay([("a", 0, [(1, 0.5), (2, 0.2)])], False, 'loss of "a" & <b>')
    root = ET.fromstring(overlay_svg(view))
    assert root.get("aria-label") == 'loss of "a" & <b>'
    assert re.match(r"\d", root.find(".//{*}text").text)
