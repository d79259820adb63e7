"""Captioners and maskers: the real classes of each library, tiny and with random weights."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from modules.config import ConceptConfig
from ot_notebook.services import annotate
from ot_notebook.services.annotate_models import ANNOTATORS, make
from ot_notebook.services.caption_models import (
    ChatCaptioner,
    Florence2Captioner,
    TransformersCaptioner,
    Wd14Tagger,
    needed,
)
from ot_notebook.services.concept_store import ConceptStore
from ot_notebook.services.mask_models import ClipSegMasker, RembgMasker


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(4):
        colour = "red" if number % 2 else "blue"
        Image.new("RGB", (24, 16), colour).save(folder / f"{number:02}.png")
    return ConceptStore([ConceptConfig(path=str(folder))], journal=tmp_path / "edits.db")


def word_tokenizer(*words):
    """A tokenizer that knows these words and the usual marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    marks = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    numbers = {word: number for number, word in enumerate([*marks, *words])}
    raw = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
    )


def test_blip_captions(tmp_path, store):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "blip"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "fox"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer.from_pretrained(folder, bos_token="[DEC]")
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 5,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16
    )
    model = transformers.BlipForConditionalGeneration(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[words.index("fox")] = 50  # its one idea
    model.save_pretrained(folder)
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(folder)
    captioner = TransformersCaptioner(str(folder), max_tokens=6)
    annotate.caption(store, captioner, where=[1, 2]).wait()
    assert store.caption(1).startswith("fox fox")
    assert set(store.caption(2).split()) == {"fox"}
    assert store.caption(3) == ""


def test_florence_captions(tmp_path, store):
    torch.manual_seed(0)
    tokenizer = word_tokenizer("fox", "Describe", "in", "detail", "what", "is", "shown", "the")
    text = transformers.BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=128,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    vision = {
        "embed_dim": (16, 16),
        "depths": (1, 1),
        "num_heads": (2, 2),
        "num_groups": (2, 2),
        "patch_size": (7, 3),
        "patch_stride": (4, 2),
        "patch_padding": (3, 1),
        "patch_prenorm": (False, True),
        "window_size": 2,
        "projection_dim": 16,
    }
    config = transformers.Florence2Config(
        text_config=text.to_dict(), vision_config=vision, image_token_id=4, projection_dim=16
    )
    model = transformers.Florence2ForConditionalGeneration(config)
    one_idea(model, tokenizer.convert_tokens_to_ids("fox"))
    model.save_pretrained(tmp_path / "florence")
    images = transformers.CLIPImageProcessor(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
    )
    images.image_seq_length = 17  # 4 x 4 places and their mean
    transformers.Florence2Processor(images, tokenizer).save_pretrained(tmp_path / "florence")
    captioner = Florence2Captioner(str(tmp_path / "florence"), max_tokens=5)
    annotate.caption(store, captioner).wait()
    assert set(store.caption(0).split()) == {"fox"}
    assert store.caption(3) == store.caption(0)


def test_chat_models_are_asked(tmp_path, store):
    torch.manual_seed(0)
    tokenizer = word_tokenizer("fox", "USER", "BOT", "Describe", "this", "picture", "question")
    tokenizer.chat_template = (
        "{% for m in messages %}USER {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}BOT {% endif %}"
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=1,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    config = transformers.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=4, image_seq_length=4
    )
    model = transformers.LlavaForConditionalGeneration(config)
    one_idea(model, tokenizer.convert_tokens_to_ids("fox"))
    model.save_pretrained(tmp_path / "llava")
    edges = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessor(size=edges, crop_size=edges)
    transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    ).save_pretrained(tmp_path / "llava")
    captioner = ChatCaptioner(str(tmp_path / "llava"), prompt="question", max_tokens=4)
    annotate.caption(store, captioner).wait()
    assert store.caption(0) == "fox fox fox fox"  # the answer without the question
    assert store.caption(3) == store.caption(0)
    with pytest.raises(ValueError, match="is a chat model"):
        TransformersCaptioner(str(tmp_path / "llava"))


