"""What each command does in each state of a run, and why it is refused in the others."""

import threading
import time

import pytest

from modules.config import ConfigError
from modules.training import commands as c
from modules.training import events as e
from ot_notebook.services.refusals import CommandRefused
from ot_notebook.services.run import Run
from ot_notebook.services.run_store import RunStore

STEPPING = {"training", "paused", "sampling", "saving"}
LIVE = {"loading", "caching"} | STEPPING
PATHS = {
    "idle": [],
    "loading": ["loading"],
    "caching": ["loading", "caching"],
    "training": ["loading", "caching", "training"],
    "paused": ["loading", "caching", "training", "paused"],
    "sampling": ["loading", "caching", "training", "sampling"],
    "saving": ["loading", "caching", "training", "saving"],
    "stopping": ["loading", "caching", "training", "stopping"],
    "finished": ["loading", "training", "saving", "finished"],
    "stopped": ["loading", "stopping", "stopped"],
    "failed": ["loading", "failed"],
}
ALLOWED = {
    "start": {"idle", "finished", "stopped", "failed"},
    "preflight": {"idle", "finished", "stopped", "failed"},
    "stop": LIVE,
    "pause": STEPPING - {"paused"},
    "resume": {"paused"},
    "sample_default": STEPPING,
    "sample": STEPPING,
    "set": STEPPING,
    "backup": STEPPING,
    "save": STEPPING,
    "use_model": STEPPING,
    "paused": STEPPING,
    "show": {"idle", "finished", "stopped", "failed"},
}
REASONS = {
    "idle": "no run has been started",
    "loading": "the run is still loading",
    "caching": "the run is still caching its training set",
    "training": "the run is not paused",
    "sampling": "the run is not paused",
    "saving": "the run is not paused",
    "paused": "the run is paused already",
    "stopping": "the run is stopping",
    "finished": "the run has finished",
    "stopped": "the run has stopped",
    "failed": "the run has failed",
}
TOLD = {
    "sample_default": c.SampleDefault(),
    "set": c.ChangeSetting("learning_rate", 5e-4),
    "backup": c.Backup(),
    "save": c.Save(),
}


def bring_to(stage, state):
    if not PATHS[state]:
        return
    stage.start()
    for each in PATHS[state][1:]:
        if each == "stopping":
            stage.service.stop()
        elif each in e.ENDED:
            stage.run.end(each)
        else:
            stage.run.enter(each)
    stage.service.flush()
    assert stage.service.state == state


@pytest.fixture
def older_run(tmp_path):
    """A run of another workspace, which has ended."""
    (tmp_path / "older").mkdir()
    store = RunStore(tmp_path / "older" / "run.db")
    store.begin("older", {}, time.time())
    store.append("older", [(time.time(), e.TrainingState("finished"))])
    store.close()
    return Run("older", store)


@pytest.mark.parametrize("command", ALLOWED)
@pytest.mark.parametrize("state", PATHS)
def test_every_command_in_every_state(stage, older_run, sample, state, command):
    bring_to(stage, state)
    service = stage.service
    use = lambda _family, _parts: None  # noqa: E731
    arguments = {
        "start": [stage.config],
        "preflight": [stage.config.update(base_model_name="/nowhere")],  # no model to load
        "sample": [sample],
        "set": ["learning_rate", 5e-4],
        "use_model": [use],
        "paused": [0.01],  # seconds to wait for the step's end
        "show": [older_run],
    }.get(command, [])

    def ask():
        answer = getattr(service, command)(*arguments)
        if command == "paused":
            with answer:
                pass

    if state not in ALLOWED[command]:
        of_runs = command in ("start", "preflight", "show")
        reason = "a run is" if of_runs else REASONS[state]
        with pytest.raises(CommandRefused, match=rf"^{command}(\(\))? is refused: .*{reason}"):
            ask()
        service.flush()
        assert service.state == state
        return
    if command == "paused" and state != "paused":
        with pytest.raises(TimeoutError, match=f"still {state}"):  # nobody ends the step here
            ask()
        assert not stage.run.commands.pause_requested, "it lets go"
        return
    ask()
    service.flush()
    if command == "show":
        assert (service.run.id, service.state) == (older_run.id, "finished")
        return
    if command == "preflight":
        assert service.state == state
        assert not service.trial.fits
        return
    told = stage.run.commands
    match command:
        case "start":
            assert service.state == "loading"
        case "stop":
            assert told.stop_requested
            assert service.state == "stopping"
        case "use_model":
            assert told.take() == c.UseModel(use)
        case "paused":
            assert service.state == "paused"
        case "pause" | "resume":
            assert told.pause_requested == (command == "pause")
        case "sample":
            assert told.take() == c.SampleCustom(sample)
        case _:
            assert told.take() == TOLD[command]


def test_resume_right_after_pause_needs_no_step_between(stage):
    bring_to(stage, "training")
    stage.service.pause()
    stage.service.resume()
    assert not stage.run.commands.pause_requested


def test_set_refuses_at_once_what_the_config_does_not_take(stage):
    bring_to(stage, "training")
    for setting, value in (("learning_rat", 1e-4), ("learning_rate", "fast")):
        with pytest.raises(ConfigError, match="learning_rate"):
            stage.service.set(setting, value)
    with pytest.raises(ConfigError, match="epochs is fixed when a run starts"):
        stage.service.set("epochs", 9)
    with pytest.raises(ConfigError, match="are all 0"):
        stage.service.set("mse_strength", 0.0)
    assert stage.run.commands.take() is None


def test_set_counts_with_what_was_asked_for_before(stage):
    bring_to(stage, "training")
    stage.service.set("mae_strength", 1.0)
    stage.service.set("mse_strength", 0.0)  # the other takes its place at the next step
    asked = [stage.run.commands.take() for _ in range(2)]
    assert asked == [c.ChangeSetting("mae_strength", 1.0), c.ChangeSetting("mse_strength", 0.0)]


def test_what_was_refused_by_the_run_is_not_counted_with(stage):
    bring_to(stage, "training")
    stage.service.set("mae_strength", 1.0)
    stage.run.commands.take()  # and the run says no
    with pytest.raises(ConfigError, match="are all 0"):
        stage.service.set("mse_strength", 0.0)


def test_a_stop_reaches_a_run_again_that_waits_for_room_on_the_disk(stage):
    bring_to(stage, "stopping")
    commands, ended = stage.run.commands, []
    waiting = threading.Thread(target=lambda: ended.append(commands.wait(60)))
    waiting.start()
    while not commands.waiting:
        time.sleep(0.01)
    stage.service.stop()
    waiting.join(5)
    assert ended == [True]
    with pytest.raises(CommandRefused, match="is stopping"):
        stage.service.stop()


def test_paused_gives_the_trainer_between_steps_and_lets_go_also_after_an_error(stage):
    bring_to(stage, "training")
    holder = threading.Timer(0.05, lambda: stage.run.enter("paused"))
    holder.start()

    def poke():
        with stage.service.paused() as trainer:
            assert trainer is stage.run.trainer
            assert stage.run.commands.pause_requested
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        poke()
    assert not stage.run.commands.pause_requested


def test_paused_leaves_a_paused_run_paused(stage):
    bring_to(stage, "training")
    stage.service.pause()
    stage.run.enter("paused")
    with stage.service.paused():
        pass
    assert stage.run.commands.pause_requested


def test_paused_is_refused_when_the_run_ends_first(stage):
    bring_to(stage, "training")
    threading.Timer(0.05, lambda: stage.run.end("finished")).start()
    with pytest.raises(CommandRefused, match="the run has finished"), stage.service.paused():
        pass
