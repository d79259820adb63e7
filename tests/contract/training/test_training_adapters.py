"""DoRA, LoHa, LoKr and OFT: trained, kept, and read back by the formulas of their papers."""

import numpy as np
import peft
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from modules.adapters.change import weight_change
from modules.adapters.oft import remarks
from modules.adapters.writing import by_layer
from modules.config import ConfigError
from modules.training import events as e

SAMPLE = {
    "prompt": "a red card", "height": 64, "width": 64, "diffusion_steps": 3, "cfg_scale": 1.0,
    "seed": 7, "noise_scheduler": "DDIM",
}  # fmt: skip
KINDS = {
    "dora-inputs": {"lora_decompose": True},
    "dora": {"lora_decompose": True, "lora_decompose_output_axis": True},
    "loha": {"peft_type": "LOHA"},
    "lokr": {"peft_type": "LOKR", "lokr_dim": 2, "lokr_decompose_both": True},
    "lokr-whole": {"peft_type": "LOKR", "lokr_dim": 2, "lokr_full_matrix": True},
    "oft": {"peft_type": "OFT_2", "oft_block_size": 4, "layer_filter": "attn2.to_q"},
}
LARGE = {"learning_rate": 2e-2, "epochs": 1, "layer_filter": "attn2.to_k,resnets.0.conv1"}


def slow(kind):
    return pytest.param(kind, marks=pytest.mark.slow)


def change_by_the_papers(found, scale):
    """What a file's tensors of one layer add to its weight, by the papers."""
    if "hada_w1_a" in found:
        first = found["hada_w1_a"] @ found["hada_w1_b"]
        return first * (found["hada_w2_a"] @ found["hada_w2_b"]) * scale
    left = found.get("lokr_w1", None)
    if left is None:
        left = found["lokr_w1_a"] @ found["lokr_w1_b"]
    right = found.get("lokr_w2", None)
    if right is None:
        flat = found["lokr_w2_b"]
        right = (found["lokr_w2_a"] @ flat.flatten(1)).unflatten(1, flat.shape[1:])
    whole = "lokr_w1" in found and "lokr_w2" in found
    left = left.view(*left.shape, *[1] * (right.ndim - 2))
    return torch.kron(left, right) * (1.0 if whole else scale)


@pytest.mark.parametrize("kind", ["lokr", slow("loha"), slow("lokr-whole")])
def test_a_saved_adapter_changes_the_weights_as_the_live_one(make_config, make_run, kind):
    live = {}

    def react(event, _commands):
        if isinstance(event, e.ModelSaved):
            for path, layer in run.trainer.model.unet.named_modules():
                if hasattr(layer, "get_delta_weight"):
                    live[path.replace(".", "_")] = layer.get_delta_weight("default").detach()

    run = make_run(make_config(output_model_format="KOHYA_LORA", **KINDS[kind], **LARGE), react)
    run.go()
    tensors = load_file(run.of(e.ModelSaved)[0].path)
    layers = {}
    for key, tensor in tensors.items():
        name, suffix = key.removeprefix("lora_unet_").split(".", 1)
        layers.setdefault(name, {})[suffix] = tensor
    assert layers.keys() == live.keys()
    rank = 2 if kind.startswith("lokr") else 4
    for name, found in layers.items():
        alpha = found.get("alpha", torch.tensor(2.0))
        change = change_by_the_papers(found, alpha / rank)
        assert live[name].abs().max() > 1e-5, name
        torch.testing.assert_close(
            change.reshape(live[name].shape), live[name], atol=1e-6, rtol=1e-4
        )


def test_a_dora_draws_in_diffusers_what_it_drew_live(make_config, train, model_folder):
    sampled = {"samples": [SAMPLE], "sample_after": 3, "sample_after_unit": "STEP"}
    run = train(make_config(**KINDS["dora"], **LARGE, **sampled))
    live = np.asarray(Image.open(run.of(e.SampleImage)[-1].path)).astype(int)

    def drawn(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        generator = torch.Generator().manual_seed(7)
        return np.asarray(
            pipeline(
                SAMPLE["prompt"], height=64, width=64, num_inference_steps=3, guidance_scale=1.0,
                generator=generator,
            ).images[0]
        ).astype(int)  # fmt: skip

    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None)
    before = drawn(pipeline)
    pipeline.load_lora_weights(run.of(e.ModelSaved)[0].path)
    magnitudes = [n for n, _ in pipeline.unet.named_parameters() if "magnitude" in n]
    assert len(magnitudes) == len({n.rsplit(".lora_", 1)[0] for n in magnitudes}) > 0
    assert np.abs(live - before).mean() > 0.5
    assert np.abs(live - drawn(pipeline)).max() <= 1


