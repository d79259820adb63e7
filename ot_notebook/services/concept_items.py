"""The images of a training set as an editor sees them: rows, and which of them are meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.config import MODELS, ConceptConfig, ConfigError, TrainConfig
from modules.config.concept_config import FILM_SUFFIXES, IMAGE_SUFFIXES
from modules.config.paths import resolve
from modules.data import scan
from modules.data.buckets import Bucket, Size, Target, targets
from modules.data.films import Lengths, lengths_of
from modules.data.findings import DataProblem, printable
from modules.data.items import LONG_CAPTION, MASK, Scan
from ot_notebook.services.caption_edits import tags_of

if TYPE_CHECKING:
    import pandas as pd

    from modules.data.items import Item

CAPTION_KINDS = frozenset(
    ("missing caption", "empty caption", "long caption", "unreadable caption")
)
"""Problems that a new caption settles."""

TOP_TAGS = 60
"""Tags that statistics name, the most frequent first."""


@dataclass(slots=True)
class Row:
    """One image: what it is and what is wrong with it.

    Attributes:
        id: its place in the set.
        concept: index of its concept.
        path: the image file; for an archive's, where a person would say that it lies.
        caption: its captions, a line each.
        width: upright, in pixels; 0 where the image cannot be read.
        problems: kinds of trouble, as a scan names them.
        item: how to open it; None where it is left out of training.
        twins: number of the group of images that look the same; 0 where none was found.
    """

    id: int
    concept: int
    path: Path
    caption: str
    width: int
    height: int
    masked: bool
    problems: tuple[str, ...]
    item: Item | None
    key: str = field(default="", repr=False)
    twins: int = 0

    @property
    def name(self) -> str:
        """The file's name, fit to be shown."""
        return printable(self.path.name)

    @property
    def caption_path(self) -> Path:
        """Where its own caption lies, or would."""
        return self.path.with_suffix(".txt")

    @property
    def mask_path(self) -> Path:
        """Where its mask lies, or would."""
        return self.path.with_name(f"{self.path.stem}{MASK}.png")

    def set_caption(self, text: str) -> None:
        """Take note of the caption file's new content."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        self.caption, self.key = "\n".join(lines), ""
        kept = [kind for kind in self.problems if kind not in CAPTION_KINDS]
        if not lines:
            kept.append("empty caption" if self.caption_path.exists() else "missing caption")
        if any(len(line) > LONG_CAPTION for line in lines):
            kept.append("long caption")
        self.problems = tuple(kept)

    def text(self) -> str:
        """Name and caption as a search compares them."""
        if not self.key:
            self.key = f"{self.path.name}\n{self.caption}".casefold()
        return self.key


@dataclass(frozen=True)
class Filter:
    """Which images are meant; what is left empty does not count.

    Attributes:
        text: words that name or caption must hold, or must not where `-` stands before one.
        tag: a tag of the caption, however it is capitalised.
        problem: a kind of trouble; "any" for each.
        concept: index of a concept.
        captioned: whether there is a caption.
        masked: whether there is a mask.
        smallest: the shorter edge is at least this, in pixels.
        largest: the longer edge is at most this, in pixels.
        bucket: the size that it trains at, such as "576x448".
        cache: how the cache has it: "fresh", "stale", "new" or "error".
        twins: only images that look like another, as far as `duplicates` found some.
    """

    text: str = ""
    tag: str = ""
    problem: str = ""
    concept: int | None = None
    captioned: bool | None = None
    masked: bool | None = None
    smallest: int = 0
    largest: int = 0
    bucket: str = ""
    cache: str = ""
    twins: bool = False

    def test(
        self,
        delimiters: Sequence[str],
        bucket_of: Callable[[Row], str],
        cache_of: Callable[[Row], str],
    ) -> Callable[[Row], bool]:
        """A function that says whether a row is meant."""
        words = self.text.casefold().split()
        wanted = [word for word in words if not word.startswith("-") or word == "-"]
        unwanted = [word[1:] for word in words if word.startswith("-") and word != "-"]
        tag = self.tag.casefold().strip()

        def has_tag(row: Row) -> bool:
            delimiter = delimiters[row.concept]
            lines = row.caption.casefold().split("\n")
            return any(tag in tags_of(line, delimiter) for line in lines)

        def fits(row: Row) -> bool:
            text = row.text()
            return (
                (self.concept is None or row.concept == self.concept)
                and all(word in text for word in wanted)
                and not any(word in text for word in unwanted)
                and (not tag or has_tag(row))
                and (not self.problem or _has_problem(row, self.problem))
                and (self.captioned is None or bool(row.caption) == self.captioned)
                and (self.masked is None or row.masked == self.masked)
                and (not self.smallest or min(row.width, row.height) >= self.smallest)
                and (not self.largest or max(row.width, row.height) <= self.largest)
                and (not self.bucket or bucket_of(row) == self.bucket)
                and (not self.cache or cache_of(row) == self.cache)
                and (not self.twins or row.twins > 0)
            )

        return fits


@dataclass(frozen=True)
class Resolution:
    """What decides at which size an image trains; as the settings of a run name them.

    Attributes:
        text: `512`, `512,768` or `768x512`.
        quantum: edges are multiples of this many pixels.
        bucketing: whether shapes other than squares are used.
        films: how long films are; None for a model of pictures.
    """

    text: str = "512"
    quantum: int = 64
    bucketing: bool = True
    films: Lengths | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> Resolution:
        """What a run's settings name; one frame of each film where they name no length."""
        try:
            films = lengths_of(config)
        except ConfigError:  # the settings' own checks say what is wrong with it
            films = lengths_of(config.update(frames="1"))
        quantum = MODELS[config.model_type].pixel_multiple
        return cls(config.resolution, quantum, config.aspect_ratio_bucketing, films)

    def size(self, row: Row, concept: ConceptConfig) -> Size | None:
        """The size that an image trains at, the first of several; None where it does not train."""
        image = concept.image
        text = image.resolution_override if image.enable_resolution_override else self.text
        try:
            found = _targets(text, self.quantum, self.bucketing)
        except ValueError:
            return None  # the settings' own checks say what is wrong with the resolution
        return found[0].nearest(row.width, row.height) if row.width else None

    def bucket(self, row: Row, concept: ConceptConfig) -> str:
        """That size as width x height, such as "576x448", and frames; empty where there is none."""
        size, film = self.size(row, concept), row.item and row.item.film
        if size is None:
            return ""
        return str(Bucket(*size, self.films.of(film) if film and self.films else 1))


