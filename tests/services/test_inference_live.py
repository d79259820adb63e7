"""Drawing with the model that trains: pictures of it as it is, and training as if nothing was."""

import numpy as np
import pytest
from safetensors.torch import load_file

import ot_notebook as ot
from ot_notebook.services.inference_service import InferenceService
from ot_notebook.services.refusals import CommandRefused
from ot_notebook.services.run import run as stored_run

SETTINGS = {"seed": 7, "steps": 3, "cfg_scale": 3.0, "scheduler": "DDIM"}


@pytest.fixture
def longer(small):
    """Time enough to draw in, with dropout at work."""
    changes = {"epochs": 15, "dropout_probability": 0.1, "tensorboard": False}
    return small.update(**changes)


def test_training_goes_on_bit_for_bit_and_the_picture_is_of_the_live_model(
    service, longer, reach, tmp_path
):
    service.start(longer).wait(120)
    undisturbed = load_file(tmp_path / "lora.safetensors")

    run = service.start(longer.update(workspace_dir=str(tmp_path / "second")))
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
    with pytest.raises(ot.Cancelled, match=r"has ended.*Load the run"):
        inference.generate("a fox", **SETTINGS)
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


def test_a_run_that_takes_no_steps_yet_says_when_its_model_can_be_used(stage, tmp_path):
    inference = InferenceService(tmp_path / "gallery", stage.service)
    stage.start()
    for state, doing in (("loading", "loading"), ("caching", "caching its training set")):
        stage.run.enter(state)
        stage.service.flush()
        with pytest.raises(CommandRefused) as refused:
            inference.load("live")
        assert str(refused.value) == (
            f'load("live") is refused: the run is still {doing}; its model can be used once it '
            "takes steps."
        )
        assert inference.status.state == "empty"
