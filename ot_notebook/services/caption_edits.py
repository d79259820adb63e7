"""Changes to captions as values: what a bulk edit does to one text, and nothing else.

A caption file holds one caption on each line that is not empty; an edit is applied to each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

End = Literal["start", "end"]


def tags_of(line: str, delimiter: str = ",") -> list[str]:
    """The tags of a caption, without the blanks around them and without empty ones."""
    return [tag.strip() for tag in line.split(delimiter) if tag.strip()]


def join_tags(tags: Sequence[str], delimiter: str = ",") -> str:
    """A caption of `tags`, as OneTrainer joins them: the delimiter and a blank."""
    return f"{delimiter} ".join(tags)


@dataclass(frozen=True)
class SetCaption:
    """Write `text` in place of the whole caption."""

    text: str

    def whole(self, _text: str, _delimiter: str) -> str:
        """The new content of the file."""
        return self.text


@dataclass(frozen=True)
class Replace:
    r"""Write `text` wherever `find` stands.

    Args:
        find: what to look for.
        text: what to write; with `regex` it may hold groups such as `\1`.
        regex: `find` is a regular expression of Python.
        match_case: tell `Cat` from `cat`.
    """

    find: str
    text: str = ""
    regex: bool = False
    match_case: bool = False

    def __post_init__(self) -> None:
        if not self.find:
            raise ValueError("The text to find is empty. Give at least one character.")
        try:
            self._pattern().sub(self._template(), "")
        except (re.error, IndexError) as error:
            raise ValueError(
                f"{self.find!r} with {self.text!r} is no regular expression and replacement: "
                f"{error}. Mend it, or look for plain text."
            ) from None

    def line(self, line: str, _delimiter: str) -> str:
        """The new caption."""
        return self._pattern().sub(self._template(), line)

    def _pattern(self) -> re.Pattern[str]:
        flags = 0 if self.match_case else re.IGNORECASE
        return re.compile(self.find if self.regex else re.escape(self.find), flags)

    def _template(self) -> str:
        return self.text if self.regex else self.text.replace("\\", r"\\")


@dataclass(frozen=True)
class AddTags:
    """Add each of `tags` that the caption does not have yet, `at` its start or end."""

    tags: str
    at: End = "end"

    def __post_init__(self) -> None:
        _some_tags(self.tags)
        if self.at not in get_args(End):
            raise ValueError(f'at is {self.at!r}, but must be "start" or "end".')

    def line(self, line: str, delimiter: str) -> str:
        """The new caption."""
        there = tags_of(line, delimiter)
        have = {tag.casefold() for tag in there}
        new = [tag for tag in _once(tags_of(self.tags, delimiter)) if tag.casefold() not in have]
        if not new:
            return line
        return join_tags(new + there if self.at == "start" else there + new, delimiter)


@dataclass(frozen=True)
class RemoveTags:
    """Take each of `tags` out, however it is capitalised."""

    tags: str

    def __post_init__(self) -> None:
        _some_tags(self.tags)

    def line(self, line: str, delimiter: str) -> str:
        """The new caption."""
        gone = {tag.casefold() for tag in tags_of(self.tags, delimiter)}
        there = tags_of(line, delimiter)
        left = [tag for tag in there if tag.casefold() not in gone]
        return line if left == there else join_tags(left, delimiter)


@dataclass(frozen=True)
class OrderTags:
    """Bring those of `tags` that a caption has to its start, in this order.

    Without `tags`, sort all by the alphabet.
    """

    tags: str = ""

    def line(self, line: str, delimiter: str) -> str:
        """The new caption."""
        there = tags_of(line, delimiter)
        wanted = [tag.casefold() for tag in tags_of(self.tags, delimiter)]
        if wanted:
            places = {tag: place for place, tag in reversed(list(enumerate(wanted)))}
            ordered = sorted(there, key=lambda tag: places.get(tag.casefold(), len(wanted)))
        else:
            ordered = sorted(there, key=str.casefold)
        return line if ordered == there else join_tags(ordered, delimiter)


@dataclass(frozen=True)
class UniqueTags:
    """Keep the first of tags that stand twice."""

    def line(self, line: str, delimiter: str) -> str:
        """The new caption."""
        there = tags_of(line, delimiter)
        kept = _once(there)
        return line if kept == there else join_tags(kept, delimiter)


@dataclass(frozen=True)
class Prefix:
    """Write `text` in front of each caption that does not start with it."""

    text: str

    def line(self, line: str, _delimiter: str) -> str:
        """The new caption."""
        return line if line.startswith(self.text) else self.text + line


@dataclass(frozen=True)
class Suffix:
    """Write `text` behind each caption that does not end with it."""

    text: str

    def line(self, line: str, _delimiter: str) -> str:
        """The new caption."""
        return line if line.endswith(self.text) else line + self.text


CaptionEdit = SetCaption | Replace | AddTags | RemoveTags | OrderTags | UniqueTags | Prefix | Suffix


@dataclass(frozen=True)
class Difference:
    """What an edit does to one caption."""

    id: int
    name: str
    before: str
    after: str


ACTIONS: dict[str, Callable[..., CaptionEdit]] = {
    "caption": SetCaption,
    "replace": Replace,
    "add_tags": AddTags,
    "remove_tags": RemoveTags,
    "order_tags": OrderTags,
    "unique_tags": UniqueTags,
    "prefix": Prefix,
    "suffix": Suffix,
}
"""Every edit by the name that `edit` and the page call it."""


def make(action: str, **options: Any) -> CaptionEdit:
    """The edit of that name.

    Raises:
        ValueError: for an unknown name or option, or one without effect; says what there is.
    """
    if action not in ACTIONS:
        raise ValueError(f"{action!r} is no edit. There are {', '.join(ACTIONS)}.")
    kind: Any = ACTIONS[action]
    known = [field.name for field in fields(kind)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"{action} has no option {', '.join(unknown)}. It has {', '.join(known) or 'none'}."
        )
    try:
        edit: CaptionEdit = kind(**options)
    except TypeError:
        missing = [field.name for field in fields(kind) if field.name not in options]
        raise ValueError(f"{action} also needs {missing[0]}.") from None
    return edit


def apply(edit: CaptionEdit, text: str, delimiter: str = ",") -> str:
    """A caption file's content after `edit`; exactly `text` where nothing changes.

    An empty caption counts as one line, so that tags can be added to it.
    """
    if isinstance(edit, SetCaption):
        return edit.whole(text, delimiter)
    if not text.strip():
        return edit.line("", delimiter) or text
    parts = re.split(r"(\r\n|\r|\n)", text)  # line, its end, line, ...: the ends stay as they are
    parts[::2] = [edit.line(line, delimiter) if line.strip() else line for line in parts[::2]]
    return "".join(parts)


def _some_tags(tags: str) -> None:
    if not tags.strip():
        raise ValueError("There are no tags. Give at least one.")


def _once(tags: Sequence[str]) -> list[str]:
    seen: dict[str, str] = {}
    for tag in tags:
        seen.setdefault(tag.casefold(), tag)
    return list(seen.values())
