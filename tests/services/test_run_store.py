import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from modules.training import events as e
from ot_notebook.services.run_store import Mark, RunStore, StoreError
from ot_notebook.services.store_file import APPLICATION, SCHEMA, VERSION

HOSTILE = '<img src=x onerror="alert(1)">\x00\x1b[31m\u202e\ud83d\ude00' + "x" * 10_000

ONE_OF_EACH = [
    e.TrainingState("loading"),
    e.StatusLine(HOSTILE.encode("utf-16", "surrogatepass").decode("utf-16")),
    e.TaskProgress("caching", 3, 60),
    e.SampleImage("default", Path("/gone/a.png"), "a 'fox'; DROP TABLE runs", 7, 10, 1, 0),
    e.BackupCreated(Path("/gone/b"), 10),
    e.ModelSaved(Path("/gone/lora.safetensors"), "KOHYA_LORA", 10, True),
    e.ValidationLoss(10, 0.25, {"line art": 0.25}),
    e.SettingChanged("learning_rate", 1e-3, 5e-4, 10),
    e.Warned("careful"),
    e.RunFailed("ValueError: no", "Do this.", "Traceback ..."),
]


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "run.db")
    yield store
    store.close()


def step_events(step, loss=0.5):
    rates = {"unet": 1e-3, "text_encoder": 1e-5}
    return [
        e.LossUpdate(step, 2, loss, 0.25, rates, 1.5, 64.0, 1024),
        e.Progress(step, 300, 2, 50, 3, 6, loss, 0.25, 1e-3, 8.0, 30.0),
    ]


def test_every_kind_of_event_comes_back_equal_and_in_order(store):
    store.begin("one", {"epochs": 3}, now=5.0)
    store.append("one", [(float(n), event) for n, event in enumerate(ONE_OF_EACH)])
    assert store.events("one") == [(float(n), event) for n, event in enumerate(ONE_OF_EACH)]
    assert [event for _, event in store.events("one", "sample", "save")] == [
        ONE_OF_EACH[3],
        ONE_OF_EACH[5],
    ]
    kinds = {type(event) for event in [*ONE_OF_EACH, *step_events(1)]}
    assert kinds == set(e.EVENT_TYPES.values()), "a new event needs its place in this test"


def test_a_workspace_that_was_moved_finds_its_samples(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    sample = e.SampleImage("default", here / "samples" / "a.png", "a fox", 7, 10, 1, 0)
    elsewhere = e.ModelSaved(tmp_path / "models" / "a.safetensors", "KOHYA_LORA", 10, True)
    store = RunStore(here / "run.db")
    store.begin("one", {}, now=0)
    store.append("one", [(0.0, sample), (0.0, elsewhere)])
    store.close()
    here.rename(there)
    moved, same = (event for _, event in RunStore(there / "run.db").events("one"))
    assert moved.path == there / "samples" / "a.png"
    assert same == elsewhere


def test_steps_are_rows_of_numbers_also_when_their_events_come_apart(store):
    store.begin("one", {}, now=0)
    loss, progress = step_events(1)
    store.append("one", [(1.0, loss)])
    store.append("one", [(1.1, progress), *((2.0, event) for event in step_events(2, math.nan))])
    frame = store.metrics("one")
    first = frame.iloc[0].to_dict()
    assert first["loss"] == 0.5
    assert first["grad_norm"] == 1.5
    assert first["steps_per_second"] == 8.0
    assert first["learning_rate"] == 1e-3
    assert first["learning_rate.text_encoder"] == 1e-5
    assert first["peak_memory"] == 1024
    assert frame["step"].tolist() == [1, 2]
    assert math.isnan(frame["loss"][1])
    assert store.last_progress("one")[1].max_epoch_step == 6


def test_runs_know_their_state_start_and_end(store):
    store.begin("one", {"epochs": 3}, now=5.0)
    store.append("one", [(6.0, e.TrainingState("training"))])
    run = store.run("one")
    assert (run.state, run.started, run.ended, run.config) == ("training", 5.0, None, {"epochs": 3})
    store.append("one", [(9.0, e.TrainingState("finished"))])
    assert (store.run("one").state, store.run("one").ended) == ("finished", 9.0)
    store.begin("two", {}, now=10.0)
    assert [each.id for each in store.runs()] == ["one", "two"]


def test_a_deleted_run_leaves_nothing_and_others_alone(store):
    for name in ("one", "two"):
        store.begin(name, {}, now=0)
        store.append(name, [(0.0, event) for event in step_events(1)])
    store.delete("one")
    assert [each.id for each in store.runs()] == ["two"]
    assert len(store.metrics("two")) == 1
    with pytest.raises(KeyError, match="No run 'one'"):
        store.metrics("one")


def test_append_is_all_or_nothing(store):
    store.begin("one", {}, now=0)
    broken = e.StatusLine(object())  # JSON has no such thing
    with pytest.raises(Exception, match="serialize"):
        store.append("one", [(0.0, e.StatusLine("a")), (0.0, broken)])
    assert store.events("one") == []


def test_a_file_that_is_no_database_is_refused_and_not_touched(store):
    store.path.write_text("my shopping list")
    with pytest.raises(StoreError, match=r"run\.db cannot be used: .*Move that file away"):
        store.begin("one", {}, now=0)
    assert store.path.read_text() == "my shopping list"


def test_a_database_of_another_program_is_refused_and_not_touched(store):
    with sqlite3.connect(store.path) as other:
        other.execute("CREATE TABLE runs (recipe TEXT)")
    before = store.path.read_bytes()
    for use in (lambda: store.begin("one", {}, now=0), store.runs):
        with pytest.raises(StoreError, match=r"database of another program.*Move it away"):
            use()
    assert store.path.read_bytes() == before


def test_a_store_of_a_later_version_is_refused_with_both_versions(store):
    store.begin("one", {}, now=0)
    store.close()
    with sqlite3.connect(store.path) as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="has format 99; this version of ot_notebook reads 2"):
        store.runs()


