"""How long captions are as a text encoder counts: with the tokenizer of a model on this disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modules.config import ConfigError
from modules.config.paths import resolve

UNBOUNDED = 100_000
"""A tokenizer that names a larger limit has none."""


@dataclass(frozen=True)
class TokenCounter:
    """Counts tokens of a caption.

    Attributes:
        count: text -> tokens, without those that mark start and end.
        limit: how many the text encoder reads; None where nothing limits them.
    """

    count: Callable[[str], int]
    limit: int | None

    def longest(self, text: str) -> int:
        """Tokens of the longest of the captions that `text` holds, a line each."""
        return max((self.count(line) for line in text.splitlines() if line.strip()), default=0)


class Tokens:
    """Counts for the model that a training set is for; its tokenizer is read when it is needed."""

    def __init__(self) -> None:
        self._model, self._most = "", 0
        self._counter: TokenCounter | None = None

    def follow(self, model: str, most: int = 0) -> None:
        """Count for another model, see `counter`; for none where it is empty."""
        if (model, most) != (self._model, self._most):
            self._model, self._most, self._counter = model, most, None

    def told(self, text: str) -> dict[str, int | None]:
        """`tokens` of the longest caption in `text` and the `limit`; None where nobody can tell."""
        if self._counter is None and self._model:
            self._counter = counter(self._model, self._most)
            self._model = self._model if self._counter else ""
        if self._counter is None:
            return {"tokens": None, "limit": None}
        return {"tokens": self._counter.longest(text), "limit": self._counter.limit}


def counter(model: str, most: int = 0) -> TokenCounter | None:
    """A counter with the tokenizer of `model`; None where none lies on this disk.

    Args:
        model: a model's folder, as `base_model_name` of a config names it. Nothing is downloaded.
        most: what the architecture reads, marks counted, where that may be less than the tokenizer
            says; 0 for as much as that.
    """
    try:
        folder = Path(resolve(model)) / "tokenizer"
    except ConfigError:
        return None  # the settings' own checks name the package that is missing
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    marks = len(tokenizer.encode("").ids)
    return TokenCounter(
        lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
        _limit(folder / "tokenizer_config.json", most, marks),
    )


def _limit(config: Path, most: int, marks: int) -> int | None:
    """Tokens that are left for the caption."""
    told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    limits = [most, told.get("model_max_length")]
    known = [int(limit) for limit in limits if limit and limit < UNBOUNDED]
    return min(known) - marks if known else None