@cache
def _targets(text: str, quantum: int, bucketing: bool) -> tuple[Target, ...]:
    return targets(text, quantum, bucketing)


def list_rows(
    concepts: Sequence[ConceptConfig], cache_dir: Path | None = None, films: bool = False
) -> tuple[list[Row], tuple[DataProblem, ...]]:
    """Every image of every concept, disabled ones too, and those that cannot train.

    Args:
        concepts: where they are.
        cache_dir: of a run.
        films: whether its model trains on films.
    """
    found = scan([concept.update(enabled=True) for concept in concepts], cache_dir, films)
    kinds: dict[str, list[str]] = {}
    for problem in found.problems:
        for text in problem.paths:
            kinds.setdefault(text, []).append(problem.kind)
    rows: list[Row] = []
    for item in found.items:
        path = Path(item.path)
        said = [*kinds.get(item.path, ()), *kinds.get(str(path.with_suffix(".txt")), ())]
        caption = "\n".join(item.captions)
        rows.append(
            Row(
                len(rows),
                item.concept,
                path,
                caption,
                item.width,
                item.height,
                item.mask is not None,
                tuple(dict.fromkeys(said)),
                item,
            )
        )
    rows += _left_out(found, {row.path for row in rows})
    rows.sort(key=lambda row: (row.concept, str(row.path)))
    for number, row in enumerate(rows):
        row.id = number
    return rows, found.problems


