import csv
import re
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

import ot_notebook as ot
from modules.training import events as e
from ot_notebook.cli import app
from ot_notebook.services.run_store import RunStore, StoreError

HOSTILE = (
    '<script>alert(1)</script><img src=x onerror="alert(2)">&amp;\x00\x1b[31m\u202e"\'</style>'
)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, text):
        self.text.append(text)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture
def finished(stage, tmp_path):
    """A run that took three steps, with two samples of which one file is gone."""
    from PIL import Image

    folder = tmp_path / "workspace" / "samples"
    handle = stage.start()
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    stage.run.enter("training")
    for step in range(1, 4):
        stage.run.step(step, loss=1 / step, last=3)
    for name, step in (("a.png", 1), ("gone.png", 3)):
        stage.run.emit(e.SampleImage("default", folder / name, HOSTILE, 7, step, 1, 0))
    stage.run.emit(e.Warned(HOSTILE))
    stage.run.emit(e.ModelSaved(tmp_path / "lora.safetensors", "KOHYA_LORA", 3, True))
    stage.run.end()
    return handle.wait()


def test_runs_lists_what_ran_below_the_current_folder(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for table in (ot.runs(), ot.runs(tmp_path / "workspace")):
        (row,) = table.to_dict("records")
        assert (row["id"], row["state"]) == (finished.id, "finished")
        assert (row["step"], row["max_step"], row["smooth_loss"]) == (3, 3, 1 / 3)
        assert row["ended"] >= row["started"]
        assert row["workspace"] == str(tmp_path / "workspace")


def test_a_run_is_read_back_by_its_id(finished, tmp_path):
    run = ot.run(finished.id, tmp_path / "workspace")
    assert run.config == finished.config
    assert run.metrics().equals(finished.metrics())
    samples = run.samples()
    assert samples["step"].tolist() == [1, 3]
    assert samples["prompt"].tolist() == [HOSTILE] * 2
    assert run.wait() is run


def test_a_workspace_at_rest_holds_one_plain_file(finished, tmp_path):
    finished.metrics()
    ot.runs(tmp_path / "workspace")
    assert [path.name for path in (tmp_path / "workspace").glob("run*")] == ["run.db"]


def test_unknown_runs_and_workspaces_are_named(finished, tmp_path, monkeypatch):
    with pytest.raises(KeyError, match=r"No run 'x' in .*run\.db.*ot\.runs\(\) lists"):
        ot.run("x", tmp_path / "workspace")
    with pytest.raises(FileNotFoundError, match=r"nowhere.run\.db does not exist"):
        ot.runs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert ot.runs().empty
    with pytest.raises(KeyError, match=r"No run 'x' in any run\.db below .*empty"):
        ot.run("x")


def test_a_foreign_file_of_that_name_hides_nothing(finished, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.db").write_text("my shopping list")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"Passed over: .*run\.db cannot be used"):
        assert ot.runs()["id"].tolist() == [finished.id]
    with pytest.raises(StoreError, match="Move that file away"):
        ot.runs(tmp_path / "a")
    assert (tmp_path / "a" / "run.db").read_text() == "my shopping list"


def test_the_report_is_one_file_in_which_foreign_text_stays_text(finished, tmp_path):
    path = finished.report(tmp_path / "report.html")
    page, text = read(path), path.read_text(encoding="utf-8")
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert page.tags.count("img") == 1
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes
               if name in ("src", "href"))  # fmt: skip
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)
    said = "".join(page.text)
    assert said.count("<script>alert(1)</script>") == 2, "prompt and warning, as text"
    assert "gone.png is gone" in said
    assert "3 of 3" in said
    assert "lora.safetensors" in said
    assert "polyline" in page.tags
    assert "base_model_name" in said
    assert '"line art"' in said
    assert said.count("batch_size") == 2, "as a setting that was changed, and among all of them"


def test_an_export_is_read_by_other_programs_and_a_deleted_run_is_gone(finished, tmp_path):
    folder = finished.export(tmp_path / "export")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "metrics.csv",
        "report.html",
        "samples.csv",
    ]
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["1.0", "0.5", str(1 / 3)]
    assert ot.TrainConfig.load(folder / "config.json")[0] == finished.config
    with pytest.raises(FileExistsError, match="export exists already"):
        finished.export(folder)
    finished.delete()
    assert ot.runs(tmp_path / "workspace").empty
    assert (tmp_path / "workspace" / "samples" / "a.png").is_file()


def test_a_live_run_is_not_deleted(stage):
    handle = stage.start()
    with pytest.raises(RuntimeError, match=r"is loading\. Stop it before you delete it"):
        handle.delete()


def test_a_failed_run_has_a_report_with_its_advice(stage, tmp_path):
    handle = stage.start()
    stage.run.emit(e.RunFailed("ValueError: no <b>", "Do this."))
    stage.run.end("failed")
    said = "".join(read(handle.report()).text)
    assert "ValueError: no <b>" in said
    assert "Do this." in said
    assert "No step was taken." in said


def test_the_command_line_lists_runs_with_ids_to_copy(finished, tmp_path):
    answer = CliRunner().invoke(app, ["runs", str(tmp_path / "workspace")])
    assert answer.exit_code == 0
    assert finished.id in answer.output
    assert "finished" in answer.output
    answer = CliRunner().invoke(app, ["runs", str(tmp_path / "nowhere")])
    assert answer.exit_code == 1
    assert "does not exist" in answer.output


def test_a_clock_that_was_set_back_hides_no_run_behind_an_older_one(tmp_path, monkeypatch):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    times = {
        "one": [("first", 5000.0), ("second", 1000.0), ("third", 1500.0)],
        "two": [("x", 4000.0)],
    }
    for place, began in times.items():
        store = RunStore(tmp_path / place / "run.db")
        for name, now in began:
            store.begin(name, {}, now)
            store.append(name, [(now - 60.0, e.TrainingState("finished"))])
        store.close()
    monkeypatch.chdir(tmp_path)
    assert ot.runs()["id"].tolist() == ["third", "second", "first", "x"]
    assert ot.runs("one")["id"].tolist() == ["third", "second", "first"]
    assert "the clock was set back" in ot.run("first").report().read_text()
