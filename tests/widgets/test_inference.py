"""The inference panel without a page: what it sends, and what its requests do."""

import base64
import io
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ot_notebook as ot
from modules.config import ConfigError, ModelType
from modules.families import family_for
from ot_notebook.services.inference_service import InferenceService
from ot_notebook.widgets import inference_history
from ot_notebook.widgets.inference_panel import InferencePanel
from ot_notebook.widgets.job_config import JobConfig

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


def test_drawing_the_page_again_makes_and_sends_no_picture_twice(panel, wire):
    for seed in (1, 2):
        draw(panel, prompt="a fox", seed=seed)
    ask(panel, op="beside", id=0)
    ask(panel, op="starts")
    held = [panel._picture(), panel._other(), *panel._past.tiles()]
    wire.clear()
    for _ in range(3):
        panel._show()
    again = [panel._picture(), panel._other(), *panel._past.tiles()]
    assert all(one is other for one, other in zip(held, again, strict=True))
    assert wire.states(panel._front) == []


def sought(panel):
    """The page asks for what is new, until the gallery was looked through."""
    ask(panel, op="beat")
    for thread in threading.enumerate():
        if thread.name == "ot-inference-history":
            thread.join(30)
    ask(panel, op="beat")
    return panel._front.history


@pytest.fixture
def later(tmp_path, wire):
    """Makes panels over one folder, as kernels after one another do."""
    made = []

    def panel(**how):
        service = InferenceService(tmp_path / "gallery")
        made.append(InferencePanel(service, **how))
        return made[-1]

    yield panel
    for one in made:
        one.wait(60)
        one.close()


def test_a_new_kernel_shows_and_uses_the_pictures_of_the_gallery(later, tmp_path):
    first = later()
    first.service.load(ot.assets.model())
    first.set(**QUICK)
    fox, owl = (draw(first, prompt=p, seed=3) for p in ("a fox", "an owl <b>"))
    Image.new("RGB", (8, 8)).save(fox.path.with_name("0000-someone-else.png"))
    fox.path.with_name("0001-torn.png").write_bytes(owl.path.read_bytes()[:90])

    panel = later()
    assert panel._front.history == []  # nothing is read before there is a page
    assert [tile["words"][:8] for tile in sought(panel)] == ["an owl <", "a fox, s"]
    assert panel._front.picture == {}
    assert ask(panel, op="pick", id=-2) is None
    assert panel._front.picture["image"] == fox.path.read_bytes()
    assert "seed 3" in panel._front.picture["words"]
    ask(panel, op="code", id=-2)
    assert "'a fox'" in panel._front.view["code"]
    panel.service.load(ot.assets.model())
    assert ask(panel, op="reuse", id=-2, seed=False) is None
    assert panel.settings["prompt"] == "a fox"
    ask(panel, op="beside", id=-1)
    third = draw(panel, prompt="a cat")
    assert (panel._front.other["id"], panel._front.other["to"]) == (-1, 0)
    assert panel._front.view["code"] == ""  # it was that of another picture
    assert panel.results == [third]
    assert [tile["id"] for tile in panel._front.history] == [0, -1, -2]

    owl.path.unlink()
    assert "does not exist" in ask(panel, op="pick", id=-1)["text"]
    assert "no picture -9 here" in ask(panel, op="pick", id=-9)["text"]
    assert panel._front.picture["id"] == 0
    core = later(mode="core")
    core._beat()
    sought(panel)
    core._beat()
    offered = core._core._choice
    labels = [label[:5] for label, _ in offered.options]
    assert labels == ["choos", "a cat", "a fox"]
    offered.value = -2
    assert "a fox" in core._core._words.value


