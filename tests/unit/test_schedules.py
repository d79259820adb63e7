import pytest

from modules.config import LearningRateScheduler as Kind
from modules.config import TimeUnit
from modules.training.due import Due
from modules.training.schedules import learning_rate_factor, warmup_steps


@pytest.mark.parametrize(
    ("kind", "step", "expected"),
    [
        (Kind.CONSTANT, 0, 1 / 5),
        (Kind.CONSTANT, 3, 4 / 5),
        (Kind.CONSTANT, 4, 1.0),
        (Kind.CONSTANT, 99, 1.0),
        (Kind.LINEAR, 4, 1.0),
        (Kind.LINEAR, 12, 0.1 + 0.9 * 0.5),
        (Kind.LINEAR, 20, 0.1),
        (Kind.COSINE, 8, 0.1 + 0.9 * 0.8535533905932737),
        (Kind.COSINE, 12, 0.1 + 0.9 * 0.5),
        (Kind.COSINE, 30, 0.1),
    ],
)
def test_factor_by_hand(kind, step, expected):
    assert learning_rate_factor(kind, step, 20, 4, 0.1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("setting", "accumulate", "expected"), [(200.0, 1, 200), (200.0, 4, 50), (0.1, 4, 30), (0, 1, 0)]
)
def test_warmup_counts_forward_passes_or_a_share(setting, accumulate, expected):
    assert warmup_steps(setting, 300, accumulate) == expected


def fired(due, steps, per_epoch=5):
    return [
        step for step in range(steps) if due.fires(step, step // per_epoch, step % per_epoch == 0)
    ]


def test_samples_fire_before_the_first_step_and_backups_do_not():
    assert fired(Due(4, TimeUnit.STEP, at_start=True), 10) == [0, 4, 8]
    assert fired(Due(4, TimeUnit.STEP), 10) == [4, 8]


def test_epochs_fire_when_an_epoch_ends():
    assert fired(Due(2, TimeUnit.EPOCH), 25) == [10, 20]


def test_skip_first_keeps_silent_at_the_beginning():
    assert fired(Due(2, TimeUnit.STEP, at_start=True, skip=4), 10) == [6, 8]


def test_never_and_always():
    assert fired(Due(1, TimeUnit.NEVER, at_start=True), 5) == []
    assert fired(Due(1, TimeUnit.ALWAYS), 4) == [1, 2, 3]


def test_minutes_count_from_the_last_firing():
    seconds = iter([0, 100, 130, 180, 250, 251])
    due = Due(2, TimeUnit.MINUTE, clock=lambda: next(seconds))
    assert fired(due, 6) == [2, 4]
