"""Textual inversion: what trains, what stays, and what files and other tools make of it."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules.config import ConfigError
from modules.training import events as e

WORD = "<my-card>"
EMBEDDING = {
    "training_method": "EMBEDDING",
    "output_model_format": "SAFETENSORS",
    "layer_filter": "",
    "learning_rate": 0.05,
    "embedding": {"placeholder": WORD, "initial_embedding_text": "a", "token_count": 2},
}
SAMPLE = {
    "prompt": f"a {WORD}", "height": 64, "width": 64, "diffusion_steps": 3, "cfg_scale": 1.0,
    "seed": 7, "noise_scheduler": "DDIM",
}  # fmt: skip
SAMPLED = {"samples": [SAMPLE], "sample_after": 9, "sample_after_unit": "STEP"}


@pytest.fixture(scope="session")
def cards(tmp_path_factory):
    """Pictures whose captions hold the word."""
    folder = tmp_path_factory.mktemp("cards")
    for number, colour in enumerate(["red", "green", "blue", "yellow"]):
        image = Image.new("RGB", (64, 64), colour)
        image.paste("white", (8 * number, 8, 8 * number + 8, 40))
        image.save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"{WORD} in {colour}")
    return folder


@pytest.fixture
def config_of(make_config, cards):
    def make(**changes):
        common = {"concepts": [{"name": "cards", "path": str(cards)}], **EMBEDDING}
        config = make_config(**{**common, **changes})
        workspace = config.workspace_dir
        return config.update(output_model_destination=f"{workspace}/word.safetensors")

    return make


def networks(run):
    """A copy of every weight of the model that a run holds."""
    found = {}
    for name, network in run.trainer.parts.modules().items():
        found |= {f"{name}.{key}": tensor.clone() for key, tensor in network.state_dict().items()}
    return found


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def ids_of(run, text):
    tokenizer = run.trainer.parts.pipeline.tokenizer
    return tokenizer(text, add_special_tokens=False).input_ids


def test_only_the_new_vectors_learn(config_of, make_run):
    seen = {}

    def react(event, _commands):
        if isinstance(event, e.TrainingState) and event.state == "training" and not seen:
            seen["before"] = networks(run)
            seen["letters"] = ids_of(run, "a *")
        if isinstance(event, e.ModelSaved):
            seen["after"] = networks(run)

    run = make_run(config_of(), react)
    run.go()
    assert seen["before"].keys() == seen["after"].keys()
    assert all(torch.equal(seen["before"][key], seen["after"][key]) for key in seen["before"])
    learned = load_file(run.of(e.ModelSaved)[-1].path)
    assert list(learned) == ["emp_params"]
    table = seen["before"]["text_encoder.embeddings.token_embedding.weight"]
    moved = learned["emp_params"] - table[seen["letters"]]
    assert moved.abs().amin() > 0  # it began at "a", filled up with *, and no number stayed
    assert moved.abs().amax() < 6 * 0.06  # Adam goes one learning rate a step at most
    assert run.of(e.LossUpdate)[0].learning_rate == {"embedding": 0.05}


def test_the_file_draws_in_diffusers_what_it_drew_live(config_of, train, model_folder):
    run = train(config_of(**SAMPLED, epochs=5))
    live = pixels(run.of(e.SampleImage)[-1].path)
    path = run.of(e.ModelSaved)[-1].path
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1/embedding"

    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)

    def drawn(prompt):
        generator = torch.Generator().manual_seed(7)
        settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "generator": generator}
        return np.asarray(pipeline(prompt, height=64, width=64, **settings).images[0]).astype(int)

    plain = drawn(f"a {WORD}")
    pipeline.load_textual_inversion(str(path), token=WORD)
    assert np.abs(live - plain).mean() > 0.5
    assert np.abs(live - drawn(f"a {WORD}")).max() <= 1


def test_words_train_beside_a_lora_and_are_bundled_with_it(config_of, train, cards, tmp_path):
    """Each with a rate and an end of its own; a second run goes on from the file."""
    words = [
        {"placeholder": WORD, "token_count": 1},
        {
            "placeholder": "in",
            "token_count": None,
            "initial_embedding_text": "ab",
            "stop_training_after": 2,
            "stop_training_after_unit": "STEP",
        },
    ]
    settings = {
        "training_method": "LORA",
        "output_model_format": "KOHYA_LORA",
        "layer_filter": "attn2",
        "additional_embeddings": words,
        "embedding_learning_rate": 0.01,
        "save_every": 2,
        "save_every_unit": "STEP",
    }
    run = train(config_of(**settings))
    middle, final = (load_file(saved.path) for saved in run.of(e.ModelSaved)[::2])
    keys = {key for key in final if key.startswith("bundle_emb.")}
    assert keys == {f"bundle_emb.{WORD}.emp_params", "bundle_emb.in.emp_params"}
    assert final["bundle_emb.in.emp_params"].shape == (2, 32)
    assert torch.equal(middle["bundle_emb.in.emp_params"], final["bundle_emb.in.emp_params"])
    assert any(key.startswith("lora_unet_") for key in final)
    assert not torch.equal(*(file[f"bundle_emb.{WORD}.emp_params"] for file in (middle, final)))
    assert run.of(e.LossUpdate)[0].learning_rate == {
        "unet": 0.05,
        "additional_embeddings.0": 0.01,
        "additional_embeddings.1": 0.01,
    }
    path = run.of(e.ModelSaved)[-1].path
    again = train(
        config_of(
            **{**settings, "bundle_additional_embeddings": False, "embedding_learning_rate": 1e-12},
            lora_model_name=str(path),
            learning_rate=1e-12,
            epochs=1,
        )
    )
    lora = again.of(e.ModelSaved)[-1].path
    folder = lora.with_name(f"{lora.name}_embeddings")
    assert {file.name for file in folder.iterdir()} == {"my-card.safetensors", "in.safetensors"}
    assert not any(key.startswith("bundle_emb.") for key in load_file(lora))
    kept = load_file(folder / "my-card.safetensors")["emp_params"]
    torch.testing.assert_close(kept, final[f"bundle_emb.{WORD}.emp_params"])
    with pytest.raises(ConfigError, match=r"brings an embedding in, which this run lacks"):
        train(
            config_of(**{**settings, "additional_embeddings": words[:1]}, lora_model_name=str(path))
        )


@pytest.mark.parametrize("output", [False, True])
def test_it_keeps_its_length_where_that_is_wanted(config_of, train, model_folder, output):
    config = config_of(preserve_embedding_norm=True, **{"embedding.is_output_embedding": output})
    run = train(config)
    learned = load_file(run.of(e.ModelSaved)[-1].path)
    assert list(learned) == ["emp_params_out" if output else "emp_params"]
    (rows,) = learned.values()
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None)
    if output:
        tokens = pipeline.tokenizer("a*", return_tensors="pt")
        with torch.no_grad():
            first = pipeline.text_encoder(tokens.input_ids).last_hidden_state[0, 1:3]
        assert rows.std(1).mean() == pytest.approx(first.std(1).mean().item(), rel=1e-5)
        assert (rows - first).abs().amin() > 0
    else:
        usual = pipeline.text_encoder.get_input_embeddings().weight.norm(dim=1).median()
        torch.testing.assert_close(rows.norm(dim=1), usual.expand(2), rtol=1e-5, atol=0)


def test_an_output_embedding_stands_behind_the_encoder(config_of, make_run, model_folder):
    """At its tokens the model reads the vectors themselves; before the encoder they are zeros."""
    seen = {}

    def react(event, _commands):
        if isinstance(event, e.ModelSaved):
            parts = run.trainer.parts
            with torch.no_grad():
                text = run.trainer._family.encode_text(parts, [f"a {WORD} b"])["text"]
            seen["text"] = text[0]

    run = make_run(config_of(**{"embedding.is_output_embedding": True}), react)
    run.go()
    rows = load_file(run.of(e.ModelSaved)[-1].path)["emp_params_out"]
    torch.testing.assert_close(seen["text"][2:4], rows)

    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None)
    encoder = pipeline.text_encoder
    ids = pipeline.tokenizer("a ?? b", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        encoder.get_input_embeddings().weight[ids[0, 2]] = 0.0
        encoder.get_input_embeddings().weight[ids[0, 3]] = 0.0
        expected = encoder(ids).last_hidden_state[0]
    rest = [0, 1, *range(4, 77)]
    torch.testing.assert_close(seen["text"][rest], expected[rest], atol=1e-5, rtol=1e-5)


CASES = {
    "alone": {"embedding_weight_dtype": "BFLOAT_16", "ema": "GPU", "ema_update_step_interval": 1},
    "beside": {
        "training_method": "FINE_TUNE",
        "output_model_format": "DIFFUSERS",
        "text_encoder.train": True,
        "learning_rate": 1e-3,
        "additional_embeddings": [{"placeholder": WORD, "token_count": 2}],
        "preserve_embedding_norm": True,
    },
}


@pytest.mark.parametrize("case", ["alone", pytest.param("beside", marks=pytest.mark.slow)])
def test_it_goes_on_exactly(config_of, train, tmp_path, case):
    settings = {"gradient_accumulation_steps": 1, "epochs": 3, **CASES[case]}

    def config(name):
        made = config_of(workspace_dir=tmp_path / name, backup_before_save=True, **settings)
        if made.output_model_format.value == "DIFFUSERS":
            made = made.update(output_model_destination=str(tmp_path / name / "model"))
        return made

    straight = train(config("straight"))

    def stop(event, commands):
        if isinstance(event, e.LossUpdate) and event.step == 3:
            commands.stop()

    train(config("halves"), stop)
    resumed = train(config("halves").update(continue_last_backup=True))
    assert resumed.losses == {s: loss for s, loss in straight.losses.items() if s > 3}
    one, two = (run.of(e.BackupCreated)[-1].path for run in (straight, resumed))
    (file,) = (one / "embeddings").iterdir()
    first, second = load_file(file), load_file(two / "embeddings" / file.name)
    assert torch.equal(first["emp_params"], second["emp_params"])
    if case == "beside":  # the saved model has its own tokenizer, without the word
        saved = straight.of(e.ModelSaved)[-1].path
        pipeline = StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)
        assert not pipeline.tokenizer.added_tokens_encoder.keys() & {WORD}
        assert len(pipeline.tokenizer) == pipeline.text_encoder.config.vocab_size
        folder = saved.with_name(f"{saved.name}_embeddings")
        assert load_file(folder / "my-card.safetensors")["emp_params"].shape == (2, 32)


def test_recomputing_the_frozen_networks_changes_nothing(config_of, make_run):
    """They are checkpointed though they stay in evaluation mode, without dropout."""
    kept = {"gradient_checkpointing": False}
    plain = make_run(config_of(unet=kept, text_encoder=kept)).go()
    layers = []

    def react(event, _commands):
        if isinstance(event, e.LossUpdate) and not layers:
            parts = run.trainer.parts
            for network in (parts.denoiser, parts.module("text_encoder")):
                layers.extend(m for m in network.modules() if hasattr(m, "gradient_checkpointing"))
                assert not network.training

    run = make_run(
        config_of(
            **{"unet.gradient_checkpointing": True, "text_encoder.gradient_checkpointing": True}
        ),
        react,
    )
    run.go()
    assert any(type(layer).__name__ == "CLIPEncoderLayer" for layer in layers)
    assert all(layer.gradient_checkpointing and layer.training for layer in layers)
    assert run.losses == pytest.approx(plain.losses, rel=1e-5)


def test_without_a_cache_it_learns_the_same(config_of, train):
    cached, live = (train(config_of(latent_caching=keeps)).losses for keeps in (True, False))
    assert live == pytest.approx(cached, rel=1e-5)  # encoded in other batches


@pytest.mark.slow
def test_a_word_in_full_precision_learns_before_an_encoder_in_half(config_of, train):
    """As the presets have it: the networks in 16 bits, the vectors in 32, gradients scaled."""
    half = {f"{part}.weight_dtype": "FLOAT_16" for part in ("unet", "text_encoder")}
    run = train(config_of(**half, train_dtype="FLOAT_16"))
    assert all(0 < loss < 20 for loss in run.losses.values())
    assert run.of(e.LossUpdate)[-1].grad_norm > 0
    assert not run.warnings or all("FLOAT_16" in text for text in run.warnings)


def test_a_word_goes_on_from_a_file(config_of, train, tmp_path):
    torch.manual_seed(3)
    rows = torch.randn(3, 32)
    for name, content in {
        "ours.safetensors": {"emp_params": rows},
        "diffusers.safetensors": {"<cat>": rows},
    }.items():
        save_file(content, tmp_path / name)
    torch.save({"string_to_param": {"*": rows}, "name": "cat"}, tmp_path / "webui.pt")
    still = {"learning_rate": 1e-12, "epochs": 1}
    for name in ("ours.safetensors", "diffusers.safetensors", "webui.pt"):
        run = train(config_of(**still, **{"embedding.model_name": str(tmp_path / name)}))
        kept = load_file(run.of(e.ModelSaved)[-1].path)["emp_params"]
        torch.testing.assert_close(kept, rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding.placeholder": "<dog>"}, r"holds '<dog>', so it would learn nothing. Write"),
        (
            {"embedding.model_name": "wide"},
            r"made for another model: emp_params is \(2, 768\), but",
        ),
        ({"embedding.model_name": "other"}, r"it holds clip_g, clip_l, where emp_params"),
        ({"embedding.model_name": "output"}, r"is_output_embedding is false, but .* is an output"),
        ({"embedding.model_name": "torn"}, r"torn.safetensors cannot be read as an embedding"),
        ({"embedding.initial_embedding_text": "", "embedding.token_count": None}, "so is the init"),
    ],
)
def test_what_cannot_work_is_refused(config_of, train, tmp_path, changes, message):
    save_file({"emp_params": torch.zeros(2, 768)}, tmp_path / "wide.safetensors")
    save_file({"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 48)},
              tmp_path / "other.safetensors")  # fmt: skip
    save_file({"emp_params_out": torch.zeros(2, 32)}, tmp_path / "output.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"no file")
    if name := changes.get("embedding.model_name"):
        changes = {"embedding.model_name": str(tmp_path / f"{name}.safetensors")}
    with pytest.raises(ConfigError, match=message):
        train(config_of(**changes))
