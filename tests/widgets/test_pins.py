"""That a run with other widget libraries really has those."""

import os
from importlib.metadata import version
from pathlib import Path

import ipywidgets
import pytest


@pytest.mark.skipif("OT_PINS" not in os.environ, reason="only with pinned widget libraries")
def test_every_pin_is_what_runs():
    lines = Path(os.environ["OT_PINS"]).read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {name: version(name) for name in pins} == pins
    assert ipywidgets.__version__ == pins["ipywidgets"]
