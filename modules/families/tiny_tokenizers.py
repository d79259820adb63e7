"""Tokenizers for toy models: the real classes over a vocabulary of single characters and bytes."""

from __future__ import annotations

import string
from typing import Any

CHARACTERS = [*string.ascii_lowercase, *string.digits, *string.punctuation]
PRINTABLE = [*string.ascii_letters, *string.digits, *string.punctuation]
TURN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template with the marks that Qwen's has."""


def clip_tokenizer(max_length: int = 77) -> Any:
    """A CLIP tokenizer that spells every word letter by letter; 77 tokens as the real one."""
    from transformers import CLIPTokenizer

    pieces = [*CHARACTERS, *(f"{character}</w>" for character in CHARACTERS)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length)


def t5_tokenizer() -> Any:
    """A T5 tokenizer of single characters."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(character, -3.0) for character in PRINTABLE]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def qwen_tokenizer() -> Any:
    """A Qwen tokenizer of single bytes, with the marks of a conversation."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    marks = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    marks += [f"<|{name}|>" for name in ("vision_start", "vision_end", "image_pad", "video_pad")]
    pieces = ["<|endoftext|>", *sorted(ByteLevel.alphabet()), *marks]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=512)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = TURN
    return tokenizer


def gemma_tokenizer() -> Any:
    """A Gemma tokenizer of single characters, bytes for the rest."""
    from transformers import GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_bytes(), "▁", *PRINTABLE]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=512)


def llama_tokenizer() -> Any:
    """A Llama or Mistral tokenizer of single characters, bytes for the rest."""
    from transformers import LlamaTokenizer

    pieces = ["<unk>", "<s>", "</s>", "<pad>", *_bytes(), "▁", *PRINTABLE]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[], model_max_length=512)
    tokenizer.pad_token = "<pad>"  # noqa: S105 - a token of text, no password
    tokenizer.chat_template = TURN
    return tokenizer


def _bytes() -> list[str]:
    return [f"<0x{value:02X}>" for value in range(256)]
