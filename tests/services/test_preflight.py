"""A pre-flight on the embedded model: what it says, and that nothing of it stays."""

import shutil
import threading
from collections.abc import Iterator

import pytest
from PIL import Image

import ot_notebook as ot
from modules.config import ConfigError
from modules.training import events as e
from ot_notebook.services.preflight import Preflight, preflight
from ot_notebook.services.refusals import CommandRefused


@pytest.fixture
def mixed(config, tmp_path):
    """Four square pictures and three that are twice as wide, with the captions of the set."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    found = sorted(ot.assets.dataset("line art").glob("*.png"))[:7]
    for number, picture in enumerate(found):
        with Image.open(picture) as square:
            size = (64, 64) if number < 4 else (128, 64)
            square.convert("RGB").resize(size).save(folder / picture.name)
        shutil.copy(picture.with_suffix(".txt"), folder)
    return config.update(
        concepts=[{"name": "pictures", "path": str(folder), "image_variations": 1}],
        batch_size=2,
        epochs=5,
        aspect_ratio_bucketing=True,
    )


def files(folder) -> Iterator:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_it_tells_speed_time_and_plan_and_leaves_nothing(mixed, tmp_path):
    before = files(tmp_path)
    said = []
    found = preflight(mixed, say=said.append)
    assert found.fits, str(found)
    assert found.plan.images == 7
    assert sum(count for _, count in found.plan.sizes) == 7
    assert len(found.plan.sizes) == 2
    assert found.seconds_per_step > 0
    assert found.total_seconds == pytest.approx(found.plan.steps * found.seconds_per_step)
    assert found.peak_memory is None, "that of a GPU; there is none"
    assert "It fits." in str(found)
    assert any("steps at" in text for text in said)
    assert files(tmp_path) == before


@pytest.mark.parametrize("leftovers", ["PAD", "DROP", "ROTATE"])
def test_its_steps_are_those_that_the_run_takes(stage, mixed, leftovers):
    config = mixed.update(epochs=3, sample_after_unit="NEVER", **{"ot.leftovers": leftovers})
    planned = preflight(config).plan.steps
    service = type(stage.service)()
    run = service.start(config)
    run.wait(120)
    assert service.max_step == planned
    service.close()


def test_settings_that_cannot_run_end_it_before_a_model_loads(mixed):
    found = preflight(mixed.update(base_model_name="/nowhere"))
    assert not found.fits
    assert found.plan is None
    assert "base_model_name" in str(found)


def test_a_set_without_images_is_named(mixed, tmp_path):
    (tmp_path / "empty").mkdir()
    found = preflight(mixed.update(concepts=[{"path": str(tmp_path / "empty")}]))
    assert not found.fits
    assert "no image" in str(found)


def test_what_breaks_on_the_way_is_the_answer_with_advice(mixed, monkeypatch):
    from modules.training.trainer import GenericTrainer

    def full(self, *_):
        raise MemoryError("no room for 9 GiB")

    monkeypatch.setattr(GenericTrainer, "_backward", full)
    found = preflight(mixed)
    assert not found.fits
    assert "MemoryError: no room for 9 GiB" in found.error
    assert found.advice
    assert found.notes == () or "Out of memory" in found.notes[0]


def test_the_service_makes_one_at_a_time_and_start_can_ask_for_it(stage, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def slow(config, commands, say):
        begun.set()
        go.wait(5)
        stopped = commands.stop_requested
        return Preflight(not stopped, (), error="It was stopped." if stopped else "")

    monkeypatch.setattr("ot_notebook.services.trainer_service.preflight", slow)
    service = stage.service
    thread = threading.Thread(target=service.preflight, args=(stage.config,))
    thread.start()
    assert begun.wait(5)
    assert service.trial is True
    for command in (service.preflight, service.start):
        with pytest.raises(CommandRefused, match="a pre-flight is live"):
            command(stage.config)
    service.stop()
    go.set()
    thread.join(5)
    assert not service.trial.fits
    assert "It was stopped." in service.history.log[-1].text

    assert service.start(stage.config, preflight=True)
    assert service.trial is None, "a run has begun since"
    stage.run.end("finished")
    monkeypatch.setattr(
        "ot_notebook.services.trainer_service.preflight",
        lambda *_: Preflight(False, (), error="OutOfMemoryError: 9 GiB.", advice="Use less."),
    )
    with pytest.raises(ConfigError, match=r"OutOfMemoryError: 9 GiB\. Use less"):
        service.start(stage.config, preflight=True)
    assert len(stage.runs) == 1
    assert service.state in e.ENDED
