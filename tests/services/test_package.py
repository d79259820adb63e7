import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ot_notebook as ot
from ot_notebook.preset_files import find

ROOT = Path(__file__).parents[2]


def python(code, *, path=(), cwd=None, check=True):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=check,
        env=environment,
        cwd=cwd,
    )


def test_import_is_quick_and_loads_nothing_heavy():
    code = (
        "import time; began = time.process_time(); import ot_notebook as ot; "
        "took = time.process_time() - began; ot.events, ot.assets; import sys; "
        "print(took, [n for n in ('torch', 'pandas', 'ipywidgets', 'numpy') if n in sys.modules])"
    )
    took, _, heavy = python(code).stdout.strip().partition(" ")
    assert float(took) < 0.5
    assert heavy == "[]"


def test_every_public_name_is_there():
    for name in ot.__all__:
        assert getattr(ot, name) is getattr(ot, name), name
        module = Path(ot.__file__).parent / f"{name}.py"
        assert not module.exists(), "importing that module would put it in the function's place"
    with pytest.raises(AttributeError, match="no attribute 'trainr'"):
        ot.trainr  # noqa: B018


def test_the_service_of_a_kernel_is_one_and_survives_a_reload():
    code = (
        "import importlib, ot_notebook as ot; first = ot.trainer(); "
        "import ot_notebook.services.trainer_service as module; importlib.reload(module); "
        "print(module.trainer() is first)"
    )
    assert python(code).stdout.strip() == "True"


@pytest.mark.parametrize("has_init", [True, False])
def test_another_package_called_modules_is_named_with_the_way_out(tmp_path, has_init):
    other = tmp_path / "OneTrainer" / "modules"
    other.mkdir(parents=True)
    if has_init:
        (other / "__init__.py").touch()
    (other / "trainer.py").touch()
    answer = python("import ot_notebook", path=[other.parent, ROOT], cwd=tmp_path, check=False)
    if not has_init:  # a folder without __init__.py yields to a package further down the path
        assert answer.returncode == 0
        return
    message = answer.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: ot_notebook needs its own package `modules`")
    assert str(other) in message
    assert f"take {other.parent} out of sys.path and PYTHONPATH" in message
    assert "Start the notebook from another folder" in message


def test_another_package_that_is_loaded_already_needs_a_new_kernel(tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import modules, ot_notebook"
    message = python(code, path=[ROOT], cwd=tmp_path, check=False).stderr.strip().splitlines()[-1]
    assert str(tmp_path / "modules") in message
    assert "Restart the kernel" in message


def test_presets_are_found_by_name_in_any_case_and_by_path(tmp_path):
    path = find("EMOJI lora")
    assert path.name == "emoji LoRA.json"
    assert find("emoji/emoji LoRA") == find("emoji LoRA.json") == find(path) == path
    own = tmp_path / "mine.json"
    own.write_text("{}")
    assert find(str(own)) == own


def test_an_unknown_preset_is_answered_with_names_that_exist(tmp_path):
    with pytest.raises(ValueError, match=r"no preset 'emojy'\. Did you mean .*'emoji LoRA'"):
        find("emojy")
    with pytest.raises(ValueError, match=r"nowhere.mine\.json does not exist"):
        find(tmp_path / "nowhere" / "mine.json")


def test_presets_are_a_table():
    table = ot.presets()
    row = table[table["name"] == "emoji LoRA"].iloc[0]
    assert (row["family"], row["model_type"], row["method"]) == (
        "emoji",
        "STABLE_DIFFUSION_15",
        "LORA",
    )
    for path in table["path"]:
        assert json.loads(Path(path).read_text(encoding="utf-8"))["__description"]


def test_assets_are_folders_by_name_and_an_unknown_name_lists_them():
    assert (ot.assets.model() / "model_index.json").is_file()
    pictures = list(ot.assets.dataset("line art").glob("*.png"))
    assert pictures
    assert all(picture.with_suffix(".txt").is_file() for picture in pictures)
    assert ot.assets.dataset("Line_Art") == ot.assets.dataset("line art")
    with pytest.raises(
        ValueError, match=r"no embedded data set 'photos'\. Use one of: .*'line art'"
    ):
        ot.assets.dataset("photos")
    with pytest.raises(ValueError, match=r"no embedded model 'flux'\. Use one of: 'emoji'"):
        ot.assets.model("flux")
