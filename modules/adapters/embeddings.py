"""New words of a live model: vectors that its text encoders read where a text has a placeholder.

The encoders' own tables stay as they are, bit for bit, and so do the tokenizers: the pipeline gets
copies of those that read a placeholder as one token a vector, with ids above all others, and the
tables look such ids up among the vectors. Source: Gal et al. 2022, arXiv:2208.01618.

Shapes: B batch, T tokens, N vectors of a word, D width of a text encoder.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.families.base import Family, Parts, WordTable

OLD_END = 2
"""What configs of CLIP call the end of a text that were written before July 2023."""


@dataclass(frozen=True)
class Word:
    """What stands for a placeholder."""

    placeholder: str
    """Text that is read as this word wherever it stands, as it is or in small letters."""
    vectors: Mapping[str, Tensor]
    """By text encoder: [N, D]; N may differ between them."""
    behind: frozenset[str] = field(default_factory=frozenset)
    """Encoders whose output they take the place of; the others read them as their input."""


class Words:
    """Words that a model reads, from now until `remove`.

    Whoever tokenizes with the pipeline gets them: training, samples, and calls of the pipeline.

    Args:
        family: the architecture.
        parts: its live networks.
        words: what to read; no two may have one placeholder.
    """

    def __init__(self, family: Family, parts: Parts, words: Sequence[Word]) -> None:
        self._pipeline = parts.pipeline
        self._undo = ExitStack()
        self._tokenizers: dict[str, tuple[Any, Any]] = {}
        for name in readers(family, parts):
            own = [word for word in words if name in word.vectors]
            if own:
                self._teach(name, parts, family.words[name], own)

    def _teach(self, name: str, parts: Parts, place: WordTable, words: Sequence[Word]) -> None:
        # Those whose vectors stand behind the encoder have the last ids, so that a range is enough.
        words = sorted(words, key=lambda word: name in word.behind)
        plain = tokenizer_of(parts, name)
        spelled: dict[str, str] = {}
        tokens: list[str] = []
        for word in words:
            start = len(plain) + len(tokens)
            own = [f"<word-{start + index}>" for index in range(len(word.vectors[name]))]
            tokens += own
            spelled[word.placeholder] = "".join(own)
        tokenizer, first = _reading(plain, spelled, tokens)
        self._tokenizers[_tokenizer_name(name)] = (plain, tokenizer)
        setattr(self._pipeline, _tokenizer_name(name), tokenizer)
        self._undo.callback(setattr, self._pipeline, _tokenizer_name(name), plain)

        encoder: Any = parts.module(name)
        self._find_ends(encoder, plain.eos_token_id)
        vectors = [word.vectors[name] for word in words]
        behind = [name in word.behind for word in words]

        def inputs() -> Tensor:
            """[all N, D]; zeros where the vectors stand behind the encoder."""
            pairs = zip(vectors, behind, strict=True)
            return torch.cat([torch.zeros_like(rows) if late else rows for rows, late in pairs])

        for table in tables_of(encoder):
            self._override(table, _lookup(table, first, len(tokens), inputs))
        if any(behind):
            late = vectors[behind.index(True) :]
            start = first + len(tokens) - sum(map(len, late))
            layer = layer_of(parts, name, place)
            self._override(encoder, _output(encoder, start, lambda: torch.cat(late), layer))

    def _find_ends(self, encoder: Any, end: int) -> None:
        """Let an encoder pool where the text ends, as it does for texts without new words.

        Configs of old call the end 2; transformers then looks for the highest id, which a new
        word has.
        """
        for module in encoder.modules():
            if getattr(module, "eos_token_id", None) == OLD_END:
                module.eos_token_id = end
                self._undo.callback(setattr, module, "eos_token_id", OLD_END)

    def _override(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        before = module.__dict__.get("forward")
        module.forward = forward
        if before is None:
            self._undo.callback(delattr, module, "forward")
        else:
            self._undo.callback(setattr, module, "forward", before)

    @contextmanager
    def put_aside(self) -> Iterator[None]:
        """Inside the block the pipeline has its own tokenizers, as a saved model shall."""
        for name, (plain, _) in self._tokenizers.items():
            setattr(self._pipeline, name, plain)
        try:
            yield
        finally:
            for name, (_, tokenizer) in self._tokenizers.items():
                setattr(self._pipeline, name, tokenizer)

    def remove(self) -> None:
        """The model is as it was; words that were given to it later must be gone before."""
        self._undo.close()
        self._tokenizers.clear()


def readers(family: Family, parts: Parts) -> list[str]:
    """Text encoders of a loaded model that can learn words."""
    return [name for name in family.words if getattr(parts.pipeline, name) is not None]


def tokenizer_of(parts: Parts, encoder: str) -> Any:
    """What turns text into the ids that a text encoder reads."""
    return getattr(parts.pipeline, _tokenizer_name(encoder))


def tables_of(encoder: Any) -> list[nn.Embedding]:
    """Where an encoder looks ids up; several modules may share the one table."""
    weight = encoder.get_input_embeddings().weight
    return [
        module
        for module in encoder.modules()
        if isinstance(module, nn.Embedding) and module.weight is weight
    ]


def layer_of(parts: Parts, encoder: str, place: WordTable) -> int:
    """Which hidden state the model reads, counted from the last, -1, or from the first, 0.

    Raises:
        ValueError: if it reads none of them.
    """
    if place.layer is None:
        raise ValueError(f"the model reads no hidden state of {encoder}, only the pooled one")
    layer = place.layer - parts.text.skip(encoder)
    if place.normed:
        return layer
    config: Any = parts.module(encoder).config
    return int(config.num_hidden_layers) + 1 + layer


def hidden_state(output: Any, layer: int) -> Tensor:
    """[B, T, D] of an encoder's output, as `WordTable.layer` counts."""
    state: Tensor = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
    return state


