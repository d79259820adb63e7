"""The inference panel without a page: what it sends, and what its requests do."""

import time

import pytest
import torch

import ot_notebook as ot
from modules.config import ConfigError
from ot_notebook.services.inference_service import InferenceService
from ot_notebook.widgets.inference_panel import InferencePanel

torch.set_num_threads(1)
QUICK = {"steps": 1, "cfg_scale": 3.0, "scheduler": "DDIM"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return InferenceService(tmp_path_factory.mktemp("gallery")).load(ot.assets.model())


@pytest.fixture
def panel(service, wire):
    panel = InferencePanel(service)
    panel.set(**QUICK)
    yield panel
    panel.wait(60)
    panel.close()


def ask(panel, **content):
    panel._front._handle_custom_msg(content, [])
    return panel._front.view["notice"]


def draw(panel, **settings):
    assert ask(panel, op="draw", settings=settings) is None
    return panel.wait(60)


def test_a_request_draws_and_shows_the_picture_beside_those_before_it(panel):
    first = draw(panel, prompt="a fox", seed=3)
    second = draw(panel, prompt="an owl", seed=4)
    assert [one.recipe.prompt for one in panel.results] == ["a fox", "an owl"]
    assert panel._front.picture["image"] == second.path.read_bytes()
    assert [tile["id"] for tile in panel._front.history] == [1, 0]
    ask(panel, op="pick", id=0)
    assert panel._front.picture["image"] == first.path.read_bytes()
    assert "seed 3" in panel._front.picture["words"]


def test_settings_and_seed_of_a_picture_are_taken_up_again(panel):
    draw(panel, prompt="a fox", seed=3)
    panel.set(prompt="a cat", seed=None)
    ask(panel, op="reuse", id=0, seed=True)
    assert (panel.settings["prompt"], panel.settings["seed"]) == ("a cat", 3)
    ask(panel, op="reuse", id=0, seed=False)
    assert panel.settings["prompt"] == "a fox"
    ask(panel, op="code", id=0)
    assert "manual_seed(3)" in panel._front.view["code"]


def test_what_is_refused_is_shown_and_nothing_is_drawn(panel, tmp_path):
    notice = ask(panel, op="draw", settings={"width": 67})
    assert "The nearest is 68" in notice["text"]
    notice = ask(panel, op="loras", loras=[[str(tmp_path / "gone.safetensors"), 1.0]])
    assert "gone.safetensors does not exist" in notice["text"]
    assert "There is no picture 7" in ask(panel, op="pick", id=7)["text"]
    assert "Write a folder" in ask(panel, op="load", model=" ")["text"]
    assert panel.results == []
    with pytest.raises(ConfigError, match="steps is 0"):
        panel.set(width=64, steps=0)
    assert panel.settings["steps"] == 1


def test_stop_ends_a_picture(panel, service):
    panel.set(steps=400)
    seen = []

    def watch():
        if service.status.done == 2 and not seen:
            seen.append(ask(panel, op="stop"))

    unsubscribe = service.subscribe(watch)
    ask(panel, op="draw", settings={"prompt": "a fox"})
    panel.wait(60)
    unsubscribe()
    assert panel._front.view["notice"]["title"] == "Stopped"
    assert panel.results == []


def test_loras_changed_during_a_picture_wait_for_it_and_stop_does_not(panel, service):
    panel.set(steps=400)
    asked = []

    def watch():
        if service.status.done == 2 and not asked:
            asked.append(ask(panel, op="loras", loras=[["gone.safetensors", 1.0]]))
            ask(panel, op="stop")

    unsubscribe = service.subscribe(watch)
    ask(panel, op="draw", settings={"prompt": "a fox"})
    panel.wait(60)
    unsubscribe()
    assert asked
    until = time.monotonic() + 30
    while "does not exist" not in str(panel._front.view["notice"]) and time.monotonic() < until:
        time.sleep(0.02)
    assert "gone.safetensors does not exist" in panel._front.view["notice"]["text"]


def test_a_model_that_does_not_load_is_told(tmp_path, wire):
    panel = InferencePanel(InferenceService(tmp_path / "gallery"))
    assert panel._front.view["status"] == "No model is loaded."
    assert "No model is loaded" in ask(panel, op="draw", settings={})["text"]
    ask(panel, op="load", model=str(tmp_path / "gone"))
    panel.wait(60)
    assert "does not exist" in panel._front.view["notice"]["text"]
    panel.close()


def test_core_widgets_draw_the_same(service, wire):
    panel = InferencePanel(service, mode="core")
    core = panel._core
    core._prompt.value, core._numbers["seed"].value = "a <b>fox</b>", "5"
    core._numbers["steps"].value, core._scheduler.value = "1", "DDIM"
    core._draw_button.click()
    result = panel.wait(60)
    assert (result.recipe.prompt, result.recipe.seed) == ("a <b>fox</b>", 5)
    assert core._image.value == result.path.read_bytes()
    assert "&lt;b&gt;fox" in core._words.value
    assert "<b>fox" not in core._words.value
    core._numbers["width"].value = "many"
    core._draw_button.click()
    assert "width is &#x27;many&#x27;" in core._notice.value
    panel.close()


def test_a_saved_notebook_keeps_the_pictures_and_escapes_prompts(panel):
    draw(panel, prompt="<script>alert(1)</script>", seed=3)
    html = panel._repr_mimebundle_()[0]["text/html"]
    assert "data:image/" in html
    assert "<script" not in html
    assert str(panel.results[0].path) in panel.plain()


def test_closing_leaves_the_service_as_it_is(service, wire):
    before = len(service._listeners)
    panel = InferencePanel(service)
    assert len(service._listeners) == before + 1
    panel.close()
    assert len(service._listeners) == before
    assert service.status.state == "ready"
