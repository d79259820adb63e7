"""Stop, pause, requests and changes, in every state."""

import threading

import pytest
import torch

from modules.config import SampleConfig, TimeUnit, TrainConfig
from modules.training import events as e
from modules.training.due import Due, Schedule, freeze_finished

SAMPLE = {"prompt": "a card", "height": 64, "width": 64, "diffusion_steps": 50, "seed": 1}


def stop_at(test):
    """React by a stop when an event passes the test."""

    def react(event, commands):
        if test(event):
            commands.stop()

    return react


def test_stop_while_loading(make_config, train):
    run = train(make_config(), stop_at(lambda event: event == e.TrainingState("loading")))
    assert run.states == ["loading", "stopped"]
    assert run.losses == {}


def test_stop_while_caching(make_config, train, tmp_path):
    config = make_config(cache_dir=str(tmp_path / "empty"))
    run = train(config, stop_at(lambda event: isinstance(event, e.TaskProgress)))
    assert run.states == ["loading", "caching", "stopped"]
    assert run.of(e.ModelSaved) == []


def test_stop_while_training_saves_what_was_learned(make_config, train):
    run = train(
        make_config(epochs=50),
        stop_at(lambda event: isinstance(event, e.LossUpdate) and event.step == 2),
    )
    assert list(run.losses) == [1, 2]
    assert run.of(e.ModelSaved)[0].final
    assert run.states[-1] == "stopped"


def test_stop_while_sampling_ends_the_picture(make_config, train):
    steps = []

    def react(event, commands):
        if isinstance(event, e.TaskProgress) and event.task == "sampling":
            steps.append(event.done)
            if event.done == 3:
                commands.stop()

    run = train(make_config(samples=[SAMPLE, SAMPLE], sample_after_unit="ALWAYS"), react)
    assert steps == [1, 2, 3]
    assert run.of(e.SampleImage) == []
    assert run.states[-1] == "stopped"


def test_stop_while_paused(make_config, train):
    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.pause()
        if event == e.TrainingState("paused"):
            threading.Timer(0.05, commands.stop).start()

    run = train(make_config(epochs=50), react)
    assert list(run.losses) == [1, 2]
    assert run.states[-4:] == ["paused", "stopping", "saving", "stopped"]


def test_a_paused_run_serves_requests_and_holds_no_gradient(make_config, make_run):
    seen = []

    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.pause()
        if event == e.TrainingState("paused"):
            parameters = run.trainer.model.unet.parameters()
            seen.append(any(p.grad is not None for p in parameters))
            if len(seen) == 1:
                commands.save()
            else:
                threading.Timer(0.05, commands.resume).start()

    run = make_run(make_config(epochs=1), react)
    run.go()
    assert seen == [False, False]
    first, final = run.of(e.ModelSaved)
    assert (first.final, first.step) == (False, 2)
    assert (final.final, final.step) == (True, 3)


def test_changes_apply_at_the_next_step(make_config, train):
    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.set("learning_rate", 5e-4)
            commands.set("clip_grad_norm", None)
            commands.set("mae_strength", 1.0)
            commands.set("mse_strength", 0.0)

    run = train(make_config(epochs=2), react)
    rates = [event.learning_rate["unet"] for event in run.of(e.LossUpdate)]
    assert rates == [1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 5e-4]
    assert [event.setting for event in run.of(e.SettingChanged)] == [
        "learning_rate", "clip_grad_norm", "mae_strength", "mse_strength",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("epochs", 5, "fixed when a run starts"),
        ("learning_rat", 1e-4, "learning_rate"),
        ("unet", {"learning_rate": 1e-4}, "unet is fixed when a run starts"),
        ("unet.train_embedding", False, "unet.train_embedding is fixed when a run starts"),
        ("learning_rate", -1.0, "learning_rate"),
    ],
)
def test_a_change_that_cannot_be_is_refused_with_the_reason(
    make_config, train, setting, value, word
):
    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 1:
            commands.set(setting, value)

    run = train(make_config(epochs=1), react)
    (warning,) = run.warnings
    assert word in warning
    assert list(run.losses) == [1, 2, 3]
    assert run.of(e.SettingChanged) == []


def edited(train, config, *edits):
    """Run with these edits after the first step; what was refused, in words."""

    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 1:
            for setting, value in edits:
                commands.set(setting, value)

    run = train(config, react)
    assert run.states[-1] == "finished"
    assert not any("defect" in warning for warning in run.warnings)
    return run, run.warnings


def test_a_change_that_would_do_nothing_or_end_the_run_is_refused(make_config, train):
    run, refused = edited(
        train,
        make_config(epochs=1),
        ("mse_strength", 0.0),
        ("concepts.0.loss_weight", 3.0),
        ("concepts", []),
        ("ema_decay", 0.5),
        ("text_encoder.learning_rate", 1e-5),
        ("transformer.learning_rate", 1e-5),
        ("embedding_learning_rate", 1e-5),
        ("loss_weight_strength", 3.0),
        ("ot.early_stop_patience", 2),
        ("learning_rate", 1e-3),  # as it is
    )
    words = [
        "are all 0",
        "concepts.0.loss_weight is fixed when a run starts",
        "concepts is fixed when a run starts",
        "ema is OFF",
        "text_encoder.train is false",
        "Stable Diffusion 1.5 does not use it",
        "what trains has other learning rates",
        "loss_weight_fn is CONSTANT",
        "no validation loss is measured",
    ]
    assert len(refused) == len(words)
    for warning, word in zip(refused, words, strict=True):
        assert word in warning
    assert [event.setting for event in run.of(e.SettingChanged)] == ["learning_rate"]


