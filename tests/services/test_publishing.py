"""Publishing to a folder and, on the loopback device, to a hub that keeps what it is sent."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import ot_notebook as ot
from modules.config import ConfigError
from modules.training.events import ModelSaved, SampleImage
from ot_notebook.services.inference_service import InferenceService

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    service = InferenceService(tmp_path_factory.mktemp("gallery")).load(ot.assets.model())
    return service.generate('a "fox": <b>bold</b>', seed=3, steps=1)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "style.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.fixture
def run(stage, weights, tmp_path):
    """A run that has saved twice and drawn samples at two steps."""
    handle = stage.start()
    gone = tmp_path / "gone.safetensors"
    picture = tmp_path / "sample.png"
    Image.new("RGB", (16, 16), "red").save(picture)
    for step, prompt in ((1, "before"), (9, "a fox"), (9, "an owl")):
        stage.run.emit(SampleImage("default", picture, prompt, 42, step, 1, 0))
    for path in (weights, gone):
        stage.run.emit(ModelSaved(path, "KOHYA_LORA", 9, True))
    stage.run.end()
    return handle.wait(30)


def front_matter(card):
    return yaml.safe_load(card.split("---")[1])


def test_a_dry_run_shows_everything_and_writes_nothing(weights, drawn, tmp_path):
    target = tmp_path / "out"
    found = ot.publish(
        weights, target, title="Foxes", about="Foxes, drawn.", trigger="fxs: fox",
        licence="apache-2.0", tags=["fox"], base_model="owner/base", samples=[drawn], dry_run=True,
    )  # fmt: skip
    facts = front_matter(found.card)
    assert (facts["license"], facts["base_model"]) == ("apache-2.0", "owner/base")
    assert facts["instance_prompt"] == "fxs: fox"
    assert facts["widget"] == [{"text": 'a "fox": <b>bold</b>', "output": {"url": "images/1.png"}}]
    assert {"lora", "fox", "text-to-image"} <= set(facts["tags"])
    assert "load_lora_weights" in found.card
    assert found.names == ["README.md", "style.safetensors", "images/1.png"]
    assert not found.done
    assert not target.exists()
    assert "<b>bold" not in found._repr_html_()


def test_a_run_is_published_to_a_folder_with_its_last_samples_and_settings(run, weights, tmp_path):
    target = tmp_path / "out"
    found = ot.publish(run, target, trigger="line art")
    assert found.done
    assert sorted(path.name for path in target.rglob("*") if path.is_file()) == [
        "1.png", "2.png", "README.md", "style.safetensors",
    ]  # fmt: skip
    assert (target / "style.safetensors").read_bytes() == weights.read_bytes()
    card = (target / "README.md").read_text(encoding="utf-8")
    assert [one["text"] for one in front_matter(card)["widget"]] == ["a fox", "an owl"]
    assert f"| learning rate | {run.config.learning_rate} |" in card
    assert "license" not in front_matter(card), "nobody has named one"
    assert str(tmp_path) not in card, "paths of this machine are nobody's business"
    assert "base_model" not in front_matter(card)
    with pytest.raises(ConfigError, match="out exists already"):
        ot.publish(run, target)


def test_samples_keep_none_of_their_metadata(weights, drawn, tmp_path):
    target = tmp_path / "out"
    ot.publish(weights, target, samples=[drawn])
    with Image.open(drawn.path) as kept, Image.open(target / "images" / "1.png") as published:
        assert kept.info["ot_notebook"]
        assert published.info == {}
        assert list(published.convert("RGB").getdata()) == list(kept.convert("RGB").getdata())


def test_a_whole_model_is_published_as_a_folder(drawn, tmp_path):
    found = ot.publish(ot.assets.model(), tmp_path / "out", samples=[drawn])
    assert "model_index.json" in found.names
    assert (tmp_path / "out" / "unet" / "config.json").is_file()
    assert "lora" not in front_matter(found.card)["tags"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": "gone.safetensors"}, "neither a .safetensors file nor the folder"),
        ({"target": "no repository!", "hub": True}, "no repository of the hub. Write owner/name"),
        ({"about": "key hf_" + "a1B2" * 8}, "looks like a token"),
        ({"tags": ["hf_" + "a1B2" * 8]}, "looks like a token"),
    ],
    ids=str,
)
def test_what_cannot_be_published_is_refused(weights, tmp_path, given, words):
    given = {"source": weights, "target": str(tmp_path / "out"), **given}
    with pytest.raises(ConfigError, match=words):
        ot.publish(given.pop("source"), given.pop("target"), **given)
    assert not (tmp_path / "out").exists()


class Hub(ThreadingHTTPServer):
    """Answers what a push asks of a hub, and keeps the files of its commit."""

    def __init__(self):
        self.files, self.tokens, self.private = {}, set(), None
        super().__init__(("127.0.0.1", 0), HubHandler)


class HubHandler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self._body()
        self.server.tokens.add(self.headers.get("Authorization"))
        answer = {}
        if self.path.endswith("/repos/create"):
            asked = json.loads(body)  # newer clients say it in another word
            self.server.private = asked.get("private", asked.get("visibility") == "private")
            answer = {"url": f"http://127.0.0.1:{self.server.server_port}/owner/fox"}
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            answer = {
                "files": [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in asked
                ]
            }
        elif "/commit/" in self.path:
            for line in body.splitlines():
                value = json.loads(line)
                if value["key"] == "file":
                    content = base64.b64decode(value["value"]["content"])
                    self.server.files[value["value"]["path"]] = content
            url = f"http://127.0.0.1:{self.server.server_port}/owner/fox/commit/1"
            answer = {"commitUrl": url, "commitOid": "1", "hookOutput": ""}
        self._answer(answer)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_GET(self):
        self._answer({"id": "owner/fox", "siblings": [], "sha": "1"})

    def _answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants, hf_api

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for method in ("create_repo", "create_commit"):
        assert hasattr(hf_api.HfApi, method)
    yield server
    server.shutdown()


def test_a_push_is_one_commit_with_the_token_in_none_of_its_files(hub, weights, drawn, monkeypatch):
    token = "hf_" + "a1B2" * 8
    monkeypatch.setenv("HF_TOKEN", token)
    found = ot.publish(weights, "owner/fox", samples=[drawn], hub=True)
    assert found.done
    assert sorted(hub.files) == ["README.md", "images/1.png", "style.safetensors"]
    assert hub.files["style.safetensors"] == weights.read_bytes()
    assert hub.private is True
    assert hub.tokens == {f"Bearer {token}"}
    assert not any(token.encode() in content for content in hub.files.values())


def test_a_push_without_a_token_says_how_to_get_one(weights, monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"There is no token of the hub\. Set HF_TOKEN"):
        ot.publish(weights, "owner/fox", hub=True)


def test_a_model_of_blocks_finds_its_parts_in_the_repository(hub, drawn, monkeypatch, tmp_path):
    """Its index names where each part is: beside it on this disk, by the repository on the hub."""
    import torch

    from modules.config import ModelFormat, ModelType
    from modules.families import family_for
    from modules.families.saving import save_model

    family, folder = family_for(ModelType.ANIMA), tmp_path / "anima"
    save_model(family, family.tiny(), folder, ModelFormat.DIFFUSERS, torch.float32)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a1B2" * 8)
    ot.publish(folder, "owner/fox", samples=[drawn], hub=True)
    index = json.loads(hub.files["modular_model_index.json"])
    parts = [held[2] for held in index.values() if isinstance(held, list)]
    places = {part["pretrained_model_name_or_path"] for part in parts}
    assert places == {"owner/fox"}
    assert "vae/config.json" in hub.files