def test_pictures_drawn_from_code_and_in_another_panel_are_taken_up_once(
    panel, service, monkeypatch
):
    monkeypatch.setattr(inference_history, "HISTORY", 4)
    monkeypatch.setattr(inference_history, "EARLIER", 2)  # the two below, found there as well
    other = InferencePanel(service)
    fox = draw(panel, prompt="a fox", seed=3)
    owl = service.generate("an owl", seed=5, steps=1)
    for one, own in ((panel, [fox]), (other, [])):
        assert [tile["words"][:6] for tile in sought(one)] == ["an owl", "a fox,"]
        assert one.results == own
    assert panel._front.picture["id"] == 0  # what a person looks at stays
    assert other._front.picture == {}
    newest = other._front.history[0]["id"]
    assert ask(other, op="pick", id=newest) is None
    assert other._front.picture["image"] == owl.path.read_bytes()
    ask(other, op="reuse", id=newest, seed=True)
    assert other.settings["seed"] == 5

    service.batch("a cat", 6, seed=1, steps=1)
    assert [re.search(r"seed (\d+)", tile["words"])[1] for tile in sought(panel)] == list("6543")
    assert sorted(panel._past._drawn) == [0, 4, 5, 6, 7]  # 0 is shown large
    assert ask(panel, op="grid", axes=[["seed", "1-6"]], settings={}) is None
    panel.wait(60)
    assert [one.recipe.seed for one in panel.results] == [3, 4, 5, 6]
    assert [one["label"] for one in panel._front.view["series"]] == [
        f"seed {n}" for n in range(1, 7)
    ]
    assert len(sought(other)) == len(other._past._drawn) - 1 == 4
    other.close()
    assert len(service._followers) == 1


def test_a_page_holds_the_last_pictures_and_those_of_the_last_grid(panel, monkeypatch):
    monkeypatch.setattr(inference_history, "HISTORY", 3)
    for seed in range(4):
        draw(panel, prompt="a fox", seed=seed)
    assert [one.recipe.seed for one in panel.results] == [1, 2, 3]
    assert [tile["id"] for tile in panel._front.history] == [3, 2, 1]
    assert "no picture 0 here any more" in ask(panel, op="pick", id=0)["text"]
    assert ask(panel, op="beside", id=1) is None
    assert ask(panel, op="grid", axes=[["seed", "1-5"]], settings={}) is None
    panel.wait(60)
    assert len(panel.results) == len(panel._front.history) == 3
    assert panel._front.other["id"] == 1  # it stays while it is compared
    for one in panel._front.view["series"]:
        assert ask(panel, op="pick", id=one["id"]) is None
    draw(panel, prompt="an owl", seed=9)
    assert len(panel._past._drawn) <= 3 + 5


def test_pictures_that_are_looked_at_stay_however_many_come_after_them(panel, service, monkeypatch):
    monkeypatch.setattr(inference_history, "HISTORY", 3)
    for seed in range(3):
        draw(panel, prompt="a fox", seed=seed)
    ask(panel, op="pick", id=0)
    ask(panel, op="beside", id=1)
    service.batch("a cat", 5, seed=10, steps=1)
    assert sorted(panel._past._drawn) == [0, 1, 5, 6, 7]
    assert ask(panel, op="code", id=0, **{"as": "web"}) is None
    assert "Seed: 0" in panel._front.view["code"]
    assert ask(panel, op="reuse", id=1, seed=True) is None
    assert panel.settings["seed"] == 1
    ask(panel, op="beside")
    ask(panel, op="pick", id=7)
    service.generate("a cat", steps=1)
    assert sorted(panel._past._drawn) == [6, 7, 8]
    assert "no picture 0 here any more" in ask(panel, op="pick", id=0)["text"]


@pytest.mark.parametrize("mode", ["rich", "core"])
def test_a_seed_of_64_bits_is_kept_and_minus_one_is_another_each_time(service, wire, mode):
    panel = InferencePanel(service, mode=mode)
    panel.set(**QUICK)
    large = 1234567890123456789
    panel._on_request({"op": "draw", "settings": {"seed": str(large)}})
    assert panel.wait(60).recipe.seed == large
    if mode == "rich":  # a page's own numbers hold 53 bits
        assert panel._front.settings["seed"] == str(large)
    panel._on_request({"op": "draw", "settings": {"seed": -1}})
    assert panel.wait(60).recipe.seed not in (large, -1)
    assert panel.settings["seed"] is None
    panel._on_request({"op": "draw", "settings": {"seed": "seven"}})
    assert "seed is 'seven'" in panel._notice["text"]
    panel.close()


