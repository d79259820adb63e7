"""What becomes of a caption before it is encoded, as functions of texts and a random stream."""

from __future__ import annotations

import random
from collections.abc import Sequence

from modules.config.concept_config import ConceptTextConfig


def varies(text: ConceptTextConfig, alternatives: Sequence[str]) -> bool:
    """Whether an image's caption is not the same in all variations."""
    del text
    return len(alternatives) > 1


def vary(text: ConceptTextConfig, alternatives: Sequence[str], rng: random.Random) -> str:
    """One caption out of an image's alternatives, changed as the concept says."""
    del text
    return alternatives[0] if len(alternatives) == 1 else rng.choice(alternatives)
