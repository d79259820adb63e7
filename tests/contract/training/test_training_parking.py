"""What no step needs waits on `temp_device`, and is back for whoever needs it."""

from collections import Counter

import pytest
import torch
from toys import save_toy

from modules.config import MODELS, ModelType
from modules.families import all_families, family_for
from modules.training import events as e
from modules.training.placement import LayerOffload

SAMPLE = {"prompt": "a card", "height": 64, "width": 64, "diffusion_steps": 1, "seed": 1}
SAMPLED = {"samples": [SAMPLE], "sample_after": 2, "sample_after_unit": "STEP"}
FAMILIES = [
    pytest.param(
        family,
        id=f"{family.architecture}-{family.pipeline}",
        marks=() if family.architecture == "Flux.1-dev" else pytest.mark.slow,
    )
    for family in all_families()
]


class Watch:
    """Follows where the networks of a run are, and which of them compute where they should not."""

    def __init__(self, monkeypatch):
        self.away, self.moves, self.misused = set(), [], Counter()
        real = LayerOffload.move

        def move(offload, device):
            """On a CPU both devices are the same: the first move of each is home, and so on."""
            network = offload._network
            home = id(network) not in self.away
            (self.away.add if home else self.away.remove)(id(network))
            self.moves.append((type(network).__name__, "home" if home else "device"))
            real(offload, device)

        monkeypatch.setattr(LayerOffload, "move", move)

    def follow(self, parts):
        for name, network in parts.modules().items():
            for module in network.modules():
                module.register_forward_pre_hook(
                    lambda *_, name=name, network=network: self.misused.update(
                        [name] if id(network) in self.away else []
                    )
                )


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


def followed(make_run, config, watch):
    """The run, and the names of the networks that are away at its steps."""
    away = []

    def react(event, _commands):
        if event == e.TrainingState("caching"):
            watch.follow(run.trainer.parts)
        if isinstance(event, e.LossUpdate):
            modules = run.trainer.parts.modules().items()
            away.append({name for name, network in modules if id(network) in watch.away})

    run = make_run(config, react)
    run.go()
    assert not watch.misused
    assert all(names == away[0] for names in away)
    return run, away[0]


CASES = {
    "captions dropped": ({"text_encoder.dropout_probability": 0.5}, {"vae", "text_encoder"}),
    "text encoder trains": ({"text_encoder.train": True}, {"vae"}),
    "no cache": ({"latent_caching": False}, set()),
    "whole": (
        {"training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS"},
        {"vae", "text_encoder"},
    ),
    "vae": (
        {"training_method": "FINE_TUNE_VAE", "output_model_format": "DIFFUSERS"},
        {"unet", "text_encoder"},
    ),
    "embedding": (
        {
            "training_method": "EMBEDDING",
            "output_model_format": "SAFETENSORS",
            "embedding": {"placeholder": "card", "token_count": 1},
        },
        {"vae"},
    ),
}


SLOW = ("whole", "no cache")


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES]
)
def test_what_no_step_needs_is_away(make_config, make_run, watch, case):
    changes, expected = CASES[case]
    run, away = followed(make_run, make_config(epochs=1, **SAMPLED, **changes), watch)
    assert away == expected
    assert len(run.of(e.SampleImage)) == 2  # before the first step, and after the second
    assert list(run.losses) == [1, 2, 3]


@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_samples_alone_bring_all_back_and_send_it_home_again(make_config, make_run, watch, dropped):
    """What stands for captions left out is encoded before the run begins."""
    config = make_config(epochs=1, **SAMPLED)
    config = config.update(**{"text_encoder.dropout_probability": dropped})
    _run, away = followed(make_run, config, watch)
    assert away == {"vae", "text_encoder"}
    turns = [move for name, move in watch.moves if name == "AutoencoderKL"]
    assert turns == ["home", *["device", "home"] * 2]
    assert len(watch.moves) == len(turns) * len(away)