def test_settings_and_seed_of_a_picture_are_taken_up_again(panel):
    draw(panel, prompt="a fox", seed=3)
    panel.set(prompt="a cat", seed=None)
    ask(panel, op="reuse", id=0, seed=True)
    assert (panel.settings["prompt"], panel.settings["seed"]) == ("a cat", 3)
    ask(panel, op="reuse", id=0, seed=False)
    assert panel.settings["prompt"] == "a fox"
    ask(panel, op="code", id=0)
    assert "manual_seed(3)" in panel._front.view["code"]


def given(panel, op, picture, **more):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **more)
    panel._front._handle_custom_msg({"op": op}, [memoryview(buffer.getvalue())])
    return panel._front.view["notice"]


def test_a_picture_and_a_mask_from_the_page_decide_the_next_picture(panel):
    first = draw(panel, prompt="a red apple", seed=3, steps=4)
    assert ask(panel, op="begin", id=0) is None
    assert panel._front.start["width"] == 64
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    assert given(panel, "mask", mask) is None
    assert panel._front.start["masked"]
    second = draw(panel, prompt="an owl", strength=1.0)
    recipe = second.recipe
    assert (bool(recipe.image), bool(recipe.mask), recipe.strength) == (True, True, 1.0)
    change = abs(np.asarray(first.image, int) - np.asarray(second.image, int)).mean(axis=(0, 2))
    assert change[:28].mean() < change[36:].mean()
    ask(panel, op="mask", path="")
    assert draw(panel).recipe.mask == ""
    ask(panel, op="begin")
    assert panel._front.start == {"of": ["", ""]}
    assert draw(panel, prompt="a fox").recipe.image == ""
    assert given(panel, "start", Image.new("RGB", (32, 16), "red")) is None
    assert panel._front.start["height"] == 16
    panel._front._handle_custom_msg({"op": "start"}, [memoryview(b"no picture")])
    assert "image is a file, which is no picture" in panel._front.view["notice"]["text"]


def test_a_file_comes_in_parts_and_one_that_is_too_large_is_refused_at_the_first(panel):
    buffer = io.BytesIO()
    Image.new("RGB", (48, 16), "red").save(buffer, "PNG")
    data, half = buffer.getvalue(), buffer.tell() // 2

    def send(at, part, file="a", of=None):
        content = {"op": "start", "file": file, "at": at, "of": of or len(data)}
        panel._front._handle_custom_msg(content, [memoryview(part)])
        return panel._front.view["notice"]

    assert send(0, b"of another", file="b") is None
    assert send(half, data[half:]) is None  # threads may serve the parts in another order
    assert "image" not in panel._front.start
    assert send(0, data[:half]) is None
    assert panel._front.start["width"] == 48
    largest = panel._front.choices["largest"]
    notice = send(0, data[:half], file="c", of=largest + 2**20)
    assert (notice["place"], "65 MiB" in notice["text"]) == ("start", True)
    assert panel._front.start["width"] == 48
    ask(panel, op="begin")


def test_a_png_from_the_page_gives_its_settings_back(panel):
    drawn = draw(panel, prompt="a fox", seed=11, clip_skip=1)
    panel.set(prompt="something else", seed=None, clip_skip=0)
    with Image.open(drawn.path) as kept:
        notice = given(panel, "png", kept, pnginfo=drawn.recipe.png_info())
    assert notice["title"] == "Settings read"
    assert panel.settings["prompt"] == "a fox"
    assert (panel.settings["seed"], panel.settings["clip_skip"]) == (11, 1)
    assert "holds no settings" in given(panel, "png", Image.new("RGB", (8, 8)))["text"]
    assert "Draw draws it again" in notice["text"]
    other = replace(drawn.recipe, model="/models/other.safetensors").png_info()
    notice = given(panel, "png", Image.new("RGB", (8, 8)), pnginfo=other)
    assert "drawn with /models/other.safetensors, not with this model" in notice["text"]


