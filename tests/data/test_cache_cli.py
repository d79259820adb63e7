"""`ot-notebook cache`: upkeep as a person does it."""

import json

import pytest
from cached import contents, work
from pictures import concept, prepare
from typer.testing import CliRunner

from modules.cli import app


@pytest.fixture
def kept(folder, encoder, tmp_path):
    prepare(concept(folder), encoder, tmp_path / "cache")
    return tmp_path / "cache"


def cache(*words, code=0):
    ran = CliRunner().invoke(app, ["cache", *map(str, words)])
    assert ran.exit_code == code, ran.output
    return ran.output


def test_info_counts_what_each_encoder_made(kept):
    lines = cache("info", "--cache-dir", kept).splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["6", "6"]
    assert lines[0].startswith("image-")
    told = json.loads(cache("info", "--cache-dir", kept, "--json"))
    assert [(one["rows"], one["shards"]) for one in told] == [(6, 1), (6, 1)]
    assert sum(one["size"] for one in told) == sum(
        path.stat().st_size for path in kept.glob("*/*.safetensors")
    )


def test_verify_finds_damage_and_removes_it_if_told(kept, folder, encoder):
    assert "as it was written" in cache("verify", "--cache-dir", kept)
    (shard,) = kept.glob("image-*/*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 0xFF
    shard.write_bytes(content)
    told = cache("verify", "--cache-dir", kept, code=1)
    assert shard.name in told.replace("\n", "")
    assert "--remove" in told
    assert "removed" in cache("verify", "--cache-dir", kept, "--remove")
    assert "as it was written" in cache("verify", "--cache-dir", kept)
    assert work(encoder, concept(folder), kept) == (6, 0)


def test_prune_keeps_as_much_as_it_is_told(kept):
    assert "0 shards removed" in cache("prune", "--limit", 1, "--cache-dir", kept)
    assert "2 shards removed" in cache("prune", "--limit", 0, "--cache-dir", kept)
    assert contents(kept) == {}


def test_a_cache_travels(kept, tmp_path):
    target = tmp_path / "cache.zip"
    assert "2 shards" in cache("export", target, "--cache-dir", kept)
    assert "exists" in cache("export", target, "--cache-dir", kept, code=2)
    cache("export", target, "--cache-dir", kept, "--force")
    there = tmp_path / "there"
    assert "2 new shards" in cache("import", target, "--cache-dir", there)
    assert "0 new shards" in cache("import", target, "--cache-dir", there)
    assert contents(there) == contents(kept)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["info", "--cache-dir", "nowhere"], "nowhere is no folder. Name the cache"),
        (["import", "none.zip"], "none.zip"),
        (["import", __file__], "is no zip file. Choose a file that was exported"),
    ],
)
def test_what_cannot_be_done_is_said(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in cache(*words, code=2)
