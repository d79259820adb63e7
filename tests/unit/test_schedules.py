import pytest
import torch
from diffusers import optimization

from modules.config import ConfigError, TimeUnit, TrainConfig
from modules.config import LearningRateScheduler as Kind
from modules.training.due import Due
from modules.training.schedules import (
    AFTER_WARMUP,
    LearningRates,
    learning_rate_factor,
    preview,
    warmup_steps,
)


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
        (Kind.ADAFACTOR, 0, 1.0),
        (Kind.ADAFACTOR, 12, 1.0),
        (Kind.REX, 4, 1.0),
        (Kind.REX, 12, 0.1 + 0.9 * 0.5 / 0.55),
        (Kind.REX, 20, 0.1),
    ],
)
def test_factor_by_hand(kind, step, expected):
    assert learning_rate_factor(kind, step, 20, 4, 0.1) == pytest.approx(expected)


def torch_schedule(make, steps, **arguments):
    """The factors that a library's schedule gives to steps 0, 1, ..."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer, num_warmup_steps=0, num_training_steps=steps, **arguments)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


@pytest.mark.parametrize(
    ("kind", "reference", "cycles", "arguments"),
    [
        (Kind.LINEAR, optimization.get_linear_schedule_with_warmup, 1, {}),
        (Kind.COSINE, optimization.get_cosine_schedule_with_warmup, 1, {}),
        (
            Kind.COSINE_WITH_RESTARTS,
            optimization.get_cosine_schedule_with_warmup,
            2,
            {"num_cycles": 2},
        ),
        (
            Kind.COSINE_WITH_HARD_RESTARTS,
            optimization.get_cosine_with_hard_restarts_schedule_with_warmup,
            3,
            {"num_cycles": 3},
        ),
    ],
)
def test_factors_equal_diffusers(kind, reference, cycles, arguments):
    ours = [learning_rate_factor(kind, step, 24, 0, 0.0, cycles) for step in range(24)]
    assert ours == pytest.approx(torch_schedule(reference, 24, **arguments))


def test_no_schedule_rises_past_its_end():
    for kind in AFTER_WARMUP:
        last = learning_rate_factor(kind, 23, 24, 0, 0.0, 2.0)
        assert learning_rate_factor(kind, 40, 24, 0, 0.0, 2.0) <= last


@pytest.mark.parametrize(
    ("setting", "accumulate", "expected"),
    [(200.0, 1, 200), (200.0, 4, 50), (0.1, 4, 30), (0, 1, 0)],
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


def custom(name, params=(), **changes):
    return TrainConfig().update(
        learning_rate_scheduler="CUSTOM",
        custom_learning_rate_scheduler=f"torch.optim.lr_scheduler.{name}",
        scheduler_params=[{"key": key, "value": value} for key, value in params],
        learning_rate=0.1,
        **{"text_encoder.train": False, "learning_rate_warmup_steps": 0, **changes},
    )


def walked(make, steps):
    """What torch's own loop sees."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (
            custom("ExponentialLR", [("gamma", "0.9")]),
            lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.9),
        ),
        (
            custom("OneCycleLR", [("max_lr", "%LR%"), ("total_steps", "%SCHEDULER_STEPS%"),
                                  ("anneal_strategy", "'linear'")]),
            lambda o: torch.optim.lr_scheduler.OneCycleLR(
                o, max_lr=0.1, total_steps=20, anneal_strategy="linear"
            ),
        ),
        (
            custom("MultiStepLR", [("milestones", "[3, 7]"), ("gamma", 0.5)]),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 7], gamma=0.5),
        ),
    ],
    ids=["exponential", "one cycle", "steps"],
)  # fmt: skip
def test_a_custom_schedule_is_the_classs_own(config, make):
    assert preview(config, 20)["unet"] == pytest.approx(walked(make, 20))


def test_a_custom_schedule_begins_after_the_warmup_and_can_be_asked_in_any_order():
    config = custom("ExponentialLR", [("gamma", "0.5")], learning_rate_warmup_steps=3)
    rates = LearningRates(config, {"unet": 0.1, "text_encoder": 0.2}, 10, 5)
    assert rates(6)["unet"] == pytest.approx(0.1 * 0.5**3)
    assert rates(3)["text_encoder"] == pytest.approx(0.2)
    assert rates(0)["unet"] == pytest.approx(0.1 / 4)
    assert rates(6)["unet"] == pytest.approx(0.1 * 0.5**3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (custom("NoSuchLR"), "NoSuchLR cannot be imported"),
        (custom("ExponentialLR"), "ExponentialLR refuses its arguments: .*gamma"),
        (custom("ReduceLROnPlateau"), "ReduceLROnPlateau follows a loss"),
        (custom("LRScheduler").update(custom_learning_rate_scheduler="os.path"), "is no subclass"),
        (custom("LRScheduler").update(custom_learning_rate_scheduler="nowhere.at.All"), "imported"),
        (custom("OneCycleLR", [("max_lr", "1"), ("total_steps", "4")]), "fails after [45] steps"),
    ],
)
def test_a_custom_schedule_that_cannot_be_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        preview(config, 10)


def test_a_preview_has_every_part_and_step():
    config = TrainConfig().update(
        learning_rate=1e-4, learning_rate_scheduler="LINEAR", learning_rate_warmup_steps=2
    )
    config = config.update(**{"text_encoder.learning_rate": 5e-5})
    rates = preview(config, 6)
    assert rates["unet"] == pytest.approx(
        [1e-4 * f for f in (1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4)]
    )
    assert rates["text_encoder"] == pytest.approx([rate / 2 for rate in rates["unet"]])
