"""Texts that a model has encoded, kept for as long as it reads them alike."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from modules.families import Family, Parts

MOST = 16
"""Texts that are kept: those of a grid, without its rows of prompts growing into memory."""


class RememberedTexts:
    """The last texts of one model, so that a prompt of many pictures is encoded once."""

    def __init__(self) -> None:
        self._state: Hashable = None
        self._known: OrderedDict[Hashable, dict[str, Tensor]] = OrderedDict()

    def forget(self) -> None:
        """The encoders read otherwise from now on."""
        self._known.clear()

    def reading(self, family: Family, state: Hashable) -> None:
        """Let a family remember what it encodes.

        Args:
            family: a copy of one's own: a run may use the family at the same time.
            state: what else decides an encoding; another one empties the memory.
        """
        if state != self._state:
            self.forget()
            self._state = state
        encode = family.encode_text

        def encode_text(parts: Parts, captions: Sequence[str]) -> dict[str, Tensor]:
            return self.once(tuple(captions), lambda: encode(parts, captions))

        family.encode_text = encode_text  # type: ignore[method-assign]

    def once(self, key: Hashable, encode: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What `encode` gave for this key, now or before; the caller's to change."""
        if key not in self._known:
            self._known[key] = dict(encode())
            if len(self._known) > MOST:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return {name: _copied(value) for name, value in self._known[key].items()}


def _copied(value: Any) -> Any:
    from torch import Tensor  # only here: a panel is shown without it

    return value.clone() if isinstance(value, Tensor) else copy.copy(value)
