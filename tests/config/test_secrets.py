"""Secrets can be used and are seen nowhere."""

import json
import logging
import pickle

import pytest

from modules.config import ConfigError, TrainConfig
from modules.config.secrets import Secrets

TOKEN = "hf_this_must_not_be_seen"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hub" / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_a_config_never_keeps_the_secrets_of_its_file(tmp_path):
    data = {"secrets": {"huggingface_token": TOKEN, "cloud": {"password": TOKEN}}, "epochs": 3}
    config, (warning,) = TrainConfig.load(data)
    config.save(tmp_path / "a.json")
    seen = [repr(config), str(config), str(warning), json.dumps(config.to_dict())]
    seen += [(tmp_path / "a.json").read_text(), pickle.dumps(config).decode("latin-1")]
    assert not any(TOKEN in text for text in seen)
    assert "The file holds secrets (huggingface_token, password), which no config keeps." in (
        str(warning)
    )


def test_a_secret_in_a_wrong_place_is_not_kept_either():
    data = {"hf_token": TOKEN, "cloud": {"api_key": TOKEN, "note": 1}, "x": [{"password": TOKEN}]}
    config, warnings = TrainConfig.load(data)
    assert TOKEN not in json.dumps(config.to_dict())
    assert "(api_key, hf_token, password)" in str(warnings[0])
    assert config.cloud.model_extra == {"note": 1}


def test_a_section_of_empty_secrets_is_no_cause_for_a_warning():
    empty = {"__version": 0, "huggingface_token": "", "cloud": {"user": "root", "port": 0}}
    assert TrainConfig.load({"secrets": empty}) == (TrainConfig(), [])


def test_an_error_about_secrets_in_a_config_does_not_show_them():
    with pytest.raises(ConfigError) as caught:
        TrainConfig().update(secrets={"huggingface_token": TOKEN})
    assert TOKEN not in str(caught.value)


def test_the_token_comes_from_the_file_then_the_environment(tmp_path, monkeypatch):
    assert Secrets.load()[0].huggingface_token == ""
    monkeypatch.setenv("HF_TOKEN", "from the environment")
    assert Secrets.load()[0].huggingface_token == "from the environment"
    (tmp_path / "secrets.json").write_text(json.dumps({"huggingface_token": "from the file"}))
    assert Secrets.load()[0].huggingface_token == "from the file"


def test_the_hubs_own_login_is_used(tmp_path, monkeypatch):
    import huggingface_hub.utils._auth as auth

    token = tmp_path / "token"
    token.write_text("from the login")
    monkeypatch.setattr(auth.constants, "HF_TOKEN_PATH", str(token))
    assert Secrets.load()[0].huggingface_token == "from the login"


def test_the_text_of_secrets_says_what_is_set_and_not_how(caplog):
    secrets = Secrets(huggingface_token=TOKEN)
    with caplog.at_level(logging.INFO):
        logging.getLogger("a").info("%s %r %s", secrets, secrets, {"a": secrets})
    assert "huggingface_token" in caplog.text
    assert TOKEN not in caplog.text


def test_secrets_cannot_be_pickled_or_put_into_json():
    secrets = Secrets(huggingface_token=TOKEN)
    with pytest.raises(TypeError, match="not written anywhere"):
        pickle.dumps(secrets)
    with pytest.raises(TypeError):
        json.dumps(secrets)


def test_a_secrets_file_is_read_whole_and_unknown_keys_are_reported(tmp_path):
    data = {
        "huggingface_token": TOKEN,
        "tokn": "x",
        "cloud": {"port": 22, "user": "me", "pw": TOKEN},
    }
    (tmp_path / "s.json").write_text(json.dumps(data))
    secrets, warnings = Secrets.load(tmp_path / "s.json")
    assert (secrets.cloud.port, secrets.cloud.user) == ("22", "me")
    assert [warning.field for warning in warnings] == ["secrets.tokn", "secrets.cloud.pw"]
    assert TOKEN not in "".join(map(str, warnings))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[]", "holds no object of secrets"), ('{"huggingface_token": [1]}', "must be text")],
)
def test_a_bad_secrets_file_is_an_error_without_values(tmp_path, text, expected):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        Secrets.load(tmp_path / "s.json")
    with pytest.raises(ConfigError, match="does not exist"):
        Secrets.load(tmp_path / "missing.json")