@pytest.mark.parametrize("missing", ["loras", "embeddings"])
def test_a_png_that_names_a_missing_file_changes_nothing(panel, service, tmp_path, missing):
    gone = str(tmp_path / "gone.safetensors")
    width = service._held.model._owner[1].pipeline.text_encoder.config.hidden_size
    word = tmp_path / "ohwx.safetensors"
    save_file({"emp_params": torch.randn(2, width)}, word)
    files = {"loras": (), "embeddings": (("ohwx", str(word)),)}
    files[missing] = ((gone, 1.0),) if missing == "loras" else (("x", gone),)
    recipe = replace(draw(panel, prompt="a fox", seed=11).recipe, **files)
    panel.set(prompt="something else", seed=None)
    notice = given(panel, "png", Image.new("RGB", (8, 8)), pnginfo=recipe.png_info())
    assert notice["title"] == "Not done"
    assert "gone.safetensors does not exist" in notice["text"]
    assert (panel.settings["prompt"], panel.settings["seed"]) == ("something else", None)
    assert (service.loras, service.embeddings) == ((), ())


def test_a_grid_becomes_a_sheet_a_table_and_a_series(panel):
    settings = {"prompt": "a fox", "steps": 1}
    axes = [["seed", "1-3"], ["cfg_scale", "1, 3"]]
    assert ask(panel, op="grid", axes=axes, settings=settings) is None
    panel.wait(60)
    assert list(panel.grid.table["seed"]) == [1, 2, 3] * 2
    series = panel._front.view["series"]
    assert [one["label"] for one in series][:2] == ["seed 1, guidance 1", "seed 2, guidance 1"]
    assert panel._front.sheet["path"] == str(panel.grid.path)
    ask(panel, op="pick", id=series[4]["id"])
    assert "seed 2" in panel._front.picture["words"]
    for axes, words in [
        ([["seed", "one"]], "seed is 'one'"),
        ([["seed", "5-1"]], "5-1 is no range"),
        ([], "No setting is on an axis"),
        ([["save", "nothing"]], "There is no run nothing"),
    ]:
        ask(panel, op="grid", axes=axes, settings=settings)
        panel.wait(60)
        assert words in panel._front.view["notice"]["text"]
    assert "save" in panel._front.view["axes"]


def test_each_picture_of_a_grid_is_shown_as_it_comes_but_not_over_one_that_is_looked_at(
    panel, service
):
    seen = []

    def watch(result):
        if len(seen) == 6:
            ask(panel, op="pick", id=2)
        ask(panel, op="beat")
        seen.append((result.path.read_bytes(), panel._front.picture))

    leave = service.follow(watch)
    ask(panel, op="grid", axes=[["seed", "1-12"]], settings={"prompt": "a fox"})
    panel.wait(60)
    leave()
    assert [shown["image"] for _, shown in seen[:6]] == [image for image, _ in seen[:6]]
    assert {shown["id"] for _, shown in seen[6:]} == {2}
    assert panel._front.picture["id"] == 0  # the first of the series, when it is whole
    service.generate("an owl", steps=1)
    ask(panel, op="beat")
    assert panel._front.picture["id"] == 0


def test_a_grid_sends_a_few_pictures_a_second_at_most(panel, wire):
    wire.clear()
    begun = time.monotonic()
    ask(panel, op="grid", axes=[["seed", "1-32"]], settings={"prompt": "a fox"})
    panel.wait(60)
    sent = [state for state in wire.states(panel._front) if "picture" in state]
    assert 1 <= len(sent) <= 2 + 5 * (time.monotonic() - begun)


