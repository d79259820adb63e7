"""Adapters of every family: they learn on few bits, draw alike in diffusers, come back in kind."""

import diffusers
import pytest
import torch

from modules.adapters.change import weight_change
from modules.adapters.files import save_tensors, to_format
from modules.adapters.kinds import adapter_layers, add_adapter, canonical, in_format
from modules.adapters.lora import add_lora, lora_layers, matching_layers
from modules.adapters.reading import read_adapter
from modules.adapters.writing import by_layer
from modules.config import MODELS, ConfigError, ModelFormat, SampleConfig, TrainConfig
from modules.config.case import Case
from modules.config.hardware import Hardware
from modules.config.rules_model import ORIGINAL_NAMES, joined_layers
from modules.families import all_families
from modules.families.base import SCHEDULED
from modules.families.storage import SmallLinear, shrink

torch.set_num_threads(1)
FAMILIES = list(all_families())
QUICK = "Flux.1-dev"


def cases(families):
    return [
        pytest.param(
            each,
            id=f"{each.architecture}-{each.pipeline}",
            marks=[] if each.architecture == QUICK else [pytest.mark.slow],
        )
        for each in families
    ]


def one_of_each(facts):
    """The families of which no earlier one has the same facts."""
    found = []
    for each in FAMILIES:
        if facts(each) not in [facts(other) for other in found]:
            found.append(each)
    return found


LAYOUTS = one_of_each(lambda family: (type(family), family.lora_formats))
NETWORKS = one_of_each(type)


def joins(family):
    """Whether files in the layout of its original code join layers."""
    native = family.lora_formats[ModelFormat.COMFY_LORA].native
    return native is not None and bool(native.fused)


def toy(family):
    """A toy whose every layer does something, alike each time."""
    diffusers.utils.logging.disable_progress_bar()
    parts = family.tiny()
    parts.pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    for network in parts.modules().values():
        network.eval().requires_grad_(False)
        for weight in network.parameters():
            if not weight.any():  # layers that start at zero would hide mistakes
                weight.normal_(std=0.05, generator=generator)
    return parts


def batch(family, parts):
    """Two noisy pictures with their times and captions, and what the model should say of them."""
    edge = max(64, family.pixel_multiple)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, edge, edge, generator=generator) * 2 - 1
    with torch.no_grad():
        latents = family.encode_images(parts, pixels)
        condition = family.encode_text(parts, ["a red circle", "blurry"])
        condition |= family.encode_hints(parts, pixels, torch.ones(2, 1, edge, edge))
    noise = torch.randn(latents.shape, generator=generator)
    whole = family.objective(parts) in SCHEDULED
    time = torch.tensor([400, 800]) if whole else torch.tensor([0.4, 0.8])
    target = noise - latents if family.objective(parts) == "flow" else noise
    return noise, time, condition, target


@pytest.mark.parametrize("kind", [None, "int8", "nf4"], ids=lambda kind: kind or "whole")
@pytest.mark.parametrize("family", cases(NETWORKS))
def test_an_adapter_learns_one_batch_in_twenty_steps(family, kind):
    parts = toy(family)
    network = parts.denoiser
    if kind:
        assert shrink(network, kind) > 0
    small = [layer for layer in network.modules() if isinstance(layer, SmallLinear)]
    codes = [layer.codes.clone() for layer in small]
    layers = matching_layers(network, "", regex=False)
    weights = add_lora(network, layers, rank=4, alpha=4.0, dropout=0.0, seed=1)
    noisy, time, condition, target = batch(family, parts)
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses = []
    for _ in range(20):
        prediction = family.predict(parts, noisy, time, condition)
        loss = (prediction.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(*pair) for pair in zip(codes, (s.codes for s in small), strict=True))
    learned = [bool(layer.up.any()) for layer in lora_layers({family.denoiser: network})]
    assert sum(learned) > 0.5 * len(learned)  # not each expert is asked, nor each last stream read


