"""New words in every architecture: read as the libraries' own tokenizers and tables would."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.adapters.converting import convert
from modules.adapters.embedding_files import EmbeddingError, as_word, bundled, to_file, unbundled
from modules.adapters.embeddings import Word, Words, hidden_state, readers, tables_of
from modules.config import MODELS, ModelType, TrainingMethod
from modules.config.supported import HONOURED
from modules.families import family_for

torch.set_num_threads(1)
KEYS = {  # the table of the format, by the words of its readers
    ModelType.STABLE_DIFFUSION_15: ("emp_params",),
    ModelType.STABLE_DIFFUSION_XL_10_BASE: ("clip_l", "clip_g"),
    ModelType.STABLE_DIFFUSION_3: ("clip_l", "clip_g", "t5"),
    ModelType.FLUX_DEV_1: ("clip_l", "t5"),
    ModelType.CHROMA_1: ("t5",),
    ModelType.PIXART_SIGMA: ("t5",),
    ModelType.SANA: ("gemma",),
    ModelType.HUNYUAN_VIDEO: ("llama", "clip_l"),
    ModelType.HI_DREAM_FULL: ("clip_l", "clip_g", "t5", "llama"),
    ModelType.WUERSTCHEN_2: ("clip_g",),
    ModelType.STABLE_CASCADE_1: ("clip_g",),
}
CASES = [pytest.param(kind, id=kind.value) for kind in KEYS]
TEXTS = ["a <Cat> card", "some cup", "<Cat><Cat>"]


def vectors_for(family, parts, count=2):
    torch.manual_seed(1)
    return {
        name: torch.randn(count, parts.module(name).get_input_embeddings().weight.shape[1])
        for name in readers(family, parts)
    }


def by_hand(parts, name, rows):
    """Give a pipeline the word as a library user would: new tokens, and rows in the table."""
    pipeline = parts.pipeline
    tokenizer_name = name.replace("text_encoder", "tokenizer")
    tokenizer = copy.deepcopy(getattr(pipeline, tokenizer_name))
    tokens = [f"<by-hand-{index}>" for index in range(len(rows))]
    tokenizer.add_tokens(tokens)
    setattr(pipeline, tokenizer_name, tokenizer)
    encoder = parts.module(name)
    table = encoder.get_input_embeddings()
    ids = tokenizer.convert_tokens_to_ids(tokens)
    missing = max(ids) + 1 - len(table.weight)
    if missing > 0:
        more = torch.zeros(missing, table.weight.shape[1])
        whole = torch.nn.Parameter(torch.cat([table.weight.detach(), more]))
        for each in tables_of(encoder):
            each.weight = whole
    with torch.no_grad():
        table.weight[ids] = rows
    return "".join(tokens)


def test_every_architecture_that_can_learn_words_is_among_the_cases():
    able = {
        kind for kind in HONOURED["model_type"] if TrainingMethod.EMBEDDING in MODELS[kind].methods
    }
    tried = {type(family_for(kind)) for kind in KEYS}
    assert {type(family_for(kind)) for kind in able} == tried


@pytest.mark.parametrize("kind", CASES)
def test_a_word_is_read_as_tokens_of_the_library_are(kind):
    family = family_for(kind)
    parts, other = family.tiny(), family.tiny()
    rows = vectors_for(family, parts)
    with torch.no_grad():
        before = family.encode_text(parts, TEXTS)
        words = Words(family, parts, [Word("<Cat>", rows)])
        live = family.encode_text(parts, TEXTS)
        (tokens,) = {by_hand(other, name, rows[name]) for name in rows}
        expected = family.encode_text(other, [text.replace("<Cat>", tokens) for text in TEXTS])
    for name, tensor in expected.items():
        torch.testing.assert_close(live[name], tensor, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(live[name], before[name]) for name in live)

    with words.put_aside():
        assert type(parts.pipeline.tokenizer) is type(family.tiny().pipeline.tokenizer)
    words.remove()
    with torch.no_grad():
        again = family.encode_text(parts, TEXTS)
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_diffusers_reads_the_vectors_of_both_encoders_of_sdxl_alike():
    # in small letters, as diffusers does not find the further vectors of other words
    family = family_for(ModelType.STABLE_DIFFUSION_XL_10_BASE)
    parts, other = family.tiny(), family.tiny()
    word = Word("<cat>", vectors_for(family, parts))
    words = Words(family, parts, [word])
    with torch.no_grad():
        live = family.encode_text(parts, ["a <cat> card"])
    words.remove()
    pipeline, tensors = other.pipeline, to_file(word, family)
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            tensors[key],
            token="<cat>",
            text_encoder=getattr(pipeline, f"text_encoder{number}"),
            tokenizer=getattr(pipeline, f"tokenizer{number}"),
        )
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt(
            "a <cat> card", do_classifier_free_guidance=False
        )
    torch.testing.assert_close(live["text"], text, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(live["pooled"], pooled, atol=1e-6, rtol=1e-5)


def test_text_is_pooled_at_its_end_whatever_the_encoders_config_calls_that():
    family = family_for(ModelType.STABLE_DIFFUSION_XL_10_BASE)
    parts, other = family.tiny(), family.tiny()
    ends = [m for m in parts.pipeline.text_encoder_2.modules() if hasattr(m, "eos_token_id")]
    assert ends
    for module in ends:
        module.eos_token_id = 2
    rows = vectors_for(family, parts)
    words = Words(family, parts, [Word("<Cat>", rows)])
    (tokens,) = {by_hand(other, name, rows[name]) for name in rows}
    with torch.no_grad():
        live = family.encode_text(parts, ["a <Cat> card"])["pooled"]
        expected = family.encode_text(other, [f"a {tokens} card"])["pooled"]
    torch.testing.assert_close(live, expected)
    words.remove()
    assert {module.eos_token_id for module in ends} == {2}


@pytest.mark.parametrize("kind", CASES)
def test_gradients_are_those_of_rows_in_the_table(kind):
    """And the table itself gets what its own words give, nothing from the new ones."""
    family = family_for(kind)
    parts, other = family.tiny(), family.tiny()
    rows = {name: tensor.requires_grad_() for name, tensor in vectors_for(family, parts).items()}
    words = Words(family, parts, [Word("<Cat>", rows)])
    gradients(family, parts, "a <Cat> card")
    words.remove()
    (tokens,) = {by_hand(other, name, rows[name].detach()) for name in rows}
    gradients(family, other, f"a {tokens} card")
    for name, own in rows.items():
        table = parts.module(name).get_input_embeddings().weight.grad
        expected = other.module(name).get_input_embeddings().weight.grad
        if table is None:
            assert expected is None or not expected.any()
            continue
        first = len(getattr(parts.pipeline, name.replace("text_encoder", "tokenizer")))
        scale = expected.abs().max()
        torch.testing.assert_close(table[:first] / scale, expected[:first] / scale)
        torch.testing.assert_close(own.grad / scale, expected[first : first + 2] / scale)


def gradients(family, parts, text):
    condition = family.encode_text(parts, [text])
    sum(tensor.float().square().sum() for tensor in condition.values()).backward()


@pytest.mark.parametrize("kind", CASES)
def test_a_file_has_the_keys_that_other_tools_read_and_comes_back(kind):
    family = family_for(kind)
    parts = family.tiny()
    rows = vectors_for(family, parts)
    layers = family.words
    behind = frozenset(name for name in rows if layers[name].layer is not None)
    for word in (Word("<a.cat>", rows), Word("<a.cat>", rows, behind)):
        tensors = to_file(word, family)
        assert tuple(key.removesuffix("_out") for key in tensors) == KEYS[kind]
        again = as_word("<a.cat>", tensors, family, parts, "a file")
        assert again.behind == word.behind
        assert all(torch.equal(again.vectors[name], rows[name]) for name in rows)
        rest, found = unbundled({**bundled(word, family), "lora_unet_x.alpha": torch.ones(())})
        assert list(rest) == ["lora_unet_x.alpha"]
        assert found == {"<a.cat>": tensors}


@pytest.mark.parametrize("kind", CASES)
def test_an_output_embedding_is_what_the_model_reads(kind):
    """In the hidden state that the family uses, not in a neighbour of it."""
    family = family_for(kind)
    parts = family.tiny()
    rows = vectors_for(family, parts)
    behind = frozenset(name for name in rows if family.words[name].layer is not None)
    marked = {name: torch.full_like(tensor, 7.5) for name, tensor in rows.items()}
    words = Words(family, parts, [Word("cup", rows), Word("<Cat>", marked, behind)])
    with torch.no_grad():
        condition = family.encode_text(parts, ["a <Cat> card"])
    words.remove()
    if kind is ModelType.HUNYUAN_VIDEO:
        return  # a toy's template is longer than its encoder reads
    found = torch.cat([(tensor.float() == 7.5).flatten() for tensor in condition.values()]).sum()
    assert found == sum(2 * marked[name].shape[1] for name in behind)


def test_hidden_states_count_from_the_last():
    family = family_for(ModelType.STABLE_DIFFUSION_XL_10_BASE)
    encoder = family.tiny().pipeline.text_encoder
    output = encoder(torch.zeros(1, 3, dtype=torch.long), output_hidden_states=True)
    assert hidden_state(output, -1) is output.last_hidden_state
    assert hidden_state(output, -2) is output.hidden_states[-2]


def test_the_longest_placeholder_wins_and_two_sets_of_words_do_not_meet():
    family = family_for(ModelType.STABLE_DIFFUSION_15)
    parts = family.tiny()
    plain = parts.pipeline.tokenizer
    one = vectors_for(family, parts, 1)
    first = Words(family, parts, [Word("cat", one), Word("cat nap", one), Word("Tea", one)])
    ids = parts.pipeline.tokenizer("cat nap cat tea Tea", add_special_tokens=False).input_ids
    start = len(plain)
    assert ids == [start + 1, start, start + 2, start + 2]
    second = Words(family, parts, [Word("dog", vectors_for(family, parts, 2))])
    ids = parts.pipeline.tokenizer(["dog cat"], add_special_tokens=False).input_ids
    assert ids == [[start + 3, start + 4, start]]
    with torch.no_grad():
        family.encode_text(parts, ["dog cat"])
    second.remove()
    first.remove()
    assert parts.pipeline.tokenizer is plain
    assert "forward" not in vars(parts.pipeline.text_encoder.get_input_embeddings())


def test_files_of_other_tools_are_converted_to_the_keys_of_trainers(tmp_path):
    rows = torch.randn(2, 768)
    save_file({"<cat>": rows}, tmp_path / "diffusers.safetensors")
    torch.save({"string_to_param": {"*": rows[0]}}, tmp_path / "webui.pt")
    save_file({"clip_l": rows, "clip_g": torch.randn(2, 1280)}, tmp_path / "xl.safetensors")
    out = tmp_path / "new.safetensors"
    for name, expected in (("diffusers.safetensors", rows), ("webui.pt", rows[:1])):
        assert convert(tmp_path / name, out, "SAFETENSORS") == []
        assert torch.equal(load_file(out)["emp_params"], expected)
    convert(tmp_path / "xl.safetensors", out, "SAFETENSORS", dtype=torch.float16)
    assert {key: rows.dtype for key, rows in load_file(out).items()} == {
        "clip_l": torch.float16,
        "clip_g": torch.float16,
    }
    convert(tmp_path / "diffusers.safetensors", out, "SAFETENSORS", model_type="CHROMA_1")
    assert list(load_file(out)) == ["t5"]
    save_file({"<cat>": torch.randn(1, 2304)}, tmp_path / "odd.safetensors")
    with pytest.raises(EmbeddingError, match=r"holds <cat>, which does not say what"):
        convert(tmp_path / "odd.safetensors", out, "SAFETENSORS")