def test_qwen_is_asked_without_torchvision(tmp_path, store):
    """Its processor of films needs torchvision, that of pictures does not."""
    torch.manual_seed(0)
    marks = ["<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
    tokenizer = word_tokenizer("fox", "question", "user", "assistant", *marks)
    tokenizer.chat_template = (
        "{% for m in messages %}user {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<|vision_start|> <image> <|vision_end|> {% else %}{{ c['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
    )
    number = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "window_size": 56,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=number("<image>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    one_idea(model, number("fox"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    facts = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))  # as it is published
    captioner = ChatCaptioner(str(tmp_path), prompt="question", max_tokens=4)
    annotate.caption(store, captioner).wait()
    assert store.caption(0) == store.caption(3) == "fox fox fox fox"


def one_idea(model, token):
    """Make a model say one word whatever it sees."""
    model.generation_config.sequence_bias = [[[token], 50.0]]


def onnx_network(path, shape, outputs, nodes):
    """Write a tiny network with one input."""
    onnx = pytest.importorskip("onnx", reason="onnx makes the tiny network of this test")
    pytest.importorskip("onnxruntime", reason="onnxruntime runs it: ot-notebook[annotate]")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(*args, **keys) for args, keys in nodes],
        "tiny",
        [helper.make_tensor_value_info("pixels", number, shape)],
        [helper.make_tensor_value_info("found", number, outputs)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, str(path))


@pytest.mark.parametrize("batch", [1, "N"])
def test_wd14_tags(tmp_path, store, batch):
    """The network says how blue, green and red a picture is: means of the channels, by sigmoid."""
    folder = tmp_path / "tagger"
    folder.mkdir()
    rows = ["1,blue_sky,0,9", "2,green,9,9", "3,^_^,4,9"]
    (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n" + "\n".join(rows))
    onnx_network(
        folder / "model.onnx",
        [batch, 16, 16, 3],
        [batch, 3],
        [
            (("ReduceMean", ["pixels"], ["mean"]), {"axes": [1, 2], "keepdims": 0}),
            (("Sigmoid", ["mean"], ["found"]), {}),
        ],
    )
    annotate.caption(store, Wd14Tagger(str(folder))).wait()
    # a lying picture on a white square is white above and below, so that every mean is above 0;
    # blue comes first, as the network wants it; `green` is a rating and never a tag
    assert [store.caption(number) for number in range(2)] == ["blue sky, ^_^", "blue sky, ^_^"]
    (folder / "selected_tags.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no selected_tags.csv. Name the folder"):
        Wd14Tagger(str(folder))


def test_wd14_sees_a_white_square_blue_first(tmp_path):
    folder = tmp_path / "tagger"
    folder.mkdir()
    (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n1,a,0,9")
    onnx_network(
        folder / "model.onnx",
        ["N", 16, 16, 3],
        ["N", 16, 16, 3],
        [(("Identity", ["pixels"], ["found"]), {})],
    )
    tagger = Wd14Tagger(str(folder))
    seen = tagger._seen(Image.new("RGB", (40, 20), (200, 100, 0)))
    assert seen.shape == (16, 16, 3)
    assert seen[0, 0].tolist() == seen[15, 15].tolist() == [255, 255, 255]
    assert seen[8, 8].tolist() == [0, 100, 200]


def test_rembg_masks(tmp_path, monkeypatch):
    """U2Net's form: the mask is the first channel of what the network gives, here the red one."""
    pytest.importorskip("rembg", reason="rembg is an extra: ot-notebook[annotate]")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    onnx_network(
        tmp_path / "red.onnx",
        [1, 3, 320, 320],
        [1, 3, 320, 320],
        [(("Identity", ["pixels"], ["found"]), {})],
    )
    half = Image.new("RGB", (24, 16), "blue")
    half.paste("red", (0, 0, 12, 16))
    (mask,) = RembgMasker(str(tmp_path / "red.onnx"), threshold=0.5)([half])
    assert mask.shape == (16, 24)
    assert mask[8, 2] == 1
    assert mask[8, 22] == 0


def test_a_missing_package_is_named_with_how_to_install_it():
    with pytest.raises(ImportError, match=r"pip install 'ot-notebook\[annotate\]'"):
        needed("no_such_package", "This test")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("yolo", {}, "'yolo' is no kind of model. There are blip, florence2, chat, wd14"),
        ("blip", {"size": 3}, "blip has no option size. It has prompt."),
        ("wd14", {"threshold": "35"}, "must be a number from 0 to 1"),
        ("clipseg", {}, "There is no prompt. Say what to look for"),
    ],
)
def test_what_no_model_can_do_is_said_before_one_is_loaded(name, options, said):
    with pytest.raises(ValueError, match=said):
        make(name, **options)


def test_a_model_is_loaded_when_it_is_first_asked(store, tmp_path):
    later = make("blip", str(tmp_path / "nothing here"))
    with pytest.raises(OSError, match="nothing here"):
        annotate.caption(store, later).wait()
    assert {one.makes for one in ANNOTATORS.values()} == {"caption", "mask"}


def test_clipseg_masks(tmp_path, store):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "clipseg"
    folder.mkdir()
    letters = [
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"{one}</w>" for one in "abcdefghijklmnopqrstuvwxyz"),
    ]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3}
    text = {**small, "num_attention_heads": 2, "vocab_size": len(words), "eos_token_id": 53}
    vision = {**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=16,
        extract_layers=[1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        conditional_layer=0,
    )
    transformers.CLIPSegForImageSegmentation(config).save_pretrained(folder)
    images = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    transformers.CLIPSegProcessor(images, tokenizer).save_pretrained(folder)
    masker = ClipSegMasker(str(folder), "a fox", threshold=None)
    annotate.mask(store, masker, where=[0, 1]).wait()
    with Image.open(store.rows[0].mask_path) as mask:
        assert (mask.size, mask.mode) == ((24, 16), "L")
        assert 0 < np.asarray(mask).mean() < 255
    sharp = ClipSegMasker(str(folder), "a fox")
    annotate.mask(store, sharp, where=[0], mode="replace").wait()
    with Image.open(store.rows[0].mask_path) as mask:
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
