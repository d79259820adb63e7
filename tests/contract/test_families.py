"""Every family, against the library pipeline of its architecture: same inputs, same answers."""

import inspect
from contextlib import contextmanager

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from modules.config import NoiseScheduler, SampleConfig
from modules.families import all_families, family_for
from modules.families.base import SCHEDULED
from modules.sampling.sampler import sample

FAMILIES = list(all_families())
PROMPT, NEGATIVE = "a red circle, 4k", "blurry"


VARIATIONS = ("inpainting", "stable-diffusion-v2", "v3.5", "pixart-alpha")
"""Families that share all but a few lines with another one: their tests run with all others."""
CASES = [
    pytest.param(
        each,
        id=f"{each.architecture}-{each.pipeline}",
        marks=[pytest.mark.slow] if any(word in each.architecture for word in VARIATIONS) else [],
    )
    for each in FAMILIES
]


@pytest.fixture(scope="module", params=CASES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def edge(family):
    """Pixels of a picture that is small, and of several latent cells each way."""
    return max(64, family.pixel_multiple)


@pytest.fixture(scope="module")
def parts(family):
    diffusers.utils.logging.disable_progress_bar()
    parts = family.tiny()
    parts.pipeline.set_progress_bar_config(disable=True)
    if family.objective(parts) in SCHEDULED:  # a schedule whose noisy latents need no scaling
        old = parts.scheduler.config
        parts.pipeline.scheduler = diffusers.DDIMScheduler.from_config(old)
    for network in parts.modules().values():
        network.eval()
        for parameter in network.parameters():  # layers that start at zero would hide mistakes
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return parts


@pytest.mark.parametrize(
    "each", [each for each in FAMILIES if each.tokens], ids=lambda each: each.architecture
)
def test_captions_of_one_length_are_as_long_as_the_library_has_them(each):
    call = inspect.signature(each.pipeline_class().__call__)
    assert each.tokens == call.parameters["max_sequence_length"].default


def definition(edge, cfg_scale=1.0):
    return SampleConfig().update(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=edge,
        height=edge,
        cfg_scale=cfg_scale,
        diffusion_steps=2,
        seed=0,
        noise_scheduler=NoiseScheduler.DDIM,
    )


def arguments_of(family, parts, wanted):
    """The family's arguments, with a picture to paint into where it sends a blank one."""
    given = family.sample_arguments(parts, wanted)
    shown, mask = picture(wanted.width)
    if "image" in given:
        given["image"] = shown
    if "mask_image" in given:
        given["mask_image"] = mask
        given.pop("masked_image_latents", None)
    return given


def picture(edge):
    """A picture of noise, and a mask of its right half."""
    noise = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    mask = np.zeros((edge, edge), np.uint8)
    mask[:, edge // 2 :] = 255
    return Image.fromarray(noise), Image.fromarray(mask)


def in_words(family, parts, wanted):
    """The same with the texts themselves: the pipeline then encodes them."""
    given = arguments_of(family, parts, wanted)
    endings = ("prompt_embeds", "embeds_pooled", "attention_mask", "embeds_mask")
    words = {key: value for key, value in given.items() if not key.endswith(endings)}
    words["prompt"] = wanted.prompt
    accepted = inspect.signature(type(parts.pipeline).__call__).parameters
    if "negative_prompt" in accepted and any(key.startswith("negative") for key in given):
        words["negative_prompt"] = wanted.negative_prompt
    return words


def run(pipeline, arguments, output="latent"):
    generator = torch.Generator().manual_seed(0)
    return pipeline(**arguments, num_inference_steps=2, generator=generator, output_type=output)[0]


def run_stages(parts, arguments):
    """The pictures of diffusers' pipeline of both stages; the first takes two steps."""
    first = {f"prior_{name}": part for name, part in parts.pipeline.components.items()}
    combined = type(parts.pipeline).__name__.replace("Prior", "Combined")
    pipeline = getattr(diffusers, combined)(**parts.finisher.components, **first)
    pipeline.set_progress_bar_config(disable=True)
    arguments["prior_guidance_scale"] = arguments.pop("guidance_scale")
    generator = torch.Generator().manual_seed(0)
    return pipeline(**arguments, prior_num_inference_steps=2, generator=generator).images


@contextmanager
def recorded(parts):
    """Inputs of the denoiser's calls, and what the scheduler's steps are given."""
    calls, steps = [], []
    names = list(inspect.signature(parts.denoiser.forward).parameters)

    def hook(_module, args, kwargs, _output):
        calls.append({**dict(zip(names, args, strict=False)), **kwargs})

    step = parts.scheduler.step

    def stepping(*args, **kwargs):
        output, timestep, sample, *_ = inspect.signature(step).bind(*args, **kwargs).args
        steps.append((output.clone(), timestep, sample.clone()))
        return step(*args, **kwargs)

    handle = parts.denoiser.register_forward_hook(hook, with_kwargs=True)
    parts.scheduler.step = stepping
    try:
        yield calls, steps
    finally:
        handle.remove()
        del parts.scheduler.step


def tensors_of(value, path=""):
    """Every tensor and number inside an argument, by where it stands."""
    if torch.is_tensor(value):
        yield path, value.detach().float().clone()
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from tensors_of(each, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from tensors_of(each, f"{path}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, torch.tensor(float(value))


def hints(family, parts, edge):
    """What the denoiser is shown of that picture."""
    shown, mask = (torch.from_numpy(np.array(image)).float() / 255 for image in picture(edge))
    pixels = (shown.permute(2, 0, 1) * 2 - 1).unsqueeze(0)
    return family.encode_hints(parts, pixels, mask.view(1, 1, edge, edge))


@torch.no_grad()
def test_prediction_is_what_the_pipeline_hands_its_scheduler(family, parts, edge):
    arguments = in_words(family, parts, definition(edge))
    with recorded(parts) as (theirs, steps):
        run(parts.pipeline, arguments)
    output, timestep, latents = steps[1]
    flow = family.objective(parts) == "flow"
    time = parts.scheduler.sigmas[1].view(1) if flow else torch.as_tensor(timestep).view(1)
    condition = family.encode_text(parts, [PROMPT]) | hints(family, parts, edge)
    noisy = family.spatial(latents, edge, edge)
    with recorded(parts) as (ours, _):
        prediction = family.predict(parts, noisy, time.to(noisy.device), condition)

    mine = dict(tensors_of(ours[0]))
    for path, tensor in tensors_of(theirs[1]):
        assert path in mine, f"the denoiser is not given {path}"
        torch.testing.assert_close(
            mine[path],
            tensor.expand_as(mine[path]),
            atol=1e-5,
            rtol=1e-4,
            msg=lambda m, p=path: f"{p}: {m}",
        )
    assert prediction.shape == noisy.shape
    expected = family.spatial(output, edge, edge)
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_batch_predicts_what_each_of_its_rows_does(family, parts, edge):
    captions = ["a", "a much longer caption, of many words"]
    latents = family.encode_images(parts, torch.rand(2, 3, edge, edge) * 2 - 1)
    time = torch.tensor([0.3, 0.9])
    if family.objective(parts) in SCHEDULED:
        time = (time * 1000).long()
    picture = torch.zeros(2, 3, edge, edge)
    condition = family.encode_text(parts, captions) | family.encode_hints(
        parts, picture, torch.ones(2, 1, edge, edge)
    )
    assert all(len(tensor) == 2 for tensor in condition.values())
    together = family.predict(parts, latents, time, condition)
    for row in range(2):
        one = {name: tensor[row : row + 1] for name, tensor in condition.items()}
        alone = family.predict(parts, latents[row : row + 1], time[row : row + 1], one)
        torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=1e-3)


@torch.no_grad()
def test_captions_encode_alike_alone_and_together(family, parts):
    captions = ["a", "a much longer caption, of many words"]
    together = family.encode_text(parts, captions)
    for row, caption in enumerate(captions):
        for name, tensor in family.encode_text(parts, [caption]).items():
            torch.testing.assert_close(together[name][row], tensor[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_samples_are_the_pictures_of_the_plain_pipeline(family, parts, edge, monkeypatch):
    wanted = definition(edge, cfg_scale=3.0)
    if "negative_prompt" not in inspect.signature(type(parts.pipeline).__call__).parameters:
        wanted = wanted.update(negative_prompt="")  # what such a pipeline takes by itself
    if parts.finisher is None:
        plain = run(parts.pipeline, in_words(family, parts, wanted), output="pil")[0]
    else:
        plain = run_stages(parts, in_words(family, parts, wanted))
    plain = plain[0] if isinstance(plain, list) else plain  # a film of one frame
    given = arguments_of(family, parts, wanted)
    monkeypatch.setattr(type(family), "sample_arguments", lambda *_: given)
    drawn = sample(family, parts, wanted)
    difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(plain).astype(int))
    assert difference.max() <= 1


@torch.no_grad()
def test_latents_come_back_as_the_vae_alone_gives_them_back(family, parts, edge):
    pixels = torch.rand(2, 3, edge, edge) * 2 - 1
    latents = family.encode_images(parts, pixels)
    back = family.decode(parts, latents)
    if parts.finisher is not None:  # drawn anew, which is never the same picture
        assert back.shape == pixels.shape
        assert back.abs().max() <= 1
        return
    vae = parts.vae
    frames = pixels.unsqueeze(2) if "Causal" in repr(vae) else pixels
    encoded = vae.encode(frames)
    raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    plain = vae.decode(raw).sample.reshape(pixels.shape)
    torch.testing.assert_close(back, plain, atol=1e-4, rtol=1e-3)


def test_one_batch_is_learned(family, parts, edge):
    """Gradients reach the denoiser through `predict`, and following them lowers the loss."""
    latents = family.encode_images(parts, torch.rand(2, 3, edge, edge) * 2 - 1).detach()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    picture = torch.zeros(2, 3, edge, edge)
    with torch.no_grad():
        condition = family.encode_text(parts, [PROMPT, NEGATIVE]) | family.encode_hints(
            parts, picture, torch.ones(2, 1, edge, edge)
        )
    whole = family.objective(parts) in SCHEDULED
    time = torch.tensor([400, 800]) if whole else torch.tensor([0.4, 0.8])
    with torch.no_grad():
        calm = family.predict(parts, noise, time, condition)
        parts.denoiser.train()
        eager = family.predict(parts, noise, time, condition)
    torch.testing.assert_close(eager, calm, atol=1e-5, rtol=1e-4)  # no layer here has dropout
    target = noise - latents if family.objective(parts) == "flow" else noise
    weights = [p for p in parts.denoiser.parameters() if p.requires_grad]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=2e-3)
    losses = []
    for _ in range(4):
        loss = (family.predict(parts, noise, time, condition) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    parts.denoiser.eval()
    with torch.no_grad():
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    assert losses[-1] < losses[0]


def test_each_model_type_has_a_family_that_names_it():
    assert all(
        kind in family_for(kind).model_types for each in FAMILIES for kind in each.model_types
    )
