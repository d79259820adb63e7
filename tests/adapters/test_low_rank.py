"""Extracting an adapter from two models, and resizing one, against the best there is."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_models import FLUX, LORAS, SD, SD3, assert_same

from modules.adapters.files import AdapterError
from modules.adapters.low_rank import extract, resize
from modules.adapters.merging import merge


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
def test_what_was_merged_is_extracted_again(model, exact, tmp_path):
    its = model(SD)
    merge(its.folder, tmp_path / "tuned", {its.lora: 1.0})
    extract(
        its.folder,
        tmp_path / "tuned",
        tmp_path / "new",
        rank=3,
        model_format="KOHYA_LORA",
        exact=exact,
        dtype=torch.float32,
    )
    assert_same(its.changes(tmp_path / "new"), its.expected(), atol=1e-4)


def test_extracting_from_single_files_finds_the_parts_of_fused_weights(model, tmp_path):
    its = model(SD3)
    merge(its.file, tmp_path / "tuned.safetensors", {its.lora: 1.0}, model_type=SD3)
    extract(
        its.file,
        tmp_path / "tuned.safetensors",
        tmp_path / "new",
        rank=3,
        model_type=SD3,
        dtype=torch.float32,
    )
    assert_same(its.changes(tmp_path / "new"), its.expected(), atol=1e-4)


def test_an_extract_of_a_smaller_rank_is_the_nearest_there_is(model, tmp_path):
    its = model(SD)
    merge(its.folder, tmp_path / "tuned", {its.lora: 1.0})
    extract(its.folder, tmp_path / "tuned", tmp_path / "new", rank=2, dtype=torch.float32)
    found, expected = its.changes(tmp_path / "new"), its.expected()
    for name, change in expected.items():
        values = torch.linalg.svdvals(change)
        least = values[2:].norm()  # Eckart and Young
        torch.testing.assert_close((found[name] - change).norm(), least, atol=1e-4, rtol=1e-2)


def test_outliers_are_cut_off_at_the_quantile(model, tmp_path):
    its = model(SD)
    merge(its.folder, tmp_path / "tuned", {its.lora: 1.0})
    extract(its.folder, tmp_path / "tuned", tmp_path / "whole", rank=3, dtype=torch.float32)
    extract(
        its.folder,
        tmp_path / "tuned",
        tmp_path / "cut",
        rank=3,
        clamp_quantile=0.9,
        dtype=torch.float32,
    )
    whole, cut = load_file(tmp_path / "whole"), load_file(tmp_path / "cut")
    for key in whole:
        if key.endswith("lora_A.weight"):
            other = key.replace("lora_A", "lora_B")
            numbers = torch.cat([whole[key].flatten(), whole[other].flatten()]).abs()
            most = max(float(cut[key].abs().max()), float(cut[other].abs().max()))
            assert 0.85 < (numbers <= most + 1e-6).float().mean() < 0.95


def test_models_that_cannot_be_compared_are_refused(model, tmp_path):
    sd = model(SD)
    with pytest.raises(AdapterError, match="do not differ in any layer"):
        extract(sd.folder, sd.folder, tmp_path / "new", rank=4)
    with pytest.raises(AdapterError, match="do not have the same layers"):
        extract(sd.folder, model(FLUX).folder, tmp_path / "new", rank=4)
    with pytest.raises(AdapterError, match="rank is 0, but a rank is at least 1"):
        extract(sd.folder, sd.folder, tmp_path / "new", rank=0)
    with pytest.raises(AdapterError, match=r"clamp_quantile is 2, but is in"):
        extract(sd.folder, sd.folder, tmp_path / "new", rank=4, clamp_quantile=2)


@pytest.mark.parametrize("model_format", LORAS[:3], ids=lambda each: each.value)
def test_a_resized_lora_is_the_nearest_of_its_rank(model, model_format, tmp_path):
    its = model(SD)
    its.write(tmp_path / "old", model_format)
    ranks = resize(tmp_path / "old", tmp_path / "new", rank=2)
    assert set(ranks.values()) == {2}
    assert load_file(tmp_path / "new").keys() == load_file(tmp_path / "old").keys()
    found, expected = its.changes(tmp_path / "new"), its.expected()
    for name, change in expected.items():
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        nearest = (left[:, :2] * values[:2]) @ right[:2]
        torch.testing.assert_close(found[name], nearest, atol=1e-5, rtol=1e-3, msg=name)
    resize(tmp_path / "old", tmp_path / "same", rank=8)
    assert_same(its.changes(tmp_path / "same"), expected, atol=1e-5)


def diagonal(values):
    """A LoRA whose change has these singular values."""
    rank = len(values)
    return {
        "a.lora_down.weight": torch.eye(rank, 8),
        "a.lora_up.weight": torch.eye(6, rank) * torch.tensor(values),
        "a.alpha": torch.tensor(2.0 * rank),
        "a.dora_scale": torch.ones(6, 1),
    }


@pytest.mark.parametrize(
    ("limits", "rank"),
    [
        ({"ratio": 3.0}, 2),
        ({"ratio": 100.0}, 4),
        ({"share": 0.9}, 2),
        ({"share": 0.5}, 1),
        ({"share": 1.0}, 4),
        ({"rank": 1, "share": 1.0}, 1),
    ],
    ids=str,
)
def test_a_rank_can_be_chosen_by_what_it_keeps(limits, rank, tmp_path):
    # norms of the largest alone: 4 / 5.1 = 0.78; of two: 5 / 5.1 = 0.98
    save_file(diagonal([4.0, 3.0, 1.0, 0.05]), tmp_path / "old", {"ss_network_dim": "4"})
    ranks = resize(tmp_path / "old", tmp_path / "new", **limits)
    assert ranks == {"a": rank}
    new = load_file(tmp_path / "new")
    assert new["a.lora_down.weight"].shape == (rank, 8)
    assert float(new["a.alpha"]) == 2.0 * rank  # the scale alpha / R stays
    assert torch.equal(new["a.dora_scale"], torch.ones(6, 1))
    with safe_open(tmp_path / "new", "pt") as file:
        assert file.metadata()["ss_network_dim"] == str(rank)


def test_a_resize_without_a_limit_or_a_lora_is_refused(model, tmp_path):
    its = model(SD)
    with pytest.raises(AdapterError, match="Set rank, ratio or share"):
        resize(its.lora, tmp_path / "new")
    with pytest.raises(AdapterError, match=r"ratio is 0\.5, but is at least 1"):
        resize(its.lora, tmp_path / "new", ratio=0.5)
    with pytest.raises(AdapterError, match=r"share is 2, but is in"):
        resize(its.lora, tmp_path / "new", share=2)
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "none")
    with pytest.raises(AdapterError, match="holds no LoRA: its keys are such as weight"):
        resize(tmp_path / "none", tmp_path / "new", rank=2)
