"""Backups as OneTrainer writes them: what they hold is taken up, what they lack is said."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.config import Optimizer
from modules.training import events as e
from modules.training.onetrainer_backup import average, optimizer_state

TRAINED = {
    "text_encoder.train": True,
    "ema": "GPU",
    "ema_update_step_interval": 1,
    "gradient_accumulation_steps": 2,
    "epochs": 6,
}


def onetrainers(ours, folder, kind="ADAMW"):
    """The same state in a folder of OneTrainer's making: its files, groups and order."""
    state = torch.load(ours / "optimizer" / "optimizer.pt", weights_only=True)
    moments, average = state["optimizer"], iter(state["ema"]["average"])
    counts = json.loads((ours / "meta.json").read_text())
    groups, averages = moments["param_groups"], []
    by_part = {group["name"]: [next(average) for _ in group["params"]] for group in groups}
    places, theirs = {}, []
    for group in reversed(groups):  # encoders first
        averages += by_part[group["name"]]
        for place in group["params"]:
            places[place] = len(places)
        values = {k: v for k, v in group.items() if k != "name"} | {"initial_lr": group["lr"]}
        theirs.append({**values, "params": [places[p] for p in group["params"]]})
    for name in ("lora", "unet", "text_encoder"):
        if (ours / name).is_dir():
            shutil.copytree(ours / name, folder / name)
    for name in ("optimizer", "ema", "onetrainer_config"):
        (folder / name).mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({**counts, "last_action_epoch": {"sample": 2}}))
    settings = {"__version": 11, "gradient_accumulation_steps": 2}
    (folder / "onetrainer_config" / "args.json").write_text(json.dumps(settings))
    torch.save(
        {
            "state": {places[p]: value for p, value in moments["state"].items()},
            "param_groups": theirs,
            "param_group_mapping": [
                group["name"] + "_lora" * (folder / "lora").is_dir() for group in reversed(groups)
            ],
            "param_group_optimizer_mapping": [kind] * len(groups),
        },
        folder / "optimizer" / "optimizer.pt",
    )
    torch.save({"decay": 0.999, "ema_parameters": averages}, folder / "ema" / "ema.pt")


