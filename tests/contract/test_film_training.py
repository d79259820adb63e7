"""Films train: what a model of films is asked, learns and resumes is as with pictures."""

import numpy as np
import pytest
import torch
from imageio_ffmpeg import write_frames
from test_families import recorded, tensors_of
from test_family_resume import killed, run
from toys import assert_same_backup, cards, config_for

from modules import GenericTrainer, TrainCallbacks
from modules.config import ConceptConfig, ModelType
from modules.data import Batches, build, scan
from modules.data.films import Lengths
from modules.families import family_for
from modules.training import events as e
from modules.training.encoder import LiveEncoder
from modules.training.forward import Forward
from ot_notebook.services.preflight import preflight

torch.set_num_threads(1)
FRAMES = 5
BOTH = [ModelType.HUNYUAN_VIDEO, ModelType.WAN_2]


@pytest.fixture
def films(tmp_path):
    """Two pictures, and two films of 16 frames of a card that moves, with captions."""
    folder = tmp_path / "films"
    folder.mkdir()
    for name, colour in (("left", (200, 40, 40)), ("right", (40, 40, 200))):
        writer = write_frames(str(folder / f"{name}.mp4"), (64, 64), fps=16, macro_block_size=2)
        writer.send(None)
        for number in range(16):
            frame = np.full((64, 64, 3), colour, np.uint8)
            place = 3 * number if name == "right" else 45 - 3 * number
            frame[20:44, place : place + 16] = 255
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        (folder / f"{name}.txt").write_text(f"a card that moves {name}")
    return cards(folder)


@pytest.fixture(scope="module", params=BOTH, ids=str)
def family(request):
    return family_for(request.param)


@pytest.fixture(scope="module")
def parts(family):
    parts = family.tiny()
    parts.pipeline.set_progress_bar_config(disable=True)
    for network in parts.modules().values():
        network.eval()
    return parts


