"""Rules of the codebase that a careful reviewer would check."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def loaded_by(statement, *names):
    """Which of the modules `names` a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint([n for n in {names!r} if n in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(out.stdout.replace("'", '"'))


@pytest.mark.parametrize("statement", ["import ot_notebook", "import modules.config"])
def test_light_imports_load_no_torch(statement):
    assert loaded_by(statement, "torch", "diffusers", "transformers", "pandas") == []


def test_the_engine_loads_no_notebook_library():
    statement = "import modules.training.trainer, modules.cli"
    found = loaded_by(statement, "torch", "ipywidgets", "IPython", "traitlets", "ot_notebook")
    assert found == ["torch"]


def test_the_readme_maps_every_folder():
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    folders = {line.split("/")[0] for line in tracked if "/" in line and not line.startswith(".")}
    mapped = set(re.findall(r"^\| `(\w+)/` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert mapped == folders


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)


def test_the_wheel_holds_what_the_package_reads(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"ot_notebook/{path.relative_to(ROOT)}"
        for pattern in ("presets/**/*.json", "notebooks/*.ipynb")
        for path in ROOT.glob(pattern)
    }
    expected |= {
        str(path.relative_to(ROOT))
        for pattern in ("ot_notebook/static/*", "ot_notebook/assets/**/*.*", "modules/**/*.py")
        for path in ROOT.glob(pattern)
        if "__pycache__" not in path.parts
    }
    assert expected - held == set()