def test_two_pictures_are_laid_beside_one_another_with_their_difference(panel):
    draw(panel, prompt="a fox", seed=1)
    draw(panel, prompt="a fox", seed=1)
    draw(panel, prompt="a fox", seed=2)
    ask(panel, op="beside", id=0)
    other = panel._front.other
    assert (other["id"], other["to"]) == (0, 2)
    assert float(re.search(r"by ([\d.]+)", other["distance"])[1]) > 1
    ask(panel, op="pick", id=1)
    assert "differs by 0.0 of 255" in panel._front.other["distance"]
    ask(panel, op="beside")
    assert panel._front.other == {}


def test_settings_are_copied_for_other_programs_and_added_to_the_job(panel, config):
    draw(panel, prompt="a fox", seed=3)
    for kind, words in [
        ("web", "Steps: 1, Sampler: DDIM"),
        ("comfy", "CheckpointLoaderSimple"),
        ("sample", '"diffusion_steps": 1'),
    ]:
        ask(panel, op="code", id=0, **{"as": kind})
        assert words in panel._front.view["code"]
    panel.job = JobConfig(config)
    before = len(panel.job.config.samples or ())
    assert ask(panel, op="sample", id=0)["title"] == "Added to the samples"
    samples = panel.job.config.samples
    assert (len(samples), samples[-1].prompt, samples[-1].seed) == (before + 1, "a fox", 3)
    panel.job.close()


def test_words_are_added_used_and_taken_out(panel, service, tmp_path):
    width = service._held.model._owner[1].pipeline.text_encoder.config.hidden_size
    save_file({"emp_params": torch.randn(2, width)}, tmp_path / "ohwx.safetensors")
    bare = draw(panel, prompt="a <cat>", seed=3)
    path = str(tmp_path / "ohwx.safetensors")
    assert ask(panel, op="words", words=[["<cat>", path], ["", path]]) is None
    assert [one["word"] for one in panel._front.view["words"]] == ["<cat>", "ohwx"]
    taught = draw(panel, prompt="a <cat>", seed=3)
    assert taught.recipe.embeddings == (("<cat>", path), ("ohwx", path))
    assert "<cat>" in panel._front.picture["words"]
    assert not np.array_equal(np.asarray(bare.image), np.asarray(taught.image))
    assert ask(panel, op="words", words=[]) is None
    assert np.array_equal(np.asarray(draw(panel).image), np.asarray(bare.image))
    ask(panel, op="reuse", id=1, seed=False)
    assert [one["word"] for one in panel._front.view["words"]] == ["<cat>", "ohwx"]
    assert np.array_equal(np.asarray(draw(panel).image), np.asarray(taught.image))
    notice = ask(panel, op="words", words=[["x", str(tmp_path / "gone.safetensors")]])
    assert "gone.safetensors does not exist" in notice["text"]
    assert len(panel._front.view["words"]) == 2
    service.set_embeddings([])


def test_earlier_pictures_are_offered_to_begin_with(panel):
    drawn = draw(panel, prompt="a red apple", seed=3)
    ask(panel, op="starts")
    first = panel._front.starts[0]
    assert first["path"] == str(drawn.path)
    ask(panel, op="begin", path=first["path"])
    assert panel.settings["image"]
    ask(panel, op="begin")


def test_how_a_model_is_loaded_is_the_page_s_to_say(tmp_path, wire):
    panel = InferencePanel(InferenceService(tmp_path / "gallery"))
    types = dict(panel._front.choices["types"])
    assert types["STABLE_DIFFUSION_15"] == "Stable Diffusion 1.5"
    model = str(ot.assets.model())
    ask(panel, op="load", model=model, model_type="STABLE_DIFFUSION_15", dtype="BFLOAT_16")
    panel.wait(60)
    panel.set(steps=1)
    assert draw(panel, prompt="a fox").recipe.dtype == "BFLOAT_16"
    assert "frames" not in panel.settings
    ask(panel, op="load", model=model, model_type="NONE_SUCH")
    panel.wait(60)
    assert "NONE_SUCH" in panel._front.view["notice"]["text"]
    ask(panel, op="load", model=model)
    panel.wait(60)
    ask(panel, op="unload")
    assert panel._front.view["status"] == "No model is loaded."
    panel.close()