@pytest.mark.parametrize("kind", ["loha", "dora-inputs", slow("dora"), slow("lokr"), slow("oft")])
def test_every_kind_learns_and_goes_on_exactly(make_config, train, tmp_path, kind):
    settings = {**LARGE, **KINDS[kind], "epochs": 2, "output_model_format": "KOHYA_LORA"}
    straight = train(make_config(**settings))
    config = make_config(workspace_dir=tmp_path / "halves", backup_before_save=True, **settings)

    def stop(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 3:
            commands.stop()

    train(config, stop)
    resumed = train(config.update(continue_last_backup=True))
    assert resumed.losses == {s: loss for s, loss in straight.losses.items() if s > 3}
    assert resumed.of(e.LossUpdate)[0].grad_norm > 0


@pytest.mark.parametrize(
    "kind", ["loha", slow("lokr"), slow("lokr-whole"), slow("dora"), slow("dora-inputs"), "oft"]
)
def test_every_kind_goes_on_from_its_file(make_config, train, kind):
    """Also with another alpha: the layers begin with the change that the file makes."""
    settings = {**LARGE, **KINDS[kind], "output_model_format": "KOHYA_LORA"}
    path = train(make_config(**settings)).of(e.ModelSaved)[0].path
    again = {**settings, "lora_model_name": str(path), "lora_alpha": 7.0, "learning_rate": 1e-30}
    first, second = (
        by_layer(load_file(each))
        for each in (path, train(make_config(**again)).of(e.ModelSaved)[0].path)
    )
    assert first.keys() == second.keys()
    generator = torch.Generator().manual_seed(0)
    for name, tensors in first.items():
        width = tensors["oft_R.weight"].shape[0] * 4 if "oft_R.weight" in tensors else None
        shape = (6, width) if width else None
        base = torch.randn(shape or shape_of(tensors), generator=generator)
        found, expected = weight_change(second[name], base), weight_change(tensors, base)
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_file_of_another_kind_or_size_is_refused(make_config, train):
    settings = {**LARGE, "epochs": 1, "output_model_format": "KOHYA_LORA"}
    path = str(train(make_config(**settings)).of(e.ModelSaved)[0].path)
    for changes, said in (
        (
            KINDS["loha"],
            r"has lora_down and lora_up for unet\..*, this run hada_w1_a and hada_w1_b",
        ),
        (KINDS["dora"], r"has lora_down and lora_up for .*, this run dora_scale and lora_down"),
        ({**KINDS["dora-inputs"], "lora_rank": 8}, r"Set peft_type, and what belongs to it"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(make_config(lora_model_name=path, **{**settings, **changes}))


@pytest.mark.parametrize("dtype", ["BFLOAT_16", slow("FLOAT_16")])
@pytest.mark.parametrize("kind", ["lora", "dora", slow("loha"), slow("lokr"), slow("oft")])
def test_an_adapter_of_16_bits_learns_much_the_same(make_config, make_run, dtype, kind):
    settings = {**LARGE, **KINDS.get(kind, {}), "output_model_format": "KOHYA_LORA"}
    settings |= {"learning_rate": 5e-3, "optimizer.stochastic_rounding": True}
    full = make_run(make_config(**settings)).go()
    seen = set()

    def react(event, _commands):
        if isinstance(event, e.LossUpdate):
            parts = run.trainer._method.trainable.values()
            seen.update(p.dtype for part in parts for p in part)

    run = make_run(make_config(lora_weight_dtype=dtype, **settings), react)
    run.go()
    assert seen == {torch.bfloat16 if dtype == "BFLOAT_16" else torch.float16}
    assert run.losses == pytest.approx(full.losses, rel=2e-2)
    assert run.losses != full.losses


def test_oft_rotates_convolutions_as_its_file_does(make_config, make_run):
    """A layer begins as it was, and answers as the weight that the file's numbers turn."""
    chosen = "conv_in,resnets.0.conv1,downsamplers.0.conv,attn2.to_q"
    settings = {**LARGE, "peft_type": "OFT_2", "oft_block_size": 8, "layer_filter": chosen}
    inputs, first, last = {}, {}, {}

    def answers(found):
        for path, layer in run.trainer.model.unet.named_modules():
            if hasattr(layer, "oft_R"):
                base = layer.base_layer
                inner = base.weight.shape[1]
                shape = (2, inner, 6, 6) if base.weight.ndim == 4 else (3, inner)
                x = inputs.setdefault(path, torch.randn(shape))
                with torch.no_grad():
                    found[path] = base, x, layer(x)

    def react(event, _commands):
        if event == e.TrainingState("training") and not first:
            answers(first)
        if isinstance(event, e.ModelSaved):
            answers(last)

    run = make_run(make_config(output_model_format="KOHYA_LORA", **settings), react)
    run.go()
    assert {base.weight.ndim for base, _, _ in first.values()} == {2, 4}
    assert {base.stride for base, _, _ in first.values() if base.weight.ndim == 4} == {
        (1, 1),
        (2, 2),
    }
    for base, x, answer in first.values():
        torch.testing.assert_close(answer, base(x), atol=1e-5, rtol=1e-5)
    tensors = load_file(run.of(e.ModelSaved)[0].path)
    for path, (base, x, answer) in last.items():
        packed = tensors[f"lora_unet_{path.replace('.', '_')}.oft_R.weight"]
        whole = turned(base.weight.detach(), packed)
        assert (whole - base.weight).abs().max() > 1e-3
        if whole.ndim == 2:
            expected = torch.nn.functional.linear(x, whole, base.bias)
        else:
            shape = {"stride": base.stride, "padding": base.padding}
            expected = torch.nn.functional.conv2d(x, whole, base.bias, **shape)
        torch.testing.assert_close(answer, expected.detach(), atol=1e-4, rtol=1e-4)


def test_a_block_size_that_does_not_fit_is_told(make_config, train):
    settings = {**LARGE, "peft_type": "OFT_2", "oft_block_size": 5, "layer_filter": "attn2.to_q"}
    run = train(make_config(**settings))
    (words,) = [word for word in run.warnings if "oft_block_size" in word]
    assert words.startswith("oft_block_size is 5, but unet.")
    assert words.endswith("take blocks of 4, because it does not divide their inputs.")


def test_a_layer_that_oft_cannot_turn_is_told():
    network = torch.nn.ModuleDict({"odd": torch.nn.Linear(85, 2), "even": torch.nn.Linear(8, 2)})
    peft.inject_adapter_in_model(
        peft.OFTConfig(r=0, oft_block_size=2, target_modules=["odd", "even"]), network
    )
    assert list(remarks({"unet": network}, 2)) == [
        "oft_block_size is 2, of which unet.odd can only take blocks of 1: nothing is learnt "
        "there. Choose a size that divides the width of those layers."
    ]


def shape_of(tensors):
    """The shape of the weight that a layer of a file changes."""
    if "lora_up.weight" in tensors:
        down, up = tensors["lora_down.weight"], tensors["lora_up.weight"]
        return (up.shape[0], *down.shape[1:])
    if "hada_w1_a" in tensors:
        return (tensors["hada_w1_a"].shape[0], tensors["hada_w1_b"].shape[1])
    left, right = (
        tensors.get(f"lokr_w{n}", tensors.get(f"lokr_w{n}_a", torch.empty(0))) for n in (1, 2)
    )
    ends = [tensors.get(f"lokr_w{n}_b", tensors.get(f"lokr_w{n}")) for n in (1, 2)]
    return (left.shape[0] * right.shape[0], ends[0].shape[1] * ends[1].shape[1], *ends[1].shape[2:])


def turned(weight, packed):
    """A weight whose rows are rotated by a whole matrix, made number by number."""
    width = weight[0].numel()
    size = next(b for b in range(2, width + 1) if b * (b - 1) // 2 == packed.shape[1])
    rotation = torch.zeros(width, width)
    for block, numbers in enumerate(packed):
        skew = torch.zeros(size, size)
        skew[tuple(torch.triu_indices(size, size, 1))] = numbers
        skew -= skew.T.clone()
        powers = [torch.linalg.matrix_power(skew, n) for n in range(5)]
        whole = powers[0] + 2 * (powers[1] + powers[2] + powers[3]) + powers[4]
        at = slice(block * size, (block + 1) * size)
        rotation[at, at] = whole
    if weight.ndim == 4:
        return (weight.flatten(1) @ rotation).view_as(weight)
    return weight @ rotation.T


def test_dora_along_the_inputs_is_its_formula_live_and_in_the_file(make_config, make_run):
    """The layer answers as the whole weight of the paper would, columns in the place of rows."""
    settings = {**LARGE, "lora_decompose": True, "output_model_format": "KOHYA_LORA"}
    live = {}

    def react(event, _commands):
        if isinstance(event, e.ModelSaved):
            torch.manual_seed(0)
            for path, layer in run.trainer.model.unet.named_modules():
                if hasattr(layer, "base_layer"):
                    base = layer.base_layer
                    inner = base.weight.shape[1]
                    x = (
                        torch.randn(2, inner, 6, 6)
                        if base.weight.ndim == 4
                        else torch.randn(3, inner)
                    )
                    with torch.no_grad():
                        live[path.replace(".", "_")] = base, x, layer(x)

    run = make_run(make_config(**settings), react)
    run.go()
    tensors = load_file(run.of(e.ModelSaved)[0].path)
    assert {base.weight.ndim for base, _, _ in live.values()} == {2, 4}
    for name, (base, x, answer) in live.items():
        down, up, alpha, scale = (
            tensors[f"lora_unet_{name}.{end}"]
            for end in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")
        )
        assert scale.shape == (1, base.weight.shape[1], *[1] * (base.weight.ndim - 2))
        before = base.weight.detach().transpose(0, 1).flatten(1).norm(dim=1)
        assert (scale.flatten() - before).abs().min() > 0  # lengths have trained too
        whole = base.weight + (up.flatten(1) @ down.flatten(1)).view_as(base.weight) * alpha / 4
        column = whole.transpose(0, 1).flatten(1).norm(dim=1).view_as(scale)
        whole = (whole / column * scale).detach()
        if whole.ndim == 2:
            expected = torch.nn.functional.linear(x, whole, base.bias)
        else:
            shape = {"stride": base.stride, "padding": base.padding}
            expected = torch.nn.functional.conv2d(x, whole, base.bias, **shape)
        torch.testing.assert_close(answer, expected.detach(), atol=1e-4, rtol=1e-4)
