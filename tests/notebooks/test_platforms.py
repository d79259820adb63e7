"""The notebooks for Colab and Kaggle, executed here with what those places put around them."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

import ot_notebook as ot
from modules.config import DataType, TrainConfig
from ot_notebook.preset_files import find
from ot_notebook.quickstart import _kernel_of_this_python

ROOT = Path(__file__).parents[2]
NAMES = ("10_colab", "20_kaggle")
TOKEN = "hf_thisMustNeverBeSeenAnywhere"

COLAB = {
    "__init__": "",
    "drive": """
        from pathlib import Path

        def mount(place, force_remount=False):
            (Path(place) / "MyDrive").mkdir(parents=True, exist_ok=True)
            print(f"Mounted at {place}")
    """,
    "userdata": f"""
        def get(name):
            return {TOKEN!r}
    """,
    "output": """
        def enable_custom_widget_manager(): ...
        def no_vertical_scroll(): ...
    """,
}
"""The modules of google.colab that a notebook of ours uses."""

KAGGLE_SECRETS = f"""
    class UserSecretsClient:
        def get_secret(self, name):
            return {TOKEN!r}
"""

DIE_AFTER_THE_FIRST_BACKUP = """
import os, time
while not run.events("backup", "failure"):
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""


class Place:
    """A notebook of ours, and a folder in the role of the machine's root."""

    def __init__(self, name, root):
        self.name, self.root = name, root
        self.library = root / "library"
        self.environment = {
            "PYTHONPATH": f"{self.library}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
        }
        if name == "10_colab":
            self.workspace = root / "content/drive/MyDrive/ot_notebook/emoji-line-art"
            self.environment["COLAB_RELEASE_TAG"] = "release-colab_20260801"
            for module, source in COLAB.items():
                self._put(f"google/colab/{module}.py", source)
        else:
            self.workspace = root / "kaggle/working/ot_notebook/emoji-line-art"
            self.environment["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
            (root / "kaggle/input").mkdir(parents=True)
            self._put("kaggle_secrets.py", KAGGLE_SECRETS)
        config, _ = TrainConfig.load(find("emoji LoRA"))
        samples = [config.samples[0].update(diffusion_steps=2)]
        small = config.update(epochs=2, samples=samples, sample_after=30)
        small.save(root / "small.json")

    def _put(self, path, source):
        (self.library / path).parent.mkdir(parents=True, exist_ok=True)
        (self.library / path).write_text(textwrap.dedent(source))

    def cells(self):
        return nbformat.read(ROOT / "notebooks" / f"{self.name}.ipynb", as_version=4)

    def run_all(self, dies=False):
        """Run it in a new kernel, with a preset that takes seconds; the notebook as it ends."""
        notebook = self.cells()
        for cell in notebook.cells:
            for place in ("content", "kaggle"):
                cell.source = cell.source.replace(f'"/{place}/', f'"{self.root}/{place}/')
            cell.source = cell.source.replace("backup_after=10,", "backup_after=1,")
            cell.source = cell.source.replace('"MINUTE"', '"EPOCH"')
            cell.source = re.sub(
                r'^PRESET = "[^"]*"', f'PRESET = "{self.root}/small.json"', cell.source
            )
            cell.source = re.sub(
                r'\nPRESET = "[^"]*"', f'\nPRESET = "{self.root}/small.json"', cell.source
            )
            if dies and cell.source.strip() == "run.wait()":
                cell.source = DIE_AFTER_THE_FIRST_BACKUP
        client = NotebookClient(
            notebook,
            kernel_manager_class=_kernel_of_this_python(),
            timeout=300,
            resources={"metadata": {"path": str(self.root)}},
        )
        with pytest.MonkeyPatch.context() as patch, (self.root / "kernel.log").open("wb") as log:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            try:
                client.execute(stdout=log, stderr=log)
            except DeadKernelError:
                assert dies
        return notebook


@pytest.fixture(scope="module", params=NAMES)
def sessions(request, tmp_path_factory):
    """Two sessions at one place: the first is cut off, the second runs to the end."""
    place = Place(request.param, tmp_path_factory.mktemp(request.param))
    first = place.run_all(dies=True)
    if place.name == "20_kaggle":  # the output of one version becomes an input of the next
        (place.root / "kaggle/working").rename(place.root / "kaggle/input/earlier-version")
    return place, first, place.run_all()


def printed(notebook):
    """All that its cells have printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(o["text"] for o in outputs if o["output_type"] == "stream")


@pytest.mark.slow
def test_the_second_session_goes_on_where_the_first_was_cut_off(sessions):
    place, first, second = sessions
    assert "A new run begins below" in printed(first)
    said = printed(second)
    assert re.search(r"Cut off while \w+ at step \d+ of 48", said), said
    table = ot.runs(place.workspace)
    assert list(table["state"]) == ["finished", "cut off"]
    run = ot.run(table["id"][0], place.workspace)
    lines = [event.text for event in run.events("status")]
    assert [line for line in lines if re.fullmatch(r"Goes on from .*, step 24", line)], lines
    steps = run.metrics()["step"]
    assert steps.min() > 24
    assert steps.max() == 48


@pytest.mark.slow
def test_what_was_trained_lies_where_it_survives(sessions):
    place, _, second = sessions
    assert (place.workspace / "emoji-line-art.safetensors").is_file()
    assert (place.workspace / "run.db").is_file()
    assert f"Model:  {place.workspace / 'emoji-line-art.safetensors'}" in printed(second)
    assert not list(place.workspace.rglob("*cache*"))  # the cache is not worth the room


@pytest.mark.slow
def test_the_token_is_in_no_output_and_in_no_file(sessions):
    place, first, second = sessions
    assert TOKEN not in json.dumps([first, second])
    written = [path for path in place.root.rglob("*") if path.is_file()]
    assert [
        p for p in written if p.parent != place.library and TOKEN.encode() in p.read_bytes()
    ] == [p for p in written if p.name == "userdata.py"]


@pytest.mark.slow
def test_the_views_are_drawn_in_the_way_that_the_place_can_show(sessions):
    place, _, second = sessions
    (shown,) = [cell for cell in second.cells if "ot.studio(job)" in cell.source]
    model = shown.outputs[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    names = {state["model_module"] for state in second.metadata.widgets[WIDGETS]["state"].values()}
    assert model in second.metadata.widgets[WIDGETS]["state"]
    assert ("anywidget" in names) is (place.name == "10_colab")


WIDGETS = "application/vnd.jupyter.widget-state+json"


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_on_offer_runs_on_a_gpu_without_bfloat16(name):
    source = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    presets = set(re.findall(r'\\"([^"\\]* LoRA[^"\\]*)\\"', source))
    assert presets == {"emoji LoRA"} | {path.stem for path in (ROOT / "presets").glob("*/*T4*")}
    for preset in presets:
        config, warnings = TrainConfig.load(find(preset))
        assert warnings == []
        denoisers = [config.to_dict()[name] for name in ("unet", "transformer")]
        text = json.dumps(denoisers) + config.train_dtype
        assert DataType.BFLOAT_16 not in text


@pytest.mark.parametrize("name", NAMES)
def test_the_installation_leaves_every_package_alone(name, tmp_path):
    cell = next(c for c in Place(name, tmp_path).cells().cells if "def install" in c.source)
    script = cell.source.split("\nif importlib")[0] + f"\nprint(install({str(ROOT)!r}))"
    pip = {
        "PIP_DRY_RUN": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the answer to "isolate?"
    }
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **pip},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"Would install ot[-_]notebook-[\d.]+'?\]?$", told.strip()), told


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_installation_says_what_pip_said_and_what_to_do(name, tmp_path):
    cell = next(c for c in Place(name, tmp_path).cells().cells if "def install" in c.source)
    script = cell.source.split("\nif importlib")[0] + "\ninstall('no-such-package==1')"
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PIP_NO_INDEX": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    assert "No matching distribution found for no-such-package==1" in told
    assert "Internet" in told or "Restart the runtime" in told
