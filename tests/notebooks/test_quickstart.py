"""The quickstart, as `ot-notebook demo` runs it: what a newcomer gets must be what was promised."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import ot_notebook as ot
from ot_notebook import quickstart
from ot_notebook.cli import app
from ot_notebook.quickstart import DemoError, notebook_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The output of `ot-notebook demo` and the folder it worked in."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-c", "from ot_notebook.cli import app; app()", "demo"]
    answer = subprocess.run(
        [*command, "--folder", str(folder)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout, folder / "workspace" / "demo"


def saturation(paths):
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB"), dtype=int) for path in paths])
    return (pixels.max(-1) - pixels.min(-1)).mean()


@pytest.mark.timeout(1200)
def test_it_says_in_two_lines_where_to_look(demo):
    said, workspace = demo
    report, lora = said.strip().splitlines()
    assert report == f"Report: {workspace / 'report.html'}"
    assert lora == f"LoRA:   {workspace / 'emoji-line-art.safetensors'}"


@pytest.mark.timeout(1200)
def test_the_style_of_emoji_it_has_not_seen_changes_visibly(demo):
    _, workspace = demo
    samples = ot.run(ot.runs(workspace)["id"][0], workspace).samples()
    ends = samples["step"].min(), samples["step"].max()
    before, after = (saturation(samples[samples["step"] == end]["path"]) for end in ends)
    assert 1 - after / before >= 0.6


@pytest.mark.timeout(1200)
def test_the_executed_notebook_holds_the_story(demo):
    _, workspace = demo
    notebook = nbformat.read(workspace / "00_quickstart.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(output["output_type"] == "error" for output in outputs)
    text = json.dumps(outputs)
    assert re.search(r"Mean saturation fell from \d+\.\d to \d+\.\d, by \d+%", text)
    assert "image/png" in text
    assert (workspace / "00_quickstart.ipynb").stat().st_size < 2 * 2**20


@pytest.mark.timeout(1200)
def test_both_lora_files_load_in_plain_diffusers_and_draw_the_same(demo):
    from diffusers import StableDiffusionPipeline

    _, workspace = demo
    pipeline = StableDiffusionPipeline.from_pretrained(ot.assets.model(), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(7)
        picture = pipeline(
            "a fox, line art", num_inference_steps=8, width=64, height=64, generator=generator
        ).images[0]
        return np.asarray(picture, dtype=int)

    plain, drawn = draw(), []
    for name in ("emoji-line-art.safetensors", "emoji-line-art.diffusers.safetensors"):
        pipeline.load_lora_weights(str(workspace / name))
        drawn.append(draw())
        pipeline.unload_lora_weights()
    assert abs(drawn[0] - plain).mean() > 5
    assert abs(drawn[0] - drawn[1]).mean() < 0.5


@pytest.mark.timeout(1200)
def test_the_report_stands_alone(demo):
    _, workspace = demo
    page = (workspace / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) >= 16
    assert all(source.startswith("data:image/") for source in sources)
    assert "<script" not in page
    assert "polyline" in page


def run_with(monkeypatch, tmp_path, source):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, tmp_path / "00_quickstart.ipynb")
    monkeypatch.setattr(quickstart, "notebook_file", lambda: tmp_path / "00_quickstart.ipynb")
    return CliRunner().invoke(app, ["demo", "--folder", str(tmp_path / "work")])


def test_a_cell_that_fails_is_told_with_exit_code_1(monkeypatch, tmp_path):
    answer = run_with(monkeypatch, tmp_path, "raise ValueError('the <b>disk</b> is [full]')")
    assert answer.exit_code == 1
    assert "ValueError: the <b>disk</b> is [full]" in answer.output
    kept = tmp_path / "work" / "workspace" / "demo" / "00_quickstart.ipynb"
    assert str(kept) in answer.output.replace("\n", "")
    assert nbformat.read(kept, as_version=4).cells[0].outputs[0]["ename"] == "ValueError"


def test_the_kernel_is_this_interpreter_in_the_folder_that_was_named(monkeypatch, tmp_path):
    (tmp_path / "work").mkdir()
    run_with(monkeypatch, tmp_path, "import os, sys; print(sys.executable, os.getcwd())")
    kept = tmp_path / "work" / "workspace" / "demo" / "00_quickstart.ipynb"
    said = nbformat.read(kept, as_version=4).cells[0].outputs[0]["text"]
    assert said.split() == [sys.executable, str(tmp_path / "work")]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    answer = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path / "file")])
    assert answer.exit_code == 1
    assert "cannot be made" in answer.output


def test_lab_starts_jupyterlab_with_what_it_is_told(tmp_path, capfd):
    answer = CliRunner().invoke(app, ["lab", "--folder", str(tmp_path), "--", "--version"])
    assert answer.exit_code == 0
    assert capfd.readouterr().out.strip() == version("jupyterlab")
    assert (tmp_path / "00_quickstart.ipynb").is_file()


def test_lab_copies_the_notebook_once_and_not_inside_a_checkout(tmp_path):
    assert notebook_in(tmp_path) == Path("00_quickstart.ipynb")
    (tmp_path / "00_quickstart.ipynb").write_text("my work")
    notebook_in(tmp_path)
    assert (tmp_path / "00_quickstart.ipynb").read_text() == "my work"
    assert notebook_in(ROOT) == Path("notebooks/00_quickstart.ipynb")
    with pytest.raises(DemoError, match="cannot be written"):
        notebook_in(tmp_path / "nowhere")