def count(
    rows: Sequence[Row], delimiters: Sequence[str], cache_of: Callable[[Row], str]
) -> dict[str, Any]:
    """Figures about rows: images, captions, masks, problems by kind, the most frequent tags.

    Also how many the cache has, where it was looked into, and how many look like another.
    """
    tags: Counter[str] = Counter()
    spelled: dict[str, str] = {}
    problems: Counter[str] = Counter()
    for row in rows:
        problems.update(row.problems)
        found = {
            tag
            for line in row.caption.split("\n")
            for tag in tags_of(line, delimiters[row.concept])
        }
        tags.update(spelled.setdefault(tag.casefold(), tag) for tag in found)
    edges = [min(row.width, row.height) for row in rows if row.width]
    return {
        "images": len(rows),
        "captioned": sum(bool(row.caption) for row in rows),
        "masked": sum(row.masked for row in rows),
        "smallest": min(edges, default=0),
        "largest": max((max(row.width, row.height) for row in rows), default=0),
        "problems": dict(problems.most_common()),
        "tags": dict(tags.most_common(TOP_TAGS)),
        "cache": dict(Counter(state for row in rows if (state := cache_of(row)))),
        "twins": sum(row.twins > 0 for row in rows),
    }


def table(
    rows: Sequence[Row],
    concepts: Sequence[ConceptConfig],
    resolution: Resolution,
    cache_of: Callable[[Row], str],
) -> pd.DataFrame:
    """Rows as a DataFrame by id."""
    import pandas as pd

    columns = {
        "concept": [concepts[row.concept].name for row in rows],
        "name": [row.name for row in rows],
        "path": [row.path for row in rows],
        "caption": [row.caption for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "masked": [row.masked for row in rows],
        "problems": [", ".join(row.problems) for row in rows],
        "bucket": [resolution.bucket(row, concepts[row.concept]) for row in rows],
        "cache": [cache_of(row) for row in rows],
        "twins": [row.twins for row in rows],
    }
    made: pd.DataFrame = pd.DataFrame(columns, index=pd.Index([row.id for row in rows], name="id"))
    return made


def roots_of(concepts: Sequence[ConceptConfig]) -> list[Path | None]:
    """Where concepts lie; None for one in a package that is not installed."""
    found: list[Path | None] = []
    for concept in concepts:
        try:
            found.append(Path(resolve(concept.path)))
        except ConfigError:
            found.append(None)  # the scan reports the folder as missing
    return found


def _left_out(found: Scan, known: set[Path]) -> list[Row]:
    """Rows of images that the scan refuses, so that they can be seen and mended."""
    rows: dict[Path, Row] = {}
    roots = roots_of(found.concepts)
    for problem in found.problems:
        if not problem.skipped:
            continue
        for text in problem.paths:
            for image in _images_of(Path(text)):
                parents: list[Path | None] = [*image.parents]
                concept = next((n for n, root in enumerate(roots) if root in parents), None)
                if concept is None or image in known:
                    continue
                row = rows.setdefault(image, Row(0, concept, image, "", 0, 0, False, (), None))
                row.problems = (*row.problems, problem.kind)
    return list(rows.values())


def _images_of(path: Path) -> list[Path]:
    """An image or film, or those that a caption file belongs to."""
    suffixes = IMAGE_SUFFIXES | FILM_SUFFIXES
    if path.suffix.lower() in suffixes:
        return [path]
    if path.suffix.lower() == ".txt":
        return [p for p in map(path.with_suffix, sorted(suffixes)) if p.exists()]
    return []


def _has_problem(row: Row, kind: str) -> bool:
    return bool(row.problems) if kind == "any" else kind in row.problems
