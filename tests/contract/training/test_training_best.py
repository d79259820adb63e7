"""Runs that end when the validation loss falls no more, and models kept by it."""

import shutil

import pytest
from safetensors.torch import load_file

from modules.training import events as e


@pytest.fixture
def judged(make_config, pictures, tmp_path):
    """A run of nine steps that measures the loss of one held-out picture after each."""
    one = tmp_path / "one"
    one.mkdir()
    for name in ("red.png", "red.txt"):
        shutil.copy(pictures / name, one / name)
    return lambda **changes: make_config(
        **{
            "concepts": [
                {"name": "cards", "path": str(pictures)},
                {"name": "held out", "path": str(one), "type": "VALIDATION"},
            ],
            "validation": True,
            "validate_after": 1,
            "validate_after_unit": "STEP",
            "backup_before_save": True,
            **changes,
        }
    )


def kept_steps(config_or_run):
    folder = config_or_run.trainer._workspace.folder / "best"
    return sorted(int(path.stem.split("-best-")[1].split("-")[0]) for path in folder.iterdir())


def test_a_run_that_gets_no_better_ends_and_goes_on_with_more_patience(judged, train):
    config = judged(learning_rate=1e-30, **{"ot.early_stop_patience": 3})
    run = train(config)
    assert list(run.losses) == [1, 2, 3]  # measured at 0, and three times no better
    assert run.states[-1] == "finished"
    assert [event.final for event in run.of(e.ModelSaved)] == [True]
    assert any(
        event.text.startswith("The run ends at step 3: the last 3 validations were no better than")
        for event in run.of(e.StatusLine)
    )
    again = config.update(continue_last_backup=True)
    assert train(again).losses == {}
    assert list(train(again.update(**{"ot.early_stop_patience": 5})).losses) == [4, 5]


@pytest.mark.slow
def test_a_small_gain_counts_only_without_a_least_one(judged, train):
    falling = {"learning_rate": 1e-3, "ot.early_stop_patience": 3}
    assert len(train(judged(**falling)).losses) > 3
    assert list(train(judged(**falling, **{"ot.early_stop_min_delta": 10.0})).losses) == [1, 2, 3]


def test_a_validation_that_a_stop_cuts_short_is_made_after_a_resume(judged, train, tmp_path):
    config = judged(workspace_dir=str(tmp_path / "run"), epochs=1)

    def stop(event, commands):
        if isinstance(event, e.StatusLine) and event.text.endswith("validation loss at step 2"):
            commands.stop()

    straight = train(judged(epochs=1))
    cut = train(config, stop)
    resumed = train(config.update(continue_last_backup=True))
    assert [event.step for event in cut.of(e.ValidationLoss)] == [0, 1]
    assert [event.step for event in resumed.of(e.ValidationLoss)] == [2, 3]
    assert cut.of(e.ValidationLoss) + resumed.of(e.ValidationLoss) == straight.of(e.ValidationLoss)


def test_the_best_models_are_kept_also_over_a_resume(judged, train, tmp_path):
    changes = {"learning_rate": 3e-2, "ot.keep_best": 2}
    straight = train(judged(**changes))
    losses = {event.step: event.loss for event in straight.of(e.ValidationLoss) if event.step}
    best = sorted(sorted(losses, key=losses.get)[:2])
    assert kept_steps(straight) == best
    for path in (straight.trainer._workspace.folder / "best").iterdir():
        assert load_file(path)
    kept = [event for event in straight.of(e.ModelSaved) if not event.final]
    assert set(best) <= {event.step for event in kept}

    def stop(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 5:
            commands.stop()

    halves = judged(workspace_dir=tmp_path / "halves", **changes)
    train(halves, stop)
    assert kept_steps(train(halves.update(continue_last_backup=True))) == best
