"""What becomes of a caption before it is encoded, as functions of texts and a random stream.

The order is OneTrainer's: tags are dropped, then their capitals changed, then they are shuffled.
The template comes last, so that a trigger word in it stays as written.
"""

from __future__ import annotations

import csv
import random
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.config import ConceptConfig
from modules.config.concept_config import ConceptTextConfig
from modules.config.enums import SpecialTagsMode, TagDropoutMode
from modules.config.paths import resolve
from modules.config.problems import error

CAPTION = "{caption}"
"""Stands for the caption in a template."""
CAPITALS = ("capslock", "title", "first", "random")
"""Ways to write capitals."""
_META = frozenset(r"\.^$*+?{}[]|()")
_WILDCARD = re.compile(r"\{([^{}]*\|[^{}]*)\}")


@dataclass(frozen=True)
class CaptionRules:
    """A concept's settings about captions, with what they name read and checked."""

    text: ConceptTextConfig
    special: tuple[str, ...] = ()
    """Tags that dropout spares or aims at."""
    template: str = ""
    wildcards: bool = False

    @classmethod
    def of(cls, concept: ConceptConfig) -> CaptionRules:
        """The rules of a concept.

        Raises:
            ConfigError: if its special tags cannot be read, or a word in its settings is unknown.
        """
        text = concept.text
        special: tuple[str, ...] = ()
        if text.tag_dropout_enable and text.tag_dropout_special_tags_mode is not _NONE:
            special = special_tags(text)
        if text.caps_randomize_enable:
            for mode in _modes(text):
                if mode not in CAPITALS:
                    message = f"{mode!r} is no way to write capitals."
                    fix = f"Choose from {', '.join(CAPITALS)}."
                    raise error("text.caps_randomize_mode", message, fix)
        if (template := concept.ot.caption_template) and CAPTION not in template:
            message = f"{template!r} has no place for the caption."
            raise error("ot.caption_template", message, f"Write {CAPTION} where it shall stand.")
        return cls(text, special, template, concept.ot.wildcards)

    def vary(self, alternatives: Sequence[str], rng: random.Random) -> str:
        """One caption out of an image's alternatives, changed as the rules say."""
        text = self.text
        caption = alternatives[0] if len(alternatives) == 1 else rng.choice(alternatives)
        if self.wildcards:
            caption = fill_wildcards(caption, rng)
        if text.tag_dropout_enable and text.tag_dropout_probability > 0:
            caption = drop_tags(caption, text, self.special, rng)
        if text.caps_randomize_lowercase:
            caption = caption.lower()
        if text.caps_randomize_enable:
            probability = text.caps_randomize_probability
            caption = change_capitals(caption, text.tag_delimiter, _modes(text), probability, rng)
        if text.enable_tag_shuffling:
            caption = shuffle_tags(caption, text.tag_delimiter, text.keep_tags_count, rng)
        if self.template:
            template = fill_wildcards(self.template, rng) if self.wildcards else self.template
            caption = template.replace(CAPTION, caption)
        return caption

    def varies(self, alternatives: Sequence[str]) -> bool:
        """Whether an image's caption may differ between variations."""
        text = self.text
        return (
            len(alternatives) > 1
            or (text.tag_dropout_enable and text.tag_dropout_probability > 0)
            or (text.caps_randomize_enable and text.caps_randomize_probability > 0)
            or text.enable_tag_shuffling
            or (self.wildcards and any(map(_WILDCARD.search, (*alternatives, self.template))))
        )


def split_tags(caption: str, delimiter: str) -> list[str]:
    """The tags of a caption without the blanks around them; an empty delimiter splits nothing."""
    return [tag.strip() for tag in caption.split(delimiter)] if delimiter else [caption]


def join_tags(tags: Iterable[str], delimiter: str) -> str:
    """Tags as one caption, a blank after each delimiter."""
    return f"{delimiter} ".join(tags)


def shuffle_tags(caption: str, delimiter: str, keep: int, rng: random.Random) -> str:
    """The caption with all tags but the first `keep` in random order."""
    tags = split_tags(caption, delimiter)
    rest = tags[keep:]
    rng.shuffle(rest)
    return join_tags([*tags[:keep], *rest], delimiter)


