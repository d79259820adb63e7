"""Models of the hub, from a cache on this disk: their revisions, and what is said without them."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.config import ConfigError, ModelFormat, ModelType, TrainConfig, validate
from modules.config.hardware import Hardware
from modules.families import family_for
from modules.families.saving import save_model

FLUX = ModelType.FLUX_DEV_1
COMMITS = {"main": "a" * 40, "v2": "b" * 40, "refs/pr/1": "c" * 40}
"""Branches and pull requests of a model, each with weights of its own."""


def filled(number):
    """A model whose every weight is the same."""
    parts = family_for(FLUX).tiny()
    for network in parts.modules().values():
        for weight in network.parameters():
            torch.nn.init.constant_(weight, number)
    return parts


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A cache as the hub's own library keeps it."""
    cache = tmp_path_factory.mktemp("hub")
    model = cache / "models--someone--cards"
    for number, (branch, commit) in enumerate(COMMITS.items(), 1):
        family = family_for(FLUX)
        folder = model / "snapshots" / commit
        save_model(family, filled(number), folder, ModelFormat.DIFFUSERS, torch.float32)
        (model / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
        (model / "refs" / branch).write_text(commit)
    return cache


def config(hub, name, **changes):
    return TrainConfig().update(
        model_type=FLUX.value,
        training_method="LORA",
        train_dtype="FLOAT_32",
        train_device="cpu",
        base_model_name=name,
        huggingface_cache_dir=str(hub),
        offline_mode=True,
        **changes,
    )


def numbers(parts):
    return {name: next(net.parameters()).mean().item() for name, net in parts.modules().items()}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("someone/cards", 1),
        ("someone/cards@main", 1),
        ("someone/cards@v2", 2),
        ("someone/cards@refs/pr/1", 3),
        (f"someone/cards@{COMMITS['v2']}", 2),
    ],
)
def test_what_stands_behind_the_at_sign_is_the_revision(hub, name, number):
    wanted = config(hub, name)
    assert not [p for p in validate(wanted, Hardware("cpu", "cpu")) if p.field == "base_model_name"]
    assert set(numbers(family_for(FLUX).load(wanted)).values()) == {number}


def test_parts_have_revisions_of_their_own(hub):
    changes = {
        "transformer.model_name": "someone/cards@v2",
        "vae.model_name": "someone/cards@refs/pr/1",
        "text_encoder_2.weight_dtype": "INT_8",  # small parts are loaded one by one
    }
    found = numbers(family_for(FLUX).load(config(hub, "someone/cards", **changes)))
    assert (found["transformer"], found["vae"], found["text_encoder"]) == (2, 3, 1)


def test_a_file_takes_its_settings_from_the_revision(hub, tmp_path):
    family = family_for(FLUX)
    file = tmp_path / "flux.safetensors"
    weights = filled(7).denoiser.state_dict()  # diffusers' reader of the original knows one size
    save_file(weights, file)
    changes = {"transformer.model_name": str(file)}
    found = numbers(family.load(config(hub, "someone/cards@v2", **changes)))
    assert (found["transformer"], found["vae"]) == (7, 2)


def test_a_folder_of_that_name_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    family = family_for(FLUX)
    save_model(family, filled(9), Path("my/model@home"), ModelFormat.DIFFUSERS, torch.float32)
    assert set(numbers(family.load(config(hub, "my/model@home"))).values()) == {9}


@pytest.mark.parametrize("name", ["someone/cards@v3", "someone/else"])
def test_what_the_cache_lacks_is_named_before_and_while_it_is_loaded(hub, name):
    wanted = config(hub, name)
    found = [p for p in validate(wanted, Hardware("cpu", "cpu")) if p.field == "base_model_name"]
    assert [problem.message for problem in found] == [
        f"base_model_name is {name}, which is not in {hub}, but offline_mode is true."
    ]
    with pytest.raises(ConfigError) as caught:
        family_for(FLUX).load(wanted)
    (problem,) = caught.value.problems
    assert f"Cannot load {name} as FluxPipeline" in problem.message
    assert "offline_mode" in problem.fix


LOAD = """
from modules.config import ConfigError, TrainConfig
from modules.families import family_for
config = TrainConfig().update(
    model_type="FLUX_DEV_1", base_model_name="someone/secret@v2", huggingface_cache_dir="cache"
)
try:
    family_for(config.model_type).load(config)
except ConfigError as error:
    print(error.problems[0].message, error.problems[0].fix)
"""