def drawn(family, parts):
    """Latents after two steps from the live pipeline."""
    edge = max(64, family.pixel_multiple)
    definition = SampleConfig().update(
        prompt="a red circle", negative_prompt="blurry", width=edge, height=edge, cfg_scale=2.0
    )
    if family.objective(parts) in SCHEDULED:
        old = parts.scheduler.config
        parts.pipeline.scheduler = diffusers.DDIMScheduler.from_config(old)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        return parts.pipeline(
            **family.sample_arguments(parts, definition),
            num_inference_steps=2,
            generator=generator,
            output_type="latent",
        )[0]


@pytest.mark.parametrize("family", cases(FAMILIES))
def test_diffusers_draws_with_the_file_what_the_live_adapter_draws(family, tmp_path):
    fresh, parts = toy(family), toy(family)
    if not hasattr(fresh.pipeline, "load_lora_weights"):
        pytest.skip(f"diffusers has no adapter loader for {family.pipeline}")
    before = drawn(family, fresh)
    network = parts.denoiser
    layers = matching_layers(network, "", regex=False)
    add_lora(network, layers, rank=4, alpha=2.0, dropout=0.0, seed=1)
    live = list(lora_layers({family.denoiser: network}))
    generator = torch.Generator().manual_seed(2)
    for layer in live:
        layer.up.data.normal_(std=0.05, generator=generator)
    file = tmp_path / "lora.safetensors"
    save_tensors(to_format(live, family, ModelFormat.DIFFUSERS_LORA), file, torch.float32)
    after = drawn(family, parts)
    fresh.pipeline.load_lora_weights(file)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(drawn(family, fresh), after, atol=1e-4, rtol=1e-4)


KINDS = {
    "dora": {"lora_decompose": True, "lora_decompose_output_axis": True},
    "dora-inputs": {"lora_decompose": True},
    "loha": {"peft_type": "LOHA"},
    "lokr": {"peft_type": "LOKR", "lokr_dim": 2, "lokr_decompose_both": True},
    "oft": {"peft_type": "OFT_2", "oft_block_size": 2},
}


def test_the_config_knows_which_layers_each_format_joins():
    for family in FAMILIES:
        for model_format, key_map in family.lora_formats.items():
            native, facts = key_map.native, MODELS[family.model_types[0]]
            joined = [path for group in native.fused for path in group.members] if native else []
            turned = list(native.swapped) if native else []
            known = model_format in ORIGINAL_NAMES
            assert set(joined) == set(facts.joined if known else ()), model_format
            assert set(turned) == set(facts.turned if known else ()), model_format


def test_the_config_knows_which_formats_hold_text_encoders():
    for family in FAMILIES:
        facts, trained = MODELS[family.model_types[0]], set(family.trainable_encoders)
        assert facts.text_training or not trained
        for model_format, key_map in family.lora_formats.items() if trained else ():
            held = trained <= key_map.prefixes.keys()
            assert held is (model_format not in facts.denoiser_only), (family, model_format)


@pytest.mark.parametrize("family", cases([each for each in LAYOUTS if joins(each)]))
def test_what_is_refused_before_the_model_loads_is_what_its_layers_would_refuse(family):
    network, (kind, *_) = family.tiny().denoiser, family.model_types
    paths = matching_layers(network, "", regex=False)
    filters = [each.layer_filter for each in MODELS[kind].filters.values() if not each.regex]
    ends = {path.rpartition(".")[2] for path in paths} - {"0", "1", "2"}
    key_map = family.lora_formats[ModelFormat.COMFY_LORA]
    config = TrainConfig().update(
        model_type=kind, training_method="LORA", peft_type="OFT_2", output_model_format="COMFY_LORA"
    )
    seen = set()
    for text in [*filters, *ends]:
        places = [
            key_map.place(family.denoiser, path) for path in matching_layers(network, text, False)
        ]
        case = Case(config.update(layer_filter=text), MODELS[kind], Hardware("cpu", "cpu"))
        refused = any(joined_layers(case))
        assert refused is any(place.fused for place in places), text
        seen.add(refused)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", cases(LAYOUTS))