def drop_tags(
    caption: str, text: ConceptTextConfig, special: Sequence[str], rng: random.Random
) -> str:
    """The caption without some of its tags; the first `keep_tags_count` are never touched.

    FULL draws once and drops all or none. RANDOM draws for each. RANDOM WEIGHTED does with p
    growing from p/n for the first of n tags to p for the last. A WHITELIST spares its tags, a
    BLACKLIST all others.
    """
    tags = split_tags(caption, text.tag_delimiter)
    kept, rest = tags[: text.keep_tags_count], tags[text.keep_tags_count :]
    probability, mode = text.tag_dropout_probability, text.tag_dropout_mode
    all_at_once = mode is TagDropoutMode.FULL and rng.random() < probability
    for index, tag in enumerate(rest):
        if mode is TagDropoutMode.FULL:
            dropped = all_at_once
        elif mode is TagDropoutMode.RANDOM:
            dropped = rng.random() < probability
        else:
            dropped = rng.random() < probability * (index + 1) / len(rest)
        if not dropped or _spared(tag, text, special):
            kept.append(tag)
    return join_tags(kept, text.tag_delimiter)


def change_capitals(
    caption: str, delimiter: str, modes: Sequence[str], probability: float, rng: random.Random
) -> str:
    """The caption with each tag's capitals changed, with `probability`, in one of `modes`.

    Delimiters and the blanks around tags stay as they are.
    """
    tags = caption.split(delimiter) if delimiter else [caption]
    for index, tag in enumerate(tags):
        if modes and rng.random() < probability:
            inner = tag.strip()
            changed = _capitals(inner, rng.choice(modes), rng)
            tags[index] = tag.replace(inner, changed, 1) if inner else tag
    return delimiter.join(tags)


def fill_wildcards(caption: str, rng: random.Random) -> str:
    """The caption with one word drawn for each `{red|green|blue}`; they may be nested."""
    while match := _WILDCARD.search(caption):
        word = rng.choice(match[1].split("|"))
        caption = caption[: match.start()] + word + caption[match.end() :]
    return caption


def special_tags(text: ConceptTextConfig) -> tuple[str, ...]:
    """The tags of `tag_dropout_special_tags`, which are written there or in the file it names.

    A .txt file has a tag on each line, a .csv file in its first column.

    Raises:
        ConfigError: if the file cannot be read, or one is no regular expression though it should.
    """
    field, given = "text.tag_dropout_special_tags", text.tag_dropout_special_tags
    path = Path(resolve(given.strip()))
    if path.suffix.lower() in (".txt", ".csv"):
        try:
            content = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as failure:
            message = f"{given!r} cannot be read as a file of tags ({failure})."
            raise error(field, message, "Choose a .txt or .csv file in UTF-8.") from None
        lines = content.splitlines()
        if path.suffix.lower() == ".csv":
            lines = [row[0] for row in csv.reader(lines) if row]
        tags = [line.strip() for line in lines]
    else:
        tags = split_tags(given, text.tag_delimiter)
    for tag in tags if text.tag_dropout_special_tags_regex else ():
        try:
            re.compile(tag)
        except re.error as failure:
            message = f"{tag!r} is no regular expression ({failure})."
            fix = "Mend it, or turn tag_dropout_special_tags_regex off."
            raise error(field, message, fix) from None
    return tuple(tag for tag in tags if tag)


def _spared(tag: str, text: ConceptTextConfig, special: Sequence[str]) -> bool:
    """Whether the special tags protect a tag from being dropped."""
    mode = text.tag_dropout_special_tags_mode
    if mode is _NONE:
        return False
    listed = tag in special
    if not listed and text.tag_dropout_special_tags_regex:
        bare = re.sub(r"[()]", "", tag)  # attention weights such as (tag) are none of the tag
        patterns = [entry for entry in special if _META & set(entry)]
        listed = any(re.fullmatch(p, tag) or re.fullmatch(p, bare) for p in patterns)
    return listed == (mode is SpecialTagsMode.WHITELIST)


def _modes(text: ConceptTextConfig) -> list[str]:
    modes = (mode.strip().lower() for mode in text.caps_randomize_mode.split(","))
    return [mode for mode in modes if mode]


def _capitals(tag: str, mode: str, rng: random.Random) -> str:
    match mode:
        case "capslock":
            return tag.upper()
        case "title":
            return string.capwords(tag)
        case "first":
            return tag.capitalize()
    return "".join(rng.choice((c.upper(), c.lower())) for c in tag)


_NONE = SpecialTagsMode.NONE
