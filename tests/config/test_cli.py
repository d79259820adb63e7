"""The commands about configs: what they print, and exit codes for scripts."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modules.cli import build_app
from modules.config import TrainConfig

PRESETS = Path(__file__).parents[2] / "presets"
FILES = Path(__file__).parent / "files"
INVALID = 2


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    def find(name):
        (path,) = PRESETS.glob(f"*/{name}.json")
        return path

    return CliRunner().invoke(build_app(find), list(arguments))


def test_show_prints_what_a_config_changes_in_the_words_of_set():
    done = run("config", "show", "--preset", "SDXL LoRA", "--set", "epochs=7")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert "epochs=7" in lines
    assert "model_type=STABLE_DIFFUSION_XL_10_BASE" in lines
    assert "text_encoder.train=false" in lines
    assert not any(line.startswith("unet.train=") for line in lines)


def test_what_show_prints_is_taken_back_by_set():
    shown = run("config", "show", "--preset", "emoji LoRA").stdout.splitlines()
    Path("empty.json").write_text("{}")
    again = run("config", "show", "empty.json", *(f"--set={line}" for line in shown))
    assert again.exit_code == 0, again.stderr
    assert again.stdout.splitlines() == shown


def test_show_can_print_everything_and_json():
    assert "batch_size=1" in run("config", "show", "--preset", "SDXL LoRA 8GB", "--all").stdout
    data = json.loads(run("config", "show", str(FILES / "v3.json"), "--json").stdout)
    assert TrainConfig.load(data)[0].loss_weight_strength == 4.0


def test_a_config_is_laid_over_a_preset_section_by_section():
    Path("mine.json").write_text(json.dumps({"epochs": 3, "unet": {"learning_rate": 0.5}}))
    done = run("config", "show", "mine.json", "--preset", "SDXL LoRA")
    lines = done.stdout.splitlines()
    assert {"epochs=3", "unet.learning_rate=0.5", "unet.weight_dtype=FLOAT_16"} <= set(lines)
    assert "layer_filter=attentions" in lines


def test_a_filter_of_the_config_is_not_mixed_with_that_of_the_preset():
    Path("mine.json").write_text(json.dumps({"layer_filter_preset": "full"}))
    text = run("config", "show", "mine.json", "--preset", "SDXL LoRA").stdout
    assert "layer_filter" not in text
    Path("mine.json").write_text(json.dumps({"layer_filter": "down_blocks"}))
    text = run("config", "show", "mine.json", "--preset", "SDXL LoRA").stdout
    assert "layer_filter=down_blocks" in text
    assert "layer_filter_preset=custom" in text


def test_another_optimizer_over_a_preset_brings_its_own_parameters():
    Path("mine.json").write_text(json.dumps({"optimizer": {"optimizer": "PRODIGY"}}))
    data = json.loads(run("config", "show", "mine.json", "--preset", "emoji LoRA", "--json").stdout)
    assert data["optimizer"]["weight_decay"] == 0
    assert data["optimizer"]["d0"] == 1e-6


def test_an_old_config_over_a_preset_is_migrated():
    text = run("config", "show", str(FILES / "v5.json"), "--preset", "SD 1.5 LoRA").stdout
    assert "save_every=250" in text
    assert "unet.offload_fraction=0.4" in text


def test_diff_says_what_differs_and_exits_as_diff_does():
    done = run("config", "diff", "SDXL LoRA", "SDXL LoRA 8GB")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "batch_size: 4 -> 1",
        "gradient_accumulation_steps: 1 -> 4",
    ]
    same = run("config", "diff", "SDXL LoRA", str(next(PRESETS.glob("*/SDXL LoRA.json"))))
    assert (same.exit_code, same.stdout) == (0, "")


def test_convert_writes_an_old_file_as_one_of_today():
    done = run("config", "convert", str(FILES / "v0.json"), "new.json")
    assert done.exit_code == 0
    assert "optimizer is DAdaptAdam, which was given up. DADAPT_ADAM takes its place." in (
        done.stderr
    )
    assert json.loads(Path("new.json").read_text())["__version"] == 11
    assert TrainConfig.load("new.json")[0] == TrainConfig.load(FILES / "v0.json")[0]


def test_convert_replaces_a_file_only_by_force():
    Path("new.json").write_text("precious")
    done = run("config", "convert", str(FILES / "v9.json"), "new.json")
    assert done.exit_code == INVALID
    assert "new.json exists. Choose another name, or add --force." in done.stderr
    assert Path("new.json").read_text() == "precious"
    assert run("config", "convert", str(FILES / "v9.json"), "new.json", "--force").exit_code == 0


@pytest.mark.parametrize("name", [f"v{version}.json" for version in range(12)])
def test_convert_can_write_a_preset_that_means_the_same(name):
    assert run("config", "convert", str(FILES / name), "p.json", "--preset").exit_code == 0
    assert TrainConfig.load("p.json")[0] == TrainConfig.load(FILES / name)[0]
    assert Path("p.json").stat().st_size < 6000


def test_schema_is_json_that_names_every_top_level_setting():
    made = json.loads(run("config", "schema").stdout)
    assert made["properties"].keys() == TrainConfig.model_fields.keys()


def test_options_explains_a_setting_and_says_if_there_is_none():
    text = run("config", "options", "warmup", "steps").stdout
    assert "learning_rate_warmup_steps  (number from 0, steps; default 200.0)" in text
    done = run("config", "options", "xyzzy")
    assert (done.exit_code, done.stderr) == (INVALID, "No setting is about xyzzy.\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Nothing to load. Name a config file, or a preset with --preset."),
        (["nowhere.json"], "nowhere.json does not exist. Check the path."),
        (["--preset", "SDXL LoRA", "--set", "epochs"], "--set epochs has no value."),
        (["--preset", "SDXL LoRA", "--set", "epohcs=1"], "Did you mean epochs?"),
        (["--preset", "SDXL LoRA", "--set", "epochs=0"], "epochs is 0, but must be at least 1."),
        (["--preset", "SDXL LoRA", "--set", "resolution=[red]"], "resolution is '[red]', but"),
    ],
)
def test_a_bad_call_exits_with_2_and_says_why_on_stderr(arguments, expected):
    done = run("validate", *arguments)
    assert done.exit_code == INVALID
    assert expected in done.stderr
    assert done.stdout == ""


def test_validate_prints_a_line_a_problem_and_json_for_scripts():
    done = run("validate", "--preset", "SDXL LoRA", "--set", "cache_dir=")
    assert done.exit_code == INVALID
    assert "error cache_dir: cache_dir is empty. Give a path." in done.stderr.splitlines()
    done = run("validate", "--preset", "SDXL LoRA", "--set", "cache_dir=", "--json")
    assert done.exit_code == INVALID
    assert {
        "field": "cache_dir",
        "severity": "error",
        "message": "cache_dir is empty.",
        "fix": "Give a path.",
    } in json.loads(done.stdout)


def test_validate_exits_with_0_for_a_config_that_can_run():
    done = run("validate", "--preset", "emoji LoRA", "--set", "train_device=cpu")
    assert done.stdout == "This config can run.\n"
    assert done.exit_code == 0, done.stderr


def test_a_bad_secrets_file_stops_a_run_before_it_begins_and_is_not_shown():
    Path("s.json").write_text('{"huggingface_token": ["hf_hidden"]}')
    done = run("train", "--preset", "emoji LoRA", "--secrets-path", "s.json")
    assert done.exit_code == INVALID
    assert "huggingface_token in s.json must be text. Put it in quotes." in done.stderr
    assert "hf_hidden" not in done.stderr