def test_who_borrows_or_pauses_finds_everything(make_config, make_run, watch):
    seen = {}

    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 1:
            commands.use_model(lambda _family, _parts: seen.update(lent=set(watch.away)))
            commands.pause()
        if isinstance(event, e.TrainingState) and event.state == "paused":
            commands.wait_while_paused = lambda: seen.update(paused=set(watch.away))
            commands.resume()

    make_run(make_config(epochs=1), react).go()
    assert seen == {"lent": set(), "paused": set()}


def test_no_run_ends_because_its_model_cannot_be_lent(make_config, make_run):
    told = []

    def react(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 1:
            vae = run.trainer._parking.networks["vae"]

            def no_room(_device):
                del vae.move
                raise torch.OutOfMemoryError("no room")

            vae.move = no_room
            commands.use_model(lambda *_: told.append("lent"), lambda: told.append("failed"))

    run = make_run(make_config(epochs=1), react)
    run.go()
    assert told == ["failed"]
    assert any("no room" in warning.message for warning in run.of(e.Warned))
    assert list(run.losses) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ModelType.WUERSTCHEN_2, ModelType.STABLE_CASCADE_1])
@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"text_encoder.train": True}, {"prior", "text_encoder"}),
        ({"latent_caching": False}, {"prior", "text_encoder", "effnet_encoder"}),
    ],
)
def test_stages_that_only_draw_are_away(
    make_config, make_run, watch, tmp_path, kind, changes, asked
):
    family = family_for(kind)
    config = make_config(
        model_type=kind.value,
        **save_toy(family, tmp_path / "model"),
        cache_dir=str(tmp_path / "cache"),
        resolution="128",
        layer_filter="",
        epochs=1,
        **{"prior.gradient_checkpointing": False},
    )
    run, away = followed(make_run, config.update(**changes), watch)
    assert away == family.tiny().modules().keys() - asked
    assert list(run.losses) == [1, 2, 3]


def test_layers_that_wait_stay_at_home_when_their_network_comes(make_config, make_run):
    small = {"text_encoder.offload_fraction": 0.5, "text_encoder.weight_dtype": "INT_8"}
    run = make_run(make_config(**small))
    run.trainer.start()
    offload, network = run.trainer._offloads["text_encoder"], run.trainer.model.text_encoder
    waiting = {id(tensor) for layer in offload._layers for tensor in layer.tensors()}
    assert waiting
    nowhere = torch.device("meta")
    offload.move(nowhere)
    tensors = [*network.parameters(), *network.buffers()]
    assert {id(t) for t in tensors if t.device != nowhere} == waiting
    run.trainer.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_each_architecture_asks_only_what_is_there(
    make_config, make_run, watch, tmp_path, family
):
    kind = family.model_types[0]
    encoders = MODELS[kind].text_encoders
    config = make_config(
        model_type=kind.value,
        **save_toy(family, tmp_path / "model"),
        cache_dir=str(tmp_path / "cache"),
        resolution=str(max(64, family.pixel_multiple)),
        layer_filter="",
        epochs=1,
        **{f"{name}.train": False for name in encoders},
        **{f"{family.denoiser}.gradient_checkpointing": False},
    )
    if family.hint == "inpainting":
        config = config.update(unmasked_probability=0.5)
    _run, away = followed(make_run, config, watch)
    toy = family.tiny()
    assert family.denoiser not in away
    assert {toy.encoder_name, *encoders, *family.guides, *toy.beside} <= away


@pytest.mark.gpu
def test_a_gpu_holds_what_trains_alone(make_config, make_run):
    seen = []

    def react(event, _commands):
        if isinstance(event, e.LossUpdate | e.TaskProgress) and "_parking" in vars(run.trainer):
            modules = run.trainer.parts.modules().items()
            where = {name: next(network.parameters()).device.type for name, network in modules}
            seen.append((type(event).__name__, where["unet"], where["vae"], where["text_encoder"]))

    run = make_run(make_config(train_device="cuda", epochs=1, **SAMPLED), react)
    run.go()
    assert ("LossUpdate", "cuda", "cpu", "cpu") in seen
    assert ("TaskProgress", "cuda", "cuda", "cuda") in seen
    assert {row[1:] for row in seen if row[0] == "LossUpdate"} == {("cuda", "cpu", "cpu")}