def test_a_store_of_the_first_version_is_read_as_it_is_and_written_to_as_one_of_this(store):
    store.begin("one", {}, now=0)
    store.append("one", [(0.0, event) for event in step_events(1)])
    store.close()
    with sqlite3.connect(store.path) as raw:
        raw.execute("ALTER TABLE metrics DROP COLUMN corrected_loss")
        raw.execute("PRAGMA user_version = 1")
    before = store.path.read_bytes()
    old = RunStore(store.path)
    assert old.metrics("one")["loss"].tolist() == [0.5]
    assert old.metrics("one")["corrected_loss"].isna().all()
    assert "corrected_loss" not in {name for name, *_ in old.curves("one")}
    assert old.last_progress("one")[1].step == 1
    assert store.path.read_bytes() == before, "a reader changes nothing"
    update, progress = step_events(2)
    update = replace(update, corrected_loss=0.125)
    old.append("one", [(1.0, update), (1.0, progress)])
    assert old.metrics("one")["corrected_loss"].tolist()[1:] == [0.125]
    assert old.since("one", Mark(0, 1))[0][0][1] == update
    old.close()
    with sqlite3.connect(store.path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (2,)


@pytest.mark.parametrize("version", [0, 1])
def test_a_file_that_two_kernels_open_at_once_is_made_or_upgraded_once(tmp_path, version):
    path = tmp_path / "run.db"
    with closing(sqlite3.connect(path)) as other:
        if version:
            other.executescript(
                f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = 1; {SCHEMA}"
                "ALTER TABLE metrics DROP COLUMN corrected_loss;"
            )
        other.execute("BEGIN IMMEDIATE")  # the other is in the midst of it
        failed = []

        def enter():
            try:
                RunStore(path).begin("one", {}, now=0)
            except StoreError as error:
                failed.append(error)

        kernel = threading.Thread(target=enter)
        kernel.start()
        time.sleep(0.2)
        if version:
            other.execute("ALTER TABLE metrics ADD COLUMN corrected_loss REAL")
        else:
            other.execute(f"PRAGMA application_id = {APPLICATION}")
            for line in filter(str.strip, SCHEMA.split(";")):
                other.execute(line)
        other.execute(f"PRAGMA user_version = {VERSION}")
        other.commit()
        kernel.join(20)
    assert failed == []
    assert [one.id for one in RunStore(path).runs()] == ["one"]


def test_a_folder_that_refuses_writing_is_named(tmp_path):
    store = RunStore(tmp_path / "nowhere" / "run.db")
    with pytest.raises(StoreError, match=r"nowhere.run\.db cannot be used"):
        store.begin("one", {}, now=0)


def test_a_reader_works_while_a_writer_writes(store):
    store.begin("one", {}, now=0)
    done = threading.Event()

    def write():
        try:
            for step in range(1, 200):
                store.append("one", [(0.0, event) for event in step_events(step)])
        finally:
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    lengths = []
    while not done.is_set():
        lengths.append(len(RunStore(store.path).metrics("one")))
    thread.join()
    assert lengths == sorted(lengths)
    assert len(store.metrics("one")) == 199


WRITER = """
import sys, time
from pathlib import Path
from modules.training.events import LossUpdate
from ot_notebook.services.run_store import RunStore
store = RunStore(Path(sys.argv[1]))
store.begin("one", {}, time.time())
step = 0
while True:
    batch = [LossUpdate(step + n, 1, 0.5, 0.5, {"unet": 1e-3}, 1.0, 8.0, 0) for n in range(1, 51)]
    store.append("one", [(time.time(), event) for event in batch])
    step += 50
    print(step, flush=True)
"""


def test_kill_9_leaves_all_that_was_delivered(tmp_path):
    path = tmp_path / "run.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    for _ in range(20):
        said = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    said = max([said, *map(int, writer.stdout.read().split())])
    writer.wait()
    writer.stdout.close()
    frame = RunStore(path).metrics("one")
    assert len(frame) >= said
    assert frame["step"].tolist() == list(range(1, len(frame) + 1))
    after = RunStore(path)
    after.append("one", [(time.time(), e.Warned("goes on"))])
    after.close()


@pytest.mark.slow
def test_a_million_steps_stay_quick(store):
    from ot_notebook.services.history import History
    from ot_notebook.services.replay import replay
    from ot_notebook.services.run import Run

    store.begin("one", {}, now=0)
    history, count, batch = History(), 1_000_000, 1000
    spent = 0.0
    for first in range(1, count + 1, batch):
        events = [
            e.LossUpdate(step, 1, step % 97, 0.5, {"unet": 1e-3}, 1.0, 8.0, 0)
            for step in range(first, first + batch)
        ]
        for event in events:
            history.add(event, 0.0)
        began = time.perf_counter()
        store.append("one", [(0.0, event) for event in events])
        if first % 20_000 == 1:
            store.save_curves("one", history.curves())
        spent += time.perf_counter() - began
    assert spent / count < 1e-3
    began = time.perf_counter()
    steps, values = replay(Run("one", RunStore(store.path))).points("loss", 2000)
    took = time.perf_counter() - began
    assert took < 0.3, f"{took:.3f} s for the first chart"
    assert (steps[0], steps[-1], values.max()) == (1, count, 96)