@torch.no_grad()
def test_the_prediction_of_a_film_is_what_the_pipeline_hands_its_scheduler(family, parts):
    with recorded(parts) as (theirs, steps):
        parts.pipeline(
            "a red card",
            height=64,
            width=64,
            num_frames=FRAMES,
            num_inference_steps=2,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
    output, _, latents = steps[1]
    noisy = family.spatial(latents, 64, 64)
    assert noisy.shape[2] == 2
    sigma = parts.scheduler.sigmas[1].view(1)
    with recorded(parts) as (ours, _):
        prediction = family.predict(parts, noisy, sigma, family.encode_text(parts, ["a red card"]))
    mine = dict(tensors_of(ours[0]))
    for path, tensor in tensors_of(theirs[1]):
        torch.testing.assert_close(mine[path], tensor.expand_as(mine[path]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prediction, output, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_latents_of_a_film_are_the_vaes_own(family, parts):
    film = torch.rand(2, 3, FRAMES, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = family.encode_images(parts, film)
    raw = parts.vae.encode(film).latent_dist.mode()
    assert latents.shape == raw.shape
    assert latents.shape[2] == 2
    if "latents_mean" in parts.vae.config:
        shape = (1, -1, 1, 1, 1)
        mean, deviation = (
            torch.tensor(parts.vae.config[name]).view(shape)
            for name in ("latents_mean", "latents_std")
        )
        expected = (raw - mean) / deviation
    else:
        expected = raw * parts.vae.config.scaling_factor
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    plain = parts.vae.decode(raw).sample
    torch.testing.assert_close(family.decode(parts, latents), plain, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_mask_counts_in_every_frame(films, tmp_path):
    """Outside it an error costs nothing, in the first frame of the latents and in the last."""
    family = family_for(ModelType.WAN_2)
    parts = family.tiny()
    config = config_for(ModelType.WAN_2, films, tmp_path, masked_training=True, unmasked_weight=0.0)
    forward = Forward(config, family, parts, torch.device("cpu"))
    latents = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :3] = 1
    batch = _Batch(latents, family.encode_text(parts, ["a card"]), mask)
    draw = forward.draw(batch, torch.Generator().manual_seed(1), torch.tensor([500]))
    noisy = torch.lerp(draw.latents, draw.noise, torch.tensor(0.501))
    errors = family.predict(parts, noisy, torch.tensor([0.501]), batch.condition)
    errors = (errors - (draw.noise - draw.latents)).square()
    assert forward.loss(draw).item() == pytest.approx(
        (errors[..., :3].sum() / errors.numel()).item(), rel=1e-5
    )


class _Batch:
    """What `Forward` reads of a batch of one film."""

    def __init__(self, latents, condition, mask):
        self.latents, self.condition, self.mask, self.hints = latents, condition, mask, None
        self.captions, self.loss_weight = ["a card"], torch.ones(1)
        self.size, self.prior = torch.tensor([[64, 64, 0, 0, 64, 64]]), torch.tensor([False])


def test_films_are_encoded_one_at_a_time_where_the_vae_keeps_frames(films, tmp_path, monkeypatch):
    """On many cores pictures are encoded at once; this VAE would mix up their frames."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("modules.data.encode.PICTURES", 1)
    family = family_for(ModelType.WAN_2)
    encoder = LiveEncoder(family, family.tiny(), cache_text=True)
    concept = ConceptConfig(path=str(films), image_variations=6)
    found = scan([concept], films=True)
    data = build(
        found, encoder, tmp_path / "cache", resolution="64", quantum=32, bucketing=True, threads=2,
        report=lambda *_: None, should_stop=lambda: False, films=Lengths((1, 5, 13), 4, 16),
    )  # fmt: skip
    alone = build(
        found, encoder, None, resolution="64", quantum=32, bucketing=True, threads=1,
        report=lambda *_: None, should_stop=lambda: False, films=Lengths((1, 5, 13), 4, 16),
    )  # fmt: skip
    one, other = Batches(data, 1, 0), Batches(alone, 1, 0)
    for _ in range(one.batches_in(0)):
        torch.testing.assert_close(next(one).latents, next(other).latents, atol=1e-4, rtol=1e-3)


def test_how_fast_films_are_is_the_weights_own(family, parts):
    assert family.film_rate(parts) == (24 if family.architecture == "hunyuan-video" else 16)
    if family.architecture == "wan-2":
        parts.pipeline.register_to_config(expand_timesteps=True)
        assert family.film_rate(parts) == 24  # Wan 2.2 TI2V
        parts.pipeline.register_to_config(expand_timesteps=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOTH, ids=str)
def test_a_run_learns_films(kind, films, tmp_path):
    """Twenty steps on films of two lengths and on pictures; the loss falls."""
    config = config_for(
        kind,
        films,
        tmp_path,
        frames="5, 9",
        epochs=10,
        learning_rate=2e-2,
        min_noising_strength=0.5,
        max_noising_strength=0.6,
    )
    seen = []
    GenericTrainer(config, TrainCallbacks(on_event=seen.append)).run()
    assert [event.message for event in seen if isinstance(event, e.Warned)] == []
    losses = [event.loss for event in seen if isinstance(event, e.LossUpdate)]
    assert len(losses) == 20
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


@pytest.mark.parametrize("caching", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [pytest.param(BOTH[0], marks=pytest.mark.slow), BOTH[1]], ids=str)
def test_a_resumed_run_on_films_is_straight(kind, caching, films, tmp_path):
    """Kill -9 between two epochs of films and pictures, and a resume from the backup before."""
    config = config_for(
        kind,
        films,
        tmp_path,
        frames="5",
        epochs=2,
        latent_caching=caching,
        output_model_format="DIFFUSERS_LORA",
    )
    straight, last = run(config)
    clocked = {"backup_after": 1, "backup_after_unit": "STEP"}
    broken = config.update(workspace_dir=str(tmp_path / "broken"), **clocked)
    before = killed(broken, 2, tmp_path / "losses")
    after, resumed = run(
        config.update(workspace_dir=broken.workspace_dir, continue_last_backup=True)
    )
    assert set(straight) == {1, 2, 3, 4}
    assert {**before, **after} == straight
    assert set(after) == {2, 3, 4}
    assert_same_backup(last, resumed)


@pytest.mark.slow
def test_a_preflight_takes_its_steps_on_the_longest_films(films, tmp_path):
    config = config_for(ModelType.WAN_2, films, tmp_path, frames="5, 9", batch_size=1)
    found = preflight(config)
    assert found.fits
    assert dict(found.plan.sizes) == {"64x64, 9 frames": 2, "64x64": 2}
    assert found.notes == ()