class Gate:
    """A hub that lets nobody in, and a process that may ask it."""

    def __init__(self, folder):
        self.asked = asked = []
        """Paths, and what each request was authorised by."""
        self._folder = folder

        class Door(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.path, self.headers.get("Authorization")))
                self.send_error(401)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        Thread(target=self.server.serve_forever, daemon=True).start()

    def run(self, code, *arguments):
        """Run code in the folder, where the hub may be asked, unlike in these tests."""
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_TOKEN": "hf_something",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(self._folder / "home"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment, cwd=self._folder, capture_output=True, text=True, check=True,
        )  # fmt: skip


@pytest.fixture
def gate(tmp_path):
    found = Gate(tmp_path)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.mark.slow
def test_the_token_of_the_environment_is_shown_to_the_hub_and_to_nobody_else(gate):
    done = gate.run(LOAD)
    asked = gate.asked
    assert any("/someone/secret/" in path and "v2" in path for path, _ in asked)
    assert {header for path, header in asked if "someone" in path} == {"Bearer hf_something"}
    assert "Cannot load someone/secret@v2 as FluxPipeline" in done.stdout
    assert "your token may read the model" in done.stdout
    assert "hf_something" not in done.stdout + done.stderr


def put_into(cache, family, parts):
    """As the model from which single files of Stable Diffusion 1.5 have their settings."""
    held = cache / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    (held / "refs").mkdir(parents=True)
    (held / "refs" / "main").write_text("a" * 40)
    save_model(family, parts, held / "snapshots" / ("a" * 40), ModelFormat.DIFFUSERS, torch.float16)


def test_a_single_file_takes_its_settings_from_the_cache_offline(tmp_path):
    """If that has them; else it is said what to do."""
    kind = ModelType.STABLE_DIFFUSION_15
    family, cache, file = family_for(kind), tmp_path / "cache", tmp_path / "m.safetensors"
    parts = family.tiny()
    save_model(family, parts, file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float32)
    wanted = config(cache, str(file)).update(model_type=kind.value)
    with pytest.raises(ConfigError) as caught:
        family.load(wanted)
    (problem,) = caught.value.problems
    assert "it holds no settings, and those of stable-diffusion-v1-5/" in problem.message
    assert "Put a diffusers folder of its architecture beside it, named m;" in problem.fix
    put_into(cache, family, parts)
    own = parts.denoiser.state_dict()
    found = family.load(wanted).denoiser.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in own.items())
    torch.save({"state_dict": load_file(file)}, tmp_path / "m.ckpt")
    old = family.load(wanted.update(base_model_name=str(tmp_path / "m.ckpt")))
    assert all(torch.equal(old.denoiser.state_dict()[key], own[key]) for key in own)


LOAD_FILE = """
import sys
from modules.config import ConfigError, TrainConfig
from modules.families import family_for
config = TrainConfig().update(
    model_type="STABLE_DIFFUSION_15", base_model_name="m.safetensors",
    huggingface_cache_dir="cache", offline_mode=sys.argv[1] != "online",
)
try:
    family_for(config.model_type).load(config)
    print("Loaded m.safetensors")
except ConfigError as error:
    print(error.problems[0].message)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline", "offline, from the cache"])
def test_a_single_file_asks_the_hub_for_its_settings_unless_offline(gate, tmp_path, mode):
    family = family_for(ModelType.STABLE_DIFFUSION_15)
    file, parts, cached = tmp_path / "m.safetensors", family.tiny(), "cache" in mode
    save_model(family, parts, file, ModelFormat.ORIGINAL_SINGLE_FILE, torch.float32)
    if cached:
        put_into(tmp_path / "cache", family, parts)
    done = gate.run(LOAD_FILE, mode)
    assert ("Loaded" if cached else "Cannot load") + " m.safetensors" in done.stdout
    assert any("/stable-diffusion-v1-5/" in path for path, _ in gate.asked) is (mode == "online")
    assert bool(gate.asked) is (mode == "online")


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (ModelType.STABLE_DIFFUSION_20_DEPTH, "base_model_name"),
        (ModelType.PIXART_SIGMA, "transformer.model_name"),
    ],
    ids=str,
)
def test_a_single_file_that_diffusers_cannot_read_is_said_to_be_one(kind, field, tmp_path):
    family, folder, file = family_for(kind), tmp_path / "model", tmp_path / "model.safetensors"
    parts = family.tiny()
    save_model(family, parts, folder, ModelFormat.DIFFUSERS, torch.float16)
    save_model(family, parts, file, ModelFormat.LEGACY_SAFETENSORS, torch.float16)
    wanted = config(tmp_path, str(folder)).update(**{"model_type": kind.value, field: str(file)})
    with pytest.raises(ConfigError) as caught:
        family.load(wanted)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert "diffusers reads no single file of that" in problem.message
    assert problem.fix == "Give a diffusers folder or a hub id."