def equal(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    return one == two


@pytest.fixture
def stopped(make_config, train, tmp_path):
    """A run that ended after four of nine steps, in the middle of an epoch, and its backup."""

    def stop(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 4:
            commands.stop()

    def make(**changes):
        config = make_config(workspace_dir=tmp_path / "run", backup_before_save=True, **changes)
        (backup,) = [event.path for event in train(config, stop).of(e.BackupCreated)]
        theirs = tmp_path / "theirs"
        moved = config.update(workspace_dir=str(theirs), continue_last_backup=True)
        return moved, backup, theirs / "backup" / "2026-01-02_03-04-05-backup-8-2-2"

    return make


@pytest.mark.parametrize("method", ["LORA", pytest.param("FINE_TUNE", marks=pytest.mark.slow)])
def test_weights_moments_average_and_count_are_taken_up(stopped, make_run, method):
    changes = dict(TRAINED, training_method=method)
    if method == "FINE_TUNE":
        changes |= {"output_model_format": "DIFFUSERS", "layer_filter": ""}
    config, ours, theirs = stopped(**changes)
    onetrainers(ours, theirs)
    if method == "FINE_TUNE":  # as older versions of transformers name CLIP's layers
        file = theirs / "text_encoder" / "model.safetensors"
        tensors = {
            f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(file).items()
        }
        save_file(tensors, file)
    run = make_run(config)
    run.trainer.start()
    assert run.trainer.step == 4
    place = run.trainer._place()
    assert (place.global_step, place.epoch, place.epoch_step) == (8, 2, 2)
    expected = torch.load(ours / "optimizer" / "optimizer.pt", weights_only=True)
    found = run.trainer._update.state_dict()
    assert equal(found["optimizer"]["state"], expected["optimizer"]["state"])
    assert all(map(torch.equal, found["ema"]["average"], expected["ema"]["average"]))
    folder = theirs.parent / "check"
    folder.mkdir()
    run.trainer._method.write_backup(folder)
    for file in ours.rglob("*.safetensors"):
        assert equal(load_file(file), load_file(folder / file.relative_to(ours))), file
    assert any(
        "is a backup of OneTrainer, which keeps no generators, no loss scale and no order of "
        "images: noise is drawn anew, and epoch 3 goes on after 2 batches" in warning
        for warning in run.warnings
    )
    run.trainer.train()
    assert list(run.losses) == [5, 6, 7, 8, 9]
    run.trainer.close()


def test_what_does_not_fit_starts_anew_and_is_said(stopped, train):
    config, ours, theirs = stopped(**TRAINED)
    onetrainers(ours, theirs, kind="LION")
    torch.save({"ema_parameters": [torch.zeros(3)]}, theirs / "ema" / "ema.pt")
    run = train(config)
    said = "\n".join(run.warnings)
    assert (
        f"{theirs.name}: its optimizer is LION, this run's ADAMW, so the optimizer starts" in said
    )
    assert f"{theirs.name}: its EMA is not this run's, so the average starts anew." in said
    assert list(run.losses) == [5, 6, 7, 8, 9]


def test_a_damaged_one_is_passed_over(stopped, train):
    config, _ours, theirs = stopped(epochs=2)
    theirs.mkdir(parents=True)
    (theirs / "meta.json").write_text('{"train_progress": {"epoch": 1}}')
    run = train(config)
    assert any("Passed over a damaged backup" in warning for warning in run.warnings)
    assert list(run.losses) == [1, 2, 3, 4, 5, 6]


IDS = {"additional_embeddings.0": "aa-1", "additional_embeddings.1": "bb-2"}


def optimizer_of(sizes):
    """One of five groups, each parameter of another shape, that has taken a step."""
    groups = [
        {"name": name, "params": [torch.nn.Parameter(torch.randn(size)) for size in each]}
        for name, each in sizes.items()
    ]
    optimizer = torch.optim.AdamW(groups)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("method", ["", "_lora"])
def test_groups_of_two_text_encoders_and_of_embeddings_are_found_by_their_names(method):
    ours = {
        "transformer": [3, 4], "text_encoder": [5], "text_encoder_2": [6, 7],
        "additional_embeddings.0": [8, 9], "additional_embeddings.1": [10, 11],
    }  # fmt: skip
    theirs = {
        f"text_encoder_1{method}": [5], f"text_encoder_2{method}": [6, 7],
        "embeddings_1/aa-1": [8], "embeddings_1/bb-2": [10],
        "embeddings_2/aa-1": [9], "embeddings_2/bb-2": [11],
        f"transformer{method}": [3, 4],
    }  # fmt: skip
    live, written = optimizer_of(ours), optimizer_of(theirs)
    saved = written.state_dict()
    saved["param_group_mapping"] = list(theirs)
    saved["param_group_optimizer_mapping"] = ["ADAMW"] * len(theirs)
    by_size = {len(p): written.state[p]["exp_avg"] for p in written.state}
    state = optimizer_state(saved, Optimizer.ADAMW, live, IDS)
    live.load_state_dict(state)
    for group in live.param_groups:
        for parameter in group["params"]:
            assert torch.equal(live.state[parameter]["exp_avg"], by_size[len(parameter)])
    weights = [p for group in written.param_groups for p in group["params"]]
    found = average({"ema_parameters": weights}, saved, live, IDS)
    assert [len(each) for each in found] == [size for each in ours.values() for size in each]
    assert average({"ema_parameters": weights[1:]}, saved, live, IDS) is None


def test_groups_without_names_are_said():
    """Backups of its first versions, and those of a Muon that splits a part in two."""
    live = optimizer_of({"unet": [3]})
    saved = live.state_dict()
    said = "it does not name the groups of its optimizer"
    assert optimizer_state(saved, Optimizer.ADAMW, live, {}) == said
    saved |= {"param_group_mapping": ["unet", "unet"], "param_group_optimizer_mapping": ["ADAMW"]}
    assert optimizer_state(saved, Optimizer.ADAMW, live, {}) == said
