"""Drawing with the model that trains: pictures of it as it is, and training as if nothing was."""

import shutil
import time

import numpy as np
import pytest
from safetensors.torch import load_file

import ot_notebook as ot
from modules.training import events as e
from ot_notebook.services.inference_service import InferenceService
from ot_notebook.services.refusals import CommandRefused
from ot_notebook.services.run import run as stored_run
from ot_notebook.services.trainer_service import TrainerService

SETTINGS = {"seed": 7, "steps": 3, "cfg_scale": 3.0, "scheduler": "DDIM"}


@pytest.fixture
def service():
    service = TrainerService()
    yield service
    if service.state not in ("idle", *e.ENDED):
        service.stop()
        service.run.wait(120)
    service.close()


@pytest.fixture
def small(config, tmp_path):
    """The quickstart on four pictures: two steps an epoch, no samples due, dropout at work."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for picture in sorted(ot.assets.dataset("line art").glob("*.png"))[:4]:
        shutil.copy(picture, pictures)
        shutil.copy(picture.with_suffix(".txt"), pictures)
    return config.update(
        concepts=[{"name": "pictures", "path": str(pictures), "image_variations": 1}],
        samples=[{"prompt": "a fox", "width": 64, "height": 64, "diffusion_steps": 3, "seed": 7}],
        sample_after_unit="NEVER",
        batch_size=2,
        epochs=15,
        dropout_probability=0.1,
        learning_rate_warmup_steps=1,
        tensorboard=False,
    )


def reach(service, state):
    until = time.monotonic() + 120
    while service.state != state and time.monotonic() < until:
        time.sleep(0.01)
        assert service.error is None, service.error.traceback
    assert service.state == state


def test_training_goes_on_bit_for_bit_and_the_picture_is_of_the_live_model(
    service, small, tmp_path
):
    service.start(small).wait(120)
    undisturbed = load_file(tmp_path / "lora.safetensors")

    run = service.start(small.update(workspace_dir=str(tmp_path / "second")))
    inference = InferenceService(tmp_path / "gallery", service)
    reach(service, "training")
    service.pause()
    reach(service, "paused")
    inference.load("live")
    assert inference.defaults["width"] == 64
    before = inference.generate("a fox", **SETTINGS)
    assert before.recipe.model == "live"
    assert np.asarray(before.image).std() > 20
    service.save()
    service.resume()
    drawn = [inference.generate("a fox", **SETTINGS)]
    run.wait(120)
    trained = load_file(tmp_path / "lora.safetensors")
    assert trained.keys() == undisturbed.keys()
    assert all((trained[key] == undisturbed[key]).all() for key in trained)

    # the picture drawn while it was paused is the one that the file saved then draws
    saved = next(event for event in run.events("save") if not event.final)
    inference.load(ot.assets.model(), loras=[(saved.path, 1.0)])
    again = inference.generate("a fox", **SETTINGS)
    difference = np.asarray(again.image, dtype=int) - np.asarray(before.image, dtype=int)
    assert abs(difference).max() <= 2
    assert drawn[0].image.size == (64, 64)
    with pytest.raises(CommandRefused, match="finished"):
        inference.load("live")

    # a run is its base model with its newest result
    for source in (run, run.workspace, next(iter((run.workspace / "backup").iterdir()))):
        inference.load(source)
        assert len(inference.loras) == 1
        result = inference.generate("a fox", **SETTINGS)
        assert np.asarray(result.image).any()
    assert stored_run(run.id, run.workspace).id == run.id
