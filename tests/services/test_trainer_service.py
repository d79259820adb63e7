import statistics
import time
from pathlib import Path

import psutil
import pytest
import traitlets

from modules.config import ConfigError
from modules.training import events as e
from ot_notebook.services.run import RunFailedError
from ot_notebook.services.trainer_service import TrainerService


def eventually(condition, seconds=5):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_traits_follow_the_run_and_numbers_come_before_the_state_they_led_to(stage):
    seen = []
    stage.service.observe(lambda change: seen.append((change.new, stage.service.step)), "state")
    handle = stage.start()
    assert stage.service.run is handle
    stage.run.enter("caching")
    stage.run.emit(e.TaskProgress("caching", 3, 60))
    stage.service.flush()
    assert stage.service.task == e.TaskProgress("caching", 3, 60)
    stage.run.enter("training")
    for number in range(1, 301):
        stage.run.step(number, loss=1 / number)
    stage.run.end()
    stage.service.flush()
    service = stage.service
    assert seen == [("loading", 0), ("caching", 0), ("training", 0), ("finished", 300)]
    assert (service.step, service.max_step, service.max_epoch) == (300, 300, 5)
    assert service.loss == service.smooth_loss == 1 / 300
    assert service.progress.step == 300
    assert service.task is None
    assert service.history.points("loss", 10**6)[1].tolist() == [1 / n for n in range(1, 301)]
    assert handle.metrics()["loss"].tolist() == [1 / n for n in range(1, 301)]
    assert handle.wait(5) is handle
    assert "finished, step 300 of 300" in repr(handle)


def test_everything_arrives_without_a_flush(stage):
    stage.service.start(stage.config)
    stage.run.enter("training")
    stage.run.step(7)
    assert eventually(lambda: stage.service.step == 7)


def test_traits_belong_to_the_dispatcher(stage):
    with pytest.raises(traitlets.TraitError, match="read-only"):
        stage.service.state = "training"


def test_a_second_run_begins_with_nothing_of_the_first(stage):
    first = stage.start()
    stage.run.enter("training")
    stage.run.step(5)
    stage.run.emit(e.RunFailed("ValueError: no", "Do this."))
    stage.run.end("failed")
    stage.service.flush()
    lines = [line.number for line in stage.service.history.log]
    second = stage.start()
    service = stage.service
    assert service.run is second
    assert (service.step, service.loss, service.error, service.state) == (0, None, None, "loading")
    assert len(service.history.points("loss", 10)[0]) == 0
    assert min(line.number for line in service.history.log) > max(lines)
    assert first.state == "failed"
    assert len(first.metrics()) == 1


def test_waiting_for_a_failed_run_gives_its_error_and_advice(stage):
    handle = stage.start()
    stage.run.emit(e.RunFailed("ValueError: resolution is 7", "Use 64."))
    stage.run.end("failed")
    with pytest.raises(RunFailedError, match=r"ValueError: resolution is 7\nUse 64\."):
        handle.wait()
    assert stage.service.error.advice == "Use 64."


def test_waiting_gives_up_after_its_time(stage):
    handle = stage.start()
    with pytest.raises(TimeoutError, match=r"is still loading after 0\.01 s"):
        handle.wait(0.01)


def test_observers_that_raise_are_reported_and_change_nothing_else(stage):
    batches, steps, states = [], [], []
    service = stage.service

    def broken_trait(change):
        raise KeyError("trait")

    def broken_reader(events):
        raise KeyError("reader")

    service.observe(broken_trait, "state")
    service.observe(lambda change: states.append(change.new), "state")
    service.subscribe(broken_reader)
    service.subscribe(batches.extend)

    @service.on("step")
    def broken_handler(update):
        raise KeyError("handler")

    service.on("step")(lambda update: steps.append(update.step))
    stage.start()
    stage.run.enter("training")
    for number in range(1, 4):
        stage.run.step(number)
        service.flush()
    assert states == ["loading", "training"]
    assert steps == [1, 2, 3]
    assert [event.step for event in batches if isinstance(event, e.LossUpdate)] == [1, 2, 3]
    warnings = [line.text for line in service.history.log if line.level == "warning"]
    assert len(warnings) == 3, "each once, however often it raised"
    for name in ("broken_trait", "broken_reader", "broken_handler"):
        (about,) = (text for text in warnings if name in text)
        assert "raised KeyError" in about
        assert "test_trainer_service.py, line" in about
    assert len(service.run.events("warning")) == 3


def test_unobserve_and_unsubscribe_and_off_end_it(stage):
    seen = []

    def observer(change):
        seen.append(change.new)

    service = stage.service
    service.observe(observer, "state")
    service.unobserve(observer, "state")
    service.subscribe(seen.extend)()
    service.off(service.on("state")(observer))
    stage.start()
    assert seen == []


def test_on_takes_classes_names_and_every(stage, tmp_path):
    service, steps, samples, second = stage.service, [], [], []
    service.on("step", every=50)(lambda update: steps.append(update.step))
    service.on(e.SampleImage)(samples.append)
    service.on("sample", every=2)(second.append)
    stage.start()
    for number in range(37, 160):
        stage.run.step(number)
    made = [e.SampleImage("default", tmp_path / f"{n}.png", "a fox", n, 1, 1, 0) for n in range(4)]
    for each in made:
        stage.run.emit(each)
    service.flush()
    assert steps == [50, 100, 150]
    assert samples == made
    assert second == [made[1], made[3]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("steps",), "'steps' is no event. Use one of state, "), (("step", 0), "every is 0")],
)
def test_on_refuses_what_makes_no_sense(stage, arguments, words):
    with pytest.raises(ValueError, match=words):
        stage.service.on(*arguments)


