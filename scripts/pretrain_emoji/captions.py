"""What the pictures are called, and the tokenizer that reads it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.pretrain_emoji.pictures import Picture

MAX_TOKENS = 24
VOCABULARY = 3072  # at most
CAPTIONS = 24  # different ones for each picture
START, END = "<|startoftext|>", "<|endoftext|>"
FORMS = (
    "{0}",
    "a {0}",
    "{0} emoji",
    "emoji of a {0}",
    "flat emoji of a {0}",
    "an icon of a {0}",
    "a picture of a {0}",
)
STYLE_WORDS = (
    "flat, 3d, high contrast, line art, pixel art, blueprint, sketch, watercolor, style, "
    "a photo of a, picture of, drawing of, sticker, illustration of, on a white background, "
    "red, green, blue, yellow, orange, purple, pink, black, white, brown, gray"
)
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def captions(picture: Picture, rng: random.Random) -> list[str]:
    """`CAPTIONS` ways to ask for a picture: its name in every form, and with some keywords."""
    name, keywords = picture.name, picture.keywords[:8]
    written = [name, *(form.format(name) for form in FORMS)]
    while len(written) < CAPTIONS:
        some = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
        written.append(
            rng.choice(
                [
                    ", ".join([name, *some]),
                    ", ".join([*some, name]),
                    " ".join(["a", name, *some]),
                    f"a {name}",
                ]
            )
        )
    return written


def train_tokenizer(pictures: Iterable[Picture], folder: Path) -> None:
    """Write a CLIP tokenizer for the pictures' names and keywords, in CLIP's own two files.

    Byte-level BPE with CLIP's vocabulary order: bytes, bytes at a word's end, merges, start, end.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    corpus = [STYLE_WORDS] * 20
    for picture in pictures:
        corpus += [picture.name] * 6 + list(picture.keywords)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=pieces,  # numbers that hang on no hash: pairs as frequent go by them
        end_of_word_suffix="</w>",
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]

    pieces += sorted(learnt["vocab"], key=learnt["vocab"].get)
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, START, END]))}
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    described = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, **special}
    merges = [each if isinstance(each, str) else " ".join(each) for each in learnt["merges"]]

    _write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    _write(folder / "special_tokens_map.json", json.dumps(special, indent=2))
    _write(folder / "tokenizer_config.json", json.dumps(described, indent=2))


def token_ids(tokenizer: Any, texts: list[str]) -> Any:
    """Padded token ids, int64 [len(texts), MAX_TOKENS]."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