def test_samples_change_in_the_middle_and_only_to_what_can_be_drawn(make_config, train):
    small = {**SAMPLE, "diffusion_steps": 1}
    config = make_config(epochs=1, sample_after=1, sample_after_unit="STEP", samples=[small])
    run, (refused,) = edited(
        train, config, ("samples", [{**small, "prompt": "b"}]), ("samples.0.width", 100)
    )
    assert [event.prompt for event in run.of(e.SampleImage)] == ["a card", "a card", "b", "b"]
    assert "width is 100 px, but must be a multiple of 8 px" in refused


def test_an_optimizer_of_one_rate_keeps_to_it(make_config, train):
    config = make_config(
        epochs=1,
        learning_rate=1.0,
        **{"optimizer.optimizer": "PRODIGY", "text_encoder.train": True},
    )
    run, (refused,) = edited(train, config, ("unet.learning_rate", 0.5), ("learning_rate", 0.5))
    assert "takes one for all parts" in refused
    assert run.of(e.LossUpdate)[-1].learning_rate == {"unet": 0.5, "text_encoder": 0.5}


def test_dropout_of_an_adapter_changes_in_the_middle_and_comes_back_with_a_backup(
    make_config, train, tmp_path
):
    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 2:
            commands.set("dropout_probability", 0.5)
            commands.backup()

    straight = train(make_config(epochs=2, workspace_dir=tmp_path / "run"), react)
    plain = train(make_config(epochs=2))
    same = [straight.losses[step] == plain.losses[step] for step in range(1, 7)]
    assert same == [True, True, False, False, False, False]
    resumed = train(straight.config.update(continue_last_backup=True))
    assert resumed.losses == {step: straight.losses[step] for step in range(3, 7)}


def test_a_part_stops_training_when_its_time_is_over(make_config, make_run):
    config = make_config(
        **{
            "text_encoder.train": True,
            "text_encoder.stop_training_after": 1,
            "text_encoder.stop_training_after_unit": "EPOCH",
        },
    )
    weights = {}

    def react(event, _commands):
        if isinstance(event, e.LossUpdate):
            weights[event.step] = {
                name: sum(float(p.detach().abs().sum()) for p in parameters)
                for name, parameters in run.trainer._method.trainable.items()
            }

    run = make_run(config, react)
    run.go()
    assert weights[2]["text_encoder"] != weights[3]["text_encoder"]
    assert weights[3]["text_encoder"] == weights[9]["text_encoder"]
    assert weights[3]["unet"] != weights[9]["unet"]


def test_a_part_that_stops_always_never_begins(make_config, make_run):
    config = make_config(
        epochs=1,
        **{"text_encoder.train": True, "text_encoder.stop_training_after_unit": "ALWAYS"},
    )
    run = make_run(config)
    run.trainer.start()
    before = [p.detach().clone() for p in run.trainer._method.trainable["text_encoder"]]
    run.trainer.train()
    after = run.trainer._method.trainable["text_encoder"]
    assert all(map(torch.equal, before, after))
    assert run.losses
    run.trainer.close()


def test_a_run_ends_when_its_last_part_has_stopped(make_config, train):
    stops = {"unet.stop_training_after": 4, "unet.stop_training_after_unit": "STEP"}
    run = train(make_config(**stops))
    assert list(run.losses) == [1, 2, 3, 4]
    assert run.states[-1] == "finished"
    assert run.of(e.ModelSaved)[0].final


def test_a_part_stops_by_the_clock_of_the_run():
    clock = [100.0]
    schedule = Schedule()
    schedule.backup = Due(0, TimeUnit.NEVER, clock=lambda: clock[0])
    config = TrainConfig().update(
        **{"unet.stop_training_after": 2, "unet.stop_training_after_unit": "MINUTE"}
    )
    parameter = torch.nn.Parameter(torch.ones(1))
    trainable = {"unet": [parameter]}

    def finished():
        return freeze_finished(config, trainable, 1, 0, schedule.seconds)

    clock[0] += 90
    assert finished() == []
    state = schedule.backup.state_dict()
    clock[0] += 10_000  # another day
    schedule.backup.load_state_dict(state)
    assert finished() == []
    clock[0] += 30
    assert finished() == ["unet"]
    assert not parameter.requires_grad
    assert finished() == []


def test_a_callback_that_raises_stops_nothing(make_config, train):
    def react(event, _commands):
        if isinstance(event, e.LossUpdate):
            raise ZeroDivisionError("mine")

    run = train(make_config(epochs=1), react)
    assert run.states[-1] == "finished"
    assert sum("ZeroDivisionError: mine" in warning for warning in run.warnings) == 1


def test_a_custom_sample_that_the_model_cannot_draw_is_said(make_config, train):
    def ask(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 1:
            for changes in ({"sample_inpainting": True}, {"frames": 5}, {"width": 100}):
                commands.sample_custom(SampleConfig().update(diffusion_steps=1, **changes))

    run = train(make_config(epochs=1), ask)
    assert list(run.losses) == [1, 2, 3]
    assert run.of(e.SampleImage) == []
    words = "\n".join(run.warnings)
    assert "sample_inpainting is true, but Stable Diffusion 1.5 does not draw into" in words
    assert "frames is 5, which this engine cannot do. Use 1." in words
    assert "width is 100 px, but must be a multiple of 8 px. Use 96 or 104." in words
