"""Memory that runs out, by an allocator error where one would come."""

import numpy as np
import pytest
import torch

import ot_notebook as ot
from ot_notebook.services.inference_service import InferenceService

torch.set_num_threads(1)
PLAIN = {"steps": 2, "cfg_scale": 3.0, "scheduler": "DDIM"}
SETTINGS = {"seed": 7, **PLAIN}


@pytest.fixture
def service(tmp_path):
    return InferenceService(tmp_path / "gallery").load(ot.assets.model())


def pixels(result):
    return np.asarray(result.image, dtype=int)


class Full:
    """A device on which a network runs out of memory so many times."""

    def __init__(self, network, times):
        self.left = times
        network.register_forward_pre_hook(self._fail)

    def _fail(self, *_):
        if self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_each_time_that_memory_runs_out_it_takes_less_and_the_picture_is_the_same(service):
    expected = pixels(service.generate("a fox", **SETTINGS))
    parts = service._held.model._owner[1]
    full = Full(parts.denoiser, 1)
    result = service.generate("a fox", **SETTINGS)
    assert np.array_equal(pixels(result), expected)
    assert result.notes == (
        "For want of memory layers wait in main memory until they are used: this is slower.",
    )
    full.left = 1
    result = service.generate("a fox", **SETTINGS)
    assert np.array_equal(pixels(result), expected), "64 px are a single tile"
    assert "and the VAE works on tiles" in result.notes[0]
    assert not parts.vae.use_tiling, "only while it draws"


def test_what_does_not_fit_at_all_is_told_with_what_was_tried(service):
    full = Full(service._held.model._owner[1].denoiser, 3)
    with pytest.raises(MemoryError, match=r"layers wait .* and the VAE works on tiles\. Draw"):
        service.generate("a fox", **SETTINGS)
    assert full.left == 0
    assert service.status.state == "ready"
    service.generate("a fox", **SETTINGS)


def test_layers_can_wait_in_main_memory_from_the_start(service, tmp_path):
    expected = pixels(service.generate("a fox", **SETTINGS))
    offloading = InferenceService(tmp_path / "other").load(ot.assets.model(), offload=True)
    assert np.array_equal(pixels(offloading.generate("a fox", **SETTINGS)), expected)
    offloading.generate("a fox", image=offloading.generate("a fox", **SETTINGS), **SETTINGS)


def test_pictures_that_do_not_fit_side_by_side_are_drawn_one_at_a_time(service):
    alone = [pixels(service.generate("a fox", **{**SETTINGS, "seed": seed})) for seed in (7, 8)]
    Full(service._held.model._owner[1].denoiser, 1)
    several = service.batch("a fox", 2, **SETTINGS)
    assert all(np.array_equal(a, pixels(b)) for a, b in zip(alone, several, strict=True))
    words = "For want of memory pictures are drawn one at a time: this is slower."
    assert [one.notes for one in several] == [(words,)] * 2


def test_a_grid_goes_on_one_picture_at_a_time_once_memory_ran_out(service):
    Full(service._held.model._owner[1].denoiser, 1)
    words = []
    service.subscribe(lambda: words.append(service.status.words))
    shown = service.grid("a fox", x={"seed": [7, 8, 9, 10, 11]}, **PLAIN)
    assert list(dict.fromkeys(filter(None, words))) == [
        "Pictures 1 to 4 of 5",
        *(f"Picture {number} of 5" for number in range(2, 6)),
    ]
    assert shown.complete
    for result in shown.results:
        alone = service.generate("a fox", **{**SETTINGS, "seed": result.recipe.seed})
        assert np.array_equal(pixels(result), pixels(alone))


@pytest.mark.parametrize("of", ["batch", "grid"])
def test_a_cancel_keeps_the_pictures_that_are_done_also_where_memory_ran_out(service, of):
    Full(service._held.model._owner[1].denoiser, 1)
    before = len(service.gallery.pictures())

    def watch():
        if service.status.words == "Picture 3 of 4" and service.status.done:
            service.cancel()

    service.subscribe(watch)
    if of == "batch":
        done = service.batch("a fox", 4, **SETTINGS)
    else:
        done = service.grid("a fox", x={"seed": [7, 8, 9, 10]}, **PLAIN).results
    assert [one.recipe.seed for one in done] == [7, 8]
    assert len(service.gallery.pictures()) == before + 2