def test_a_film_is_shown_with_its_frames(tmp_path, wire):
    folder = tmp_path / "wan"
    family_for(ModelType.WAN_2).tiny().pipeline.save_pretrained(folder)
    service = InferenceService(tmp_path / "gallery").load(folder, device="cpu")
    for mode in ("rich", "core"):
        panel = InferencePanel(service, mode=mode)
        panel.set(width=64, height=32, steps=1, frames=5, prompt="a <fox>")
        panel.draw()
        result = panel.wait(60)
        if mode == "rich":
            assert panel._front.picture["film"] == result.film.read_bytes()
            assert "5 frames" in panel._front.picture["words"]
            assert "scheduler" not in panel._front.settings
            panel.set(frames=1)
            ask(panel, op="reuse", id=0, seed=False)
            assert panel.settings["frames"] == 5
        else:
            assert "<video" in panel._core._image.value
            assert "a &lt;fox&gt;" in panel._core._image.value
        panel.close()


def test_a_refusal_is_told_where_it_was_asked(panel, tmp_path):
    gone = str(tmp_path / "gone.safetensors")
    for place, request, words in [
        ("draw", {"op": "draw", "settings": {"cfg_scale": "x"}}, "^guidance is 'x', but must be a"),
        ("draw", {"op": "draw", "settings": {"cfg_scale": 3.0, "width": 7}}, "^width is 7, but"),
        ("grid", {"op": "grid", "axes": [["seed", "x"]], "settings": {"width": 64}}, "seed is 'x'"),
        ("loras", {"op": "loras", "loras": [[gone, 1]]}, "gone.safetensors does not exist"),
        ("words", {"op": "words", "words": [["", gone]]}, "gone.safetensors does not exist"),
        ("start", {"op": "begin", "path": gone}, "image: .*does not exist"),
    ]:
        ask(panel, **request)
        panel.wait(60)
        notice = panel._front.view["notice"]
        assert notice["place"] == place
        assert re.search(words, notice["text"])


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
    assert panel._front.view["notice"]["place"] == "model"  # told where it was asked for
    panel.close()


def test_core_widgets_draw_the_same(service, wire):
    panel = InferencePanel(service, mode="core")
    core = panel._core
    core._prompt.value, core._numbers["seed"].value = "a <b>fox</b>", "5"
    core._numbers["steps"].value, core._scheduler.value = "1", "DDIM"
    core._draw_button.click()
    result = panel.wait(60)
    assert (result.recipe.prompt, result.recipe.seed) == ("a <b>fox</b>", 5)
    assert base64.b64encode(result.path.read_bytes()).decode() in core._image.value
    assert 'alt="a &lt;b&gt;fox&lt;/b&gt;"' in core._image.value
    assert "&lt;b&gt;fox" in core._words.value
    assert "<b>fox" not in core._words.value
    tools = core.tools
    (across, values), *_ = tools._axes
    across.value, values.value = "seed", "1, 2"
    panel._on_request({"op": "beside", "id": 0})
    core._send("grid", {"axes": tools._written()})
    panel.wait(60)
    assert len(panel.results) == 3
    assert tools._sheet.value
    assert tools._pair.layout.display == "flex"
    tools._series.value = 2
    assert core._shown == 2
    tools._copy.value = "web"
    assert "Seed: 2" in core._code.value
    tools._image.value = str(result.path)
    assert panel.settings["image"]
    core._numbers["steps"].value = "4"
    core._draw_button.click()
    assert panel.wait(60).recipe.image
    tools._settings.value = str(result.path)
    assert core._prompt.value == "a <b>fox</b>"
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
    def held():
        return len(service._listeners), len(service._followers)

    before = held()
    panel = InferencePanel(service)
    assert held() == (before[0] + 1, before[1] + 1)
    panel.close()
    assert held() == before
    assert service.status.state == "ready"
