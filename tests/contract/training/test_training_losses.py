"""What masks, concepts and weights do to the loss, and the loss that is only measured."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modules.config import ModelType
from modules.families import family_for
from modules.training import events as e


@pytest.fixture
def masked(pictures, tmp_path):
    """The pictures, each with a mask of one shade."""

    def make(shade):
        folder = tmp_path / f"masked-{shade}"
        shutil.copytree(pictures, folder)
        for path in pictures.glob("*.png"):
            Image.new("L", (64, 64), shade).save(folder / f"{path.stem}-masklabel.png")
        return [{"path": str(folder)}]

    return make


def losses(run):
    return list(run.losses.values())


_PLAIN = []


def plain(train, make_config):
    """Losses of a run with nothing special about it, which many tests compare with."""
    if not _PLAIN:
        _PLAIN.extend(losses(train(make_config(epochs=1))))
    return list(_PLAIN)


def test_what_is_masked_out_teaches_nothing(make_config, train, masked):
    black = {
        "concepts": masked(0),
        "masked_training": True,
        "unmasked_probability": 0.0,
        "epochs": 1,
    }
    assert losses(train(make_config(**black, unmasked_weight=0.0))) == [0.0, 0.0, 0.0]
    usual = plain(train, make_config)
    first = losses(train(make_config(**black, unmasked_weight=0.25)))[0]
    assert first == pytest.approx(usual[0] / 4)
    always = {**black, "unmasked_probability": 1.0}
    whole = losses(train(make_config(**always, unmasked_weight=0.0)))
    assert whole[0] == pytest.approx(usual[0])
    even = losses(
        train(make_config(**black, unmasked_weight=0.25, normalize_masked_area_loss=True))
    )
    assert even[0] == pytest.approx(usual[0])


def test_prior_preservation_holds_the_rest_to_the_untrained_model(make_config, train, masked):
    """A fresh adapter changes nothing, so the first step has nothing to hold; later ones do."""
    config = make_config(
        concepts=masked(0),
        masked_training=True,
        unmasked_probability=0.0,
        unmasked_weight=0.0,
        masked_prior_preservation_weight=1.0,
        learning_rate=1e-30,
        epochs=1,
    )
    assert losses(train(config)) == [0.0] * 3
    grey = make_config(
        concepts=masked(128),
        masked_training=True,
        unmasked_probability=0.0,
        unmasked_weight=0.0,
        masked_prior_preservation_weight=1.0,
        learning_rate=1e-2,
        epochs=1,
    )
    without = grey.update(masked_prior_preservation_weight=0.0, workspace_dir=grey.workspace_dir)
    held, free = losses(train(grey)), losses(train(without))
    assert held[0] == pytest.approx(free[0])
    assert held[1] > free[1]


def test_a_prior_concept_is_held_to_the_untrained_model(make_config, train, pictures):
    concept = {"path": str(pictures), "type": "PRIOR_PREDICTION"}
    assert losses(train(make_config(concepts=[concept], epochs=1))) == [0.0, 0.0, 0.0]


def test_a_concepts_weight_and_the_scaler_multiply_the_loss(make_config, train, pictures):
    usual = plain(train, make_config)[0]
    halved = make_config(concepts=[{"path": str(pictures), "loss_weight": 0.5}], epochs=1)
    assert losses(train(halved))[0] == pytest.approx(usual / 2)
    assert losses(train(make_config(loss_scaler="BATCH", epochs=1)))[0] == pytest.approx(usual * 2)


def test_rates_scale_with_the_root_of_the_batch(make_config, train):
    run = train(make_config(learning_rate_scaler="BATCH", epochs=1))
    assert run.of(e.LossUpdate)[0].learning_rate["unet"] == pytest.approx(1e-3 * 2**0.5)


def test_always_dropping_the_caption_teaches_the_empty_one(make_config, train, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "silent")
    for path in (tmp_path / "silent").glob("*.txt"):
        path.write_text("")
    silent = make_config(concepts=[{"path": str(tmp_path / "silent")}], epochs=1)
    dropped = make_config(epochs=1, **{"text_encoder.dropout_probability": 1.0})
    spoken = plain(train, make_config)
    assert losses(train(dropped))[0] == pytest.approx(losses(train(silent))[0], rel=1e-5)
    assert losses(train(dropped))[0] != pytest.approx(spoken[0], rel=1e-5)


def test_validation_is_measured_alike_every_time(make_config, train, pictures, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    for name in ("red.png", "red.txt"):
        shutil.copy(pictures / name, one / name)
    concepts = [
        {"name": "cards", "path": str(pictures)},
        {"name": "held out", "path": str(one), "type": "VALIDATION"},
    ]
    measured = make_config(
        concepts=concepts, validation=True, validate_after=1, dropout_probability=0.5, epochs=2
    )
    run = train(measured)
    found = run.of(e.ValidationLoss)
    assert [event.step for event in found] == [0, 3, 6]
    assert set(found[0].by_concept) == {"held out"}
    assert found[0].loss == found[0].by_concept["held out"]
    still = train(measured.update(learning_rate=1e-30, epochs=1)).of(e.ValidationLoss)
    assert {event.loss for event in still} == {found[0].loss}
    assert found[-1].loss != found[0].loss
    assert found[-1].raw is None
    averaged = train(measured.update(ema="GPU", ema_update_step_interval=1))
    both = averaged.of(e.ValidationLoss)
    assert [event.raw for event in both] == [event.loss for event in found]
    assert both[-1].loss != both[-1].raw
    assert run.losses == train(make_config(dropout_probability=0.5, epochs=2)).losses


def test_validation_concepts_of_one_name_are_kept_apart(make_config, train, pictures, tmp_path):
    def measured(*names):
        concepts = [{"name": "cards", "path": str(pictures)}]
        for name, colour in zip(names, ("red", "green", "blue"), strict=True):
            one = tmp_path / colour
            one.mkdir(exist_ok=True)
            for ending in ("png", "txt"):
                shutil.copy(pictures / f"{colour}.{ending}", one)
            concepts.append({"name": name, "path": str(one), "type": "VALIDATION"})
        concepts.append({**concepts[-1], "name": "never drawn", "balancing": 0.3})
        config = make_config(concepts=concepts, validation=True)
        stop = lambda event, commands: isinstance(event, e.ValidationLoss) and commands.stop()  # noqa: E731
        return train(config, stop).of(e.ValidationLoss)[0]

    apart, alike = measured("a", "b", "c"), measured("held out", "held out", "held out (2)")
    assert list(alike.by_concept) == ["held out", "held out (3)", "held out (2)"]
    assert list(alike.by_concept.values()) == list(apart.by_concept.values())
    assert alike.loss == apart.loss


def test_weights_beside_their_average_are_measured_where_they_would_be_saved(
    make_config, train, pictures, tmp_path
):
    """An optimizer without a schedule trains at one point and is to be judged at another."""
    shutil.copy(pictures / "red.png", tmp_path)
    concepts = [{"path": str(pictures)}, {"path": str(tmp_path), "type": "VALIDATION"}]
    config = make_config(
        concepts=concepts,
        validation=True,
        epochs=1,
        **{"optimizer.optimizer": "SCHEDULE_FREE_ADAMW"},
    )
    alone = [event.loss for event in train(config).of(e.ValidationLoss)]
    beside = [event.raw for event in train(config.update(ema="CPU")).of(e.ValidationLoss)]
    assert beside == alone


@pytest.mark.parametrize(
    "changes",
    [
        {"mse_strength": 0.0, "huber_strength": 1.0},
        {"timestep_distribution": "LOGIT_NORMAL"},
        {"timestep_shift": 3.0},
        {"offset_noise_weight": 0.1},
        {"perturbation_noise_weight": 0.1},
        {"loss_weight_fn": "MIN_SNR_GAMMA"},
        {"rescale_noise_scheduler_to_zero_terminal_snr": True},
        {"min_noising_strength": 0.5},
    ],
    ids=str,
)
def test_every_setting_of_loss_and_noise_reaches_the_loop(make_config, train, changes):
    changed = losses(train(make_config(epochs=1, **changes)))
    assert abs(sum(changed) - sum(plain(train, make_config))) > 1e-4


@pytest.mark.parametrize(
    ("stored", "computed"),
    [("BFLOAT_16", "FLOAT_32"), ("BFLOAT_16", "BFLOAT_16"), ("FLOAT_32", "BFLOAT_16")],
)
def test_a_half_precision_base_learns_in_a_full_precision_adapter(
    make_config, make_run, train, stored, computed
):
    types = {}

    def react(event, _commands):
        if isinstance(event, e.LossUpdate):
            unet = run.trainer.model.unet
            types["base"] = unet.conv_in.weight.dtype
            types["adapter"] = {p.dtype for p in unet.parameters() if p.requires_grad}

    config = make_config(epochs=1, train_dtype=computed, **{"unet.weight_dtype": stored})
    run = make_run(config, react)
    run.go()
    assert types["base"] == (torch.bfloat16 if stored == "BFLOAT_16" else torch.float32)
    assert types["adapter"] == {torch.float32}
    assert losses(run) == pytest.approx(plain(train, make_config), rel=0.02)


@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_a_learned_variance_learns_by_the_bound_alone(make_config, train, tmp_path, strength):
    family = family_for(ModelType.PIXART_SIGMA)
    parts = family.tiny()
    parts.pipeline.save_pretrained(tmp_path / "model")
    before = parts.denoiser.proj_out.weight.detach().clone()
    run = train(
        make_config(
            model_type="PIXART_SIGMA",
            training_method="FINE_TUNE",
            output_model_format="DIFFUSERS",
            base_model_name=str(tmp_path / "model"),
            cache_dir=str(tmp_path / "cache"),
            layer_filter="proj_out",
            epochs=1,
            vb_loss_strength=strength,
            optimizer={"optimizer": "SGD"},
            **{"transformer.gradient_checkpointing": False, "text_encoder.train": False},
        )
    )
    folder = run.of(e.ModelSaved)[-1].path / "transformer"
    after = load_file(folder / "diffusion_pytorch_model.safetensors")["proj_out.weight"]
    moved = (after != before).view(-1, 8, before.shape[1]).any(-1)  # by pixel of a patch, channel
    assert moved[:, :4].all()  # the noise
    assert moved[:, 4:].all().item() == (strength > 0)  # the variance
    assert moved[:, 4:].any().item() == (strength > 0)