def _tokenizer_name(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _reading(tokenizer: Any, spelled: Mapping[str, str], tokens: Sequence[str]) -> tuple[Any, int]:
    """A copy of a tokenizer that reads placeholders as their tokens, and the first of their ids.

    Some pipelines write texts in small letters first, so a placeholder is known in these too.

    Raises:
        ValueError: if the tokenizer does not number new tokens on from its last.
    """
    from transformers import AddedToken

    known = {**{name.lower(): text for name, text in spelled.items()}, **spelled}
    longest_first = sorted(known, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(name) for name in longest_first))
    kind = type(tokenizer)

    def spell(text: Any) -> Any:
        if isinstance(text, (list, tuple)):
            return [spell(each) for each in text]
        return pattern.sub(lambda found: known[found[0]], text) if isinstance(text, str) else text

    def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        return kind.__call__(self, spell(text), *args, **kwargs)

    reading = copy.deepcopy(tokenizer)
    reading.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    ids = reading.convert_tokens_to_ids(list(tokens))
    first = max(tokenizer.get_vocab().values()) + 1
    if ids != list(range(first, first + len(tokens))):
        raise ValueError(
            f"{type(tokenizer).__name__} numbers new tokens {ids}, not from {first} on"
        )
    # Under the same name in the same module, as diffusers looks up where a part's class is from.
    names = {"__call__": call, "__module__": kind.__module__}
    reading.__class__ = type(kind.__name__, (kind,), names)
    return reading, first


def _lookup(
    table: nn.Embedding, first: int, count: int, rows: Callable[[], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Ids [B, T] -> [B, T, D]: from the table below `first`, from the vectors above."""
    usual = table.forward

    @functools.wraps(usual)
    def forward(ids: Tensor) -> Tensor:
        added = (ids >= first) & (ids < first + count)
        found = usual(ids.masked_fill(added, 0))
        own = F.embedding((ids - first).masked_fill(~added, 0), rows()).to(found)
        scale: Any = getattr(table, "embed_scale", None)
        if scale is not None:  # Gemma's table multiplies what it holds
            own = own * scale.to(own)
        return torch.where(added.unsqueeze(-1), own, found)

    return forward


def _output(encoder: Any, first: int, rows: Callable[[], Tensor], layer: int) -> Callable[..., Any]:
    """An encoder's forward, whose hidden state is a vector where the id is `first` or above."""
    usual = encoder.forward

    @functools.wraps(usual)
    def forward(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = usual(input_ids, *args, **kwargs)
        vectors, index = rows(), input_ids - first
        added = (index >= 0) & (index < len(vectors))
        state = hidden_state(output, layer)
        own = F.embedding(index.masked_fill(~added, 0), vectors).to(state)
        replaced = torch.where(added.unsqueeze(-1), own, state)
        if layer == -1:
            output.last_hidden_state = replaced
        else:
            states = list(output.hidden_states)
            states[layer] = replaced
            output.hidden_states = tuple(states)
        return output

    return forward
