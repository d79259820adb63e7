"""What a run does from start to end, seen through its events and files."""

import inspect

import pytest
import torch

from modules.config import ConfigError
from modules.training import events as e
from modules.training.trainer import GenericTrainer


def test_the_loop_fits_one_screen():
    assert len(inspect.getsource(GenericTrainer.train).splitlines()) <= 60


def test_a_run_goes_through_its_states_and_counts_its_steps(make_config, train):
    run = train(make_config(backup_before_save=True))
    assert run.states == ["loading", "caching", "training", "saving", "finished"]
    assert list(run.losses) == list(range(1, 10))  # 3 epochs of 3 batches
    last = run.of(e.Progress)[-1]
    assert (last.step, last.max_step, last.epoch, last.max_epoch) == (9, 9, 3, 3)
    assert (last.epoch_step, last.max_epoch_step) == (3, 3)
    assert run.warnings == []
    (saved,) = run.of(e.ModelSaved)
    assert saved.final
    assert saved.path.is_file()
    (backup,) = run.of(e.BackupCreated)
    assert backup.path.is_dir()


def test_one_picture_is_learned(make_config, train, tmp_path, pictures):
    one = tmp_path / "one"
    one.mkdir()
    for suffix in (".png", ".txt"):
        (one / f"red{suffix}").write_bytes((pictures / f"red{suffix}").read_bytes())
    run = train(
        make_config(
            concepts=[{"path": str(one)}],
            batch_size=1,
            epochs=30,
            layer_filter="",
            lora_rank=16,
            lora_alpha=16.0,
            learning_rate=5e-3,
        )
    )
    losses = list(run.losses.values())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_accumulated_batches_and_pieces_give_the_gradient_of_one_large_batch(make_config):
    trainer = GenericTrainer(make_config(batch_size=6, gradient_accumulation_steps=1))
    trainer.start()
    generator = torch.Generator().manual_seed(0)
    large = trainer._forward.draw(next(trainer._batches), generator)
    small = [piece for piece, _ in large.pieces(3)]
    parameters = trainer._method.trainable["unet"]

    def gradient(window, pieces):
        loss = trainer._backward(window, pieces)
        gradients = [parameter.grad.clone() for parameter in parameters]
        trainer._update.drop_gradients()
        return loss, gradients

    loss, expected = gradient([large], 1)
    assert expected[1].abs().max() > 0
    for window, pieces in [(small, 1), ([large], 2), ([large], 6), (small, 2)]:
        other, found = gradient(window, pieces)
        torch.testing.assert_close(other, loss)
        for one, two in zip(expected, found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-8)
    trainer.close()


def test_a_second_run_in_the_same_process_is_the_same(make_config, train):
    first, second = train(make_config(epochs=1)), train(make_config(epochs=1))
    assert first.losses == second.losses


def test_the_global_generators_are_left_as_they_were(make_config, train):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(make_config(dropout_probability=0.2, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_draws_of_the_notebook_change_nothing(make_config, train):
    def draw(_event, _commands):
        torch.rand(7)

    config = make_config(dropout_probability=0.2, epochs=1)
    quiet = train(make_config(dropout_probability=0.2, epochs=1))
    assert train(config, draw).losses == quiet.losses


def test_learning_rates_follow_parts_and_schedule(make_config, train):
    config = make_config(
        learning_rate_scheduler="LINEAR",
        learning_rate_warmup_steps=3,
        **{"text_encoder.train": True, "text_encoder.learning_rate": 1e-4},
    )
    rates = [event.learning_rate for event in train(config).of(e.LossUpdate)]
    assert [rate["unet"] for rate in rates] == pytest.approx(
        [1e-3 * f for f in (1 / 4, 2 / 4, 3 / 4, 6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    )
    assert all(rate["text_encoder"] == pytest.approx(rate["unet"] / 10) for rate in rates)


def test_a_config_that_cannot_run_says_so_before_anything_loads(make_config, train):
    events = []
    config = make_config(concepts=[])
    with pytest.raises(ConfigError, match="concepts"):
        train(config, lambda event, _: events.append(event))
    assert any(isinstance(event, e.RunFailed) for event in events)
    assert not any(isinstance(event, e.LossUpdate) for event in events)


def test_a_filter_that_matches_nothing_is_refused(make_config, train):
    with pytest.raises(ConfigError, match=r"nowhere.*matches none"):
        train(make_config(layer_filter="nowhere"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"loss_weight_fn": "SIGMA"}, "loss_weight_fn"),
        ({"loss_weight_fn": "SIGMA", "offset_noise_weight": 0.1}, "loss_weight_fn"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(make_config, train, changes, word):
    with pytest.raises(ConfigError, match=word):
        train(make_config(**changes))


def test_muon_and_the_adam_beside_it_train_and_are_reported(make_config, train):
    run = train(
        make_config(
            training_method="FINE_TUNE",
            output_model_format="DIFFUSERS",
            layer_filter="",
            epochs=1,
            optimizer={"optimizer": "MUON", "muon_adam_lr": 1e-5},
        )
    )
    assert all(
        event.learning_rate == {"unet": 1e-3, "unet (Adam)": 1e-5} for event in run.of(e.LossUpdate)
    )
    assert run.states[-1] == "finished"


def test_a_custom_schedule_moves_the_rate_of_a_run(make_config, train):
    run = train(
        make_config(
            epochs=1,
            learning_rate_scheduler="CUSTOM",
            custom_learning_rate_scheduler="torch.optim.lr_scheduler.ExponentialLR",
            scheduler_params=[{"key": "gamma", "value": "0.5"}],
        )
    )
    rates = [event.learning_rate["unet"] for event in run.of(e.LossUpdate)]
    assert rates == pytest.approx([1e-3, 5e-4, 2.5e-4])


def test_a_fused_back_pass_trains_to_the_same_bits(make_config, train):
    def losses(fused):
        config = make_config(
            optimizer={"optimizer": "ADAFACTOR", "fused_back_pass": fused},
            epochs=2,
            clip_grad_norm=None,
            gradient_accumulation_steps=2,
        )
        return train(config).losses

    assert losses(fused=True) == losses(fused=False)


def test_what_is_wrong_for_the_images_found_is_said_before_training(make_config, train):
    run = train(make_config(batch_size=8, learning_rate_warmup_steps=50))
    said = "\n".join(run.warnings)
    assert "batch_size is 8, but there are 6 images. Use at most 6." in said
    assert "learning_rate_warmup_steps is 50, but the run is only 3 steps" in said
    order = [type(event) for event in run.events]
    assert order.index(e.Warned) < order.index(e.LossUpdate)


def test_a_run_that_only_caches_does_no_more(make_config, train, tmp_path):
    cache = str(tmp_path / "cache")
    run = train(make_config(only_cache=True, backup_before_save=True, cache_dir=cache))
    assert run.states[-1] == "finished"
    assert run.losses == {}
    assert run.of(e.ModelSaved) == run.of(e.BackupCreated) == []
    filled = [event for event in run.of(e.TaskProgress) if event.task == "caching"]
    assert filled[-1].done == filled[-1].total > 0
    later = train(make_config(epochs=1, cache_dir=cache))
    assert [event for event in later.of(e.TaskProgress) if event.task == "caching"] == []
    assert len(later.losses) == 3