def test_an_observer_may_command_and_flush(stage):
    service = stage.service

    @service.on("step")
    def stop_when_good(update):
        if update.loss < 0.1 and not stage.run.commands.stop_requested:
            service.stop()
            service.flush()

    stage.start()
    stage.run.enter("training")
    stage.run.step(1, loss=0.05)
    assert eventually(lambda: service.state == "stopping")


def test_a_stop_wins_against_states_that_the_trainer_was_on_its_way_to(stage):
    stage.start()
    stage.service.stop()
    stage.run.enter("caching", "training")
    stage.service.flush()
    assert stage.service.state == "stopping"
    stage.run.enter("saving")
    stage.run.end("stopped")
    stage.service.flush()
    assert stage.service.state == "stopped"


def test_start_refuses_what_cannot_run_before_anything_happens(stage):
    for bad in (stage.config.update(concepts=[]), stage.config.update(base_model_name="/nowhere")):
        with pytest.raises(ConfigError):
            stage.service.start(bad)
    with pytest.raises(TypeError, match="start\\(\\) was given a NoneType"):
        stage.service.start(None)
    assert stage.runs == []
    assert stage.service.state == "idle"


def test_start_names_a_workspace_that_cannot_be_used(stage, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"workspace_dir: .*file.*cannot be"):
        stage.service.start(stage.config.update(workspace_dir=str(tmp_path / "file" / "in")))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "run.db").write_text("my shopping list")
    with pytest.raises(ConfigError, match=r"workspace_dir: .*Move that file away"):
        stage.service.start(stage.config.update(workspace_dir=str(foreign)))
    assert (foreign / "run.db").read_text() == "my shopping list"
    assert stage.runs == []


def test_a_store_that_vanishes_is_reported_and_the_run_goes_on(stage):
    handle = stage.start()
    stage.run.enter("training")
    stage.service.flush()
    handle.store.close()
    handle.store.path.write_bytes(b"overwritten by something else" * 100)
    stage.run.step(1)
    stage.service.flush()
    stage.service.flush()
    assert stage.service.step == 1
    assert stage.service.state == "training"
    (warning,) = (line.text for line in stage.service.history.log if line.level == "warning")
    assert "history is not being saved" in warning
    assert "run.db cannot be used" in warning
    handle.store.path.unlink()


def test_a_store_that_is_removed_begins_anew_and_the_user_is_told(stage):
    handle = stage.start()
    steps = range(1, 4)
    stage.run.enter("training")
    for number in steps:
        stage.run.step(number)
        stage.service.flush()
        if number == 1:
            for left in handle.workspace.glob("run.db*"):
                left.unlink()
    stage.run.end()
    stage.service.flush()
    stage.service.flush()
    assert handle.metrics()["step"].tolist() == [2, 3]
    assert handle.state == "finished"
    (warning,) = handle.events("warning")
    assert "run.db was removed while it was in use" in warning.message


def test_text_from_outside_arrives_as_it_is(stage):
    hostile = "<script>alert(1)</script>\x00\x1b[31m\u202e" + "x" * 1_000_000
    handle = stage.start()
    stage.run.emit(e.StatusLine(hostile))
    stage.run.emit(e.Warned(hostile))
    stage.service.flush()
    assert stage.service.status == hostile
    assert handle.events("warning") == [e.Warned(hostile)]


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_5000_steps_a_second_lose_nothing_and_do_not_hold_the_trainer(stage, seconds):
    messages = []
    stage.service.subscribe(messages.append)
    handle = stage.start()
    stage.run.enter("training")
    count, spent = 5000 * seconds, 0.0
    began = time.perf_counter()
    for number in range(1, count + 1):
        before = time.thread_time()
        stage.run.step(number, loss=number % 97, last=count)
        spent += time.thread_time() - before
        if number % 50 == 0:
            time.sleep(max(0.0, began + number / 5000 - time.perf_counter()))
    took = time.perf_counter() - began
    stage.run.end()
    stage.service.flush()
    frame = handle.metrics()
    assert frame["step"].tolist() == list(range(1, count + 1))
    assert frame["loss"].tolist() == [number % 97 for number in range(1, count + 1)]
    assert stage.service.state == "finished"
    assert stage.service.step == count
    assert len(messages) <= 10 * took + 5
    assert spent / count < 100e-6, (
        "seconds of the trainer's own thread for the two events of a step"
    )


@pytest.mark.slow
def test_a_long_run_does_not_fill_the_memory(stage):
    """Eight hours at 10 steps a second, and a sample a minute."""
    process = psutil.Process()
    stage.start()
    stage.run.enter("training")
    sizes, count = [], 8 * 3600 * 10
    for number in range(1, count + 1):
        stage.run.step(number, last=count)
        if number % 600 == 0:
            path = Path(f"/gone/{number}.png")
            stage.run.emit(e.SampleImage("default", path, "a fox", 1, number, 1, 0))
            stage.service.flush()
            sizes.append(process.memory_info().rss)
    tenth = len(sizes) // 10
    growth = statistics.median(sizes[-tenth:]) - statistics.median(sizes[tenth : 2 * tenth])
    assert growth < 20 * 2**20


def test_a_run_that_cannot_begin_leaves_its_workspace_free(stage):
    working, stage.service._execute = stage.service._execute, None
    with pytest.raises(TypeError):
        stage.service.start(stage.config)
    stage.service.flush()
    assert stage.service.state == "failed"
    stage.service._execute = working
    stage.start()


def test_two_services_do_not_share_anything(stage):
    other = TrainerService(stage._execute)
    stage.start()
    other.flush()
    assert (other.state, other.run) == ("idle", None)
    other.close()
