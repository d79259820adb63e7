"""The notebooks on drawing and on training from code, run as a reader runs them."""

import json
import re
import time
from pathlib import Path

import nbformat
import pytest

from ot_notebook.quickstart import _execute

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def run(name, folder):
    """The text of all outputs, the MIME types among them, and the seconds that it took."""
    begun = time.monotonic()
    executed = folder / name
    _execute(NOTEBOOKS / name, executed, folder)
    seconds = time.monotonic() - begun
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    return json.dumps(outputs), seconds


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_inference_notebook_draws_live_and_afterwards(tmp_path):
    text, _seconds = run("30_inference.ipynb", tmp_path)
    steps = re.search(r"Drawn at steps \[([\d, ]+)\]", text)
    assert steps is not None
    assert len(steps[1].split(",")) >= 2
    assert text.count("image/png") >= 3
    assert "pipeline.load_lora_weights" in text
    assert "Would be published to" in text
    assert len(list((tmp_path / "workspace" / "inference").glob("*.png"))) >= 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_programmatic_notebook_steers_and_compares(tmp_path):
    text, _seconds = run("40_programmatic.ipynb", tmp_path)
    assert "learning_rat is no setting" in text
    assert re.search(r"step 10: loss \d\.\d+", text)
    assert re.search(r"Held at step \d+: [\d,]+ of [\d,]+ weights train", text)
    assert "48 losses noted; 1 change of a setting kept" in text
    assert "image/png" in text