def test_every_kind_comes_back_from_every_format_or_is_refused(family, kind):
    parts = toy(family)
    network = parts.denoiser
    config = TrainConfig().update(
        training_method="LORA", lora_rank=2, lora_alpha=1.0, dropout_probability=0.0, **KINDS[kind]
    )
    flat = {name for name, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    paths = [path for path in matching_layers(network, "", regex=False) if path in flat]
    bases = {path: network.get_submodule(path).weight.detach().clone() for path in paths}
    add_adapter(network, paths, config)
    generator = torch.Generator().manual_seed(2)
    for weight in network.parameters():
        if weight.requires_grad:
            noise = torch.randn(weight.shape, generator=generator)
            weight.data += 0.05 * noise
    layers = list(adapter_layers({family.denoiser: network}))
    assert {layer.path for layer in layers} == set(paths)
    own = by_layer(canonical(layers, family))
    for model_format, key_map in family.lora_formats.items():
        places = [key_map.place(layer.part, layer.path) for layer in layers]
        shapes = [bases[layer.path].shape for layer in layers]
        joins = any(
            place.fused or (kind != "oft" and place.swaps(*shape))
            for place, shape in zip(places, shapes, strict=True)
        )
        if joins or (kind == "dora-inputs" and key_map.folds_alpha):
            with pytest.raises(ConfigError, match=r"which only LoRA can do|along the inputs"):
                in_format(layers, family, model_format)
            continue
        written = in_format(layers, family, model_format)
        if kind.startswith("dora"):
            end = ".lora_magnitude_vector.weight" if key_map.folds_alpha else ".dora_scale"
            assert sum(key.endswith(end) for key in written) == len(layers)
        found = read_adapter(written, family, {family.denoiser: network})
        assert found.unplaced == []
        back = by_layer(found.tensors)
        assert back.keys() == own.keys()
        for name, tensors in back.items():
            base = bases[name.partition(".")[2]]
            expected = weight_change(own[name], base)
            turns = sum(tensor.numel() for key, tensor in tensors.items() if "oft" in key)
            if kind == "oft" and not turns:
                continue  # blocks of 1: no larger one divides the toy's width, nothing turns
            assert expected.abs().max() > 1e-6
            torch.testing.assert_close(weight_change(tensors, base), expected, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_layers_with_turned_halves_are_refused_before_they_train(kind):
    """In the last block of Stable Diffusion 3, whose original code has shift and scale turned."""
    family = next(each for each in FAMILIES if each.architecture == "stable-diffusion-v3-medium")
    network = toy(family).denoiser
    config = TrainConfig().update(training_method="LORA", lora_rank=2, **KINDS[kind])
    paths = matching_layers(network, "norm1_context", regex=False)
    add_adapter(network, paths, config)
    *others, last = adapter_layers({family.denoiser: network})
    own = canonical(others, family)
    written = in_format(others, family, ModelFormat.KOHYA_LORA)
    found = read_adapter(written, family, {family.denoiser: network})
    assert found.unplaced == []
    assert found.tensors.keys() == own.keys()
    if kind == "oft":  # turns inputs, whatever becomes of the outputs
        assert in_format([last], family, ModelFormat.KOHYA_LORA)
        return
    with pytest.raises(ConfigError, match=r"swaps the halves of transformer_blocks\.1\.norm1_con"):
        in_format([last], family, ModelFormat.KOHYA_LORA)


def test_a_dora_whose_halves_another_tool_turned_is_read_as_the_layer_has_them():
    family = next(each for each in FAMILIES if each.architecture == QUICK)
    network = toy(family).denoiser
    layer = network.norm_out.linear
    rows, columns = layer.weight.shape
    down, up = torch.randn(2, columns), torch.randn(rows, 2)
    lengths = torch.rand(rows, 1) + 0.5
    ours = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": lengths}
    ours["alpha"] = torch.tensor(2.0)
    other = {
        name: torch.cat(ours[name].chunk(2)[::-1]) for name in ("lora_up.weight", "dora_scale")
    }
    native = "diffusion_model.final_layer.adaLN_modulation.1"
    file = {f"{native}.{name}": tensor for name, tensor in {**ours, **other}.items()}
    found = by_layer(read_adapter(file, family, {family.denoiser: network}).tensors)
    expected = weight_change(ours, layer.weight)
    torch.testing.assert_close(
        weight_change(found[f"{family.denoiser}.norm_out.linear"], layer.weight), expected
    )
