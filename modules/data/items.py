"""From concepts to a list of training images and films, with every problem by file name."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from modules.config import ConceptConfig
from modules.config.concept_config import ARCHIVES, FILM_SUFFIXES, IMAGE_SUFFIXES
from modules.config.enums import ConceptType, PromptSource
from modules.config.paths import resolve
from modules.data.films import Film, read_header
from modules.data.findings import DataProblem, Findings
from modules.data.memo import Header, Memo
from modules.data.sources import Entry, NoSourceError, Source, open_source, read

MASK, CONDITIONING = "-masklabel", "-condlabel"
MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused: 0.5 GiB decoded, often a file made to fill the memory."""
MAX_CAPTION = 1 << 20
"""Bytes of a caption file; a longer one is something else."""
LONG_CAPTION = 4096
"""Characters of one caption beyond what any text encoder here reads."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, struct.error)
"""What Pillow raises for a broken file, format by format."""


@dataclass(frozen=True, slots=True)
class Item:
    """One training image or film: where it is, how large, and what is said about it."""

    concept: int
    """Index into the scan's concepts."""
    source: Source
    file: Entry
    width: int
    height: int
    """Pixels, upright: after the rotation that the camera noted."""
    captions: tuple[str, ...]
    """Alternatives; a variation takes one. One empty caption where the image has none."""
    mask: Entry | None = None
    conditioning: Entry | None = None
    """Files beside it in the same source."""
    film: Film | None = None
    """How long it is; None for a picture."""
    turned: bool = False
    """Whether the camera noted that it was not held upright."""

    @property
    def name(self) -> str:
        """The file's name in its source."""
        return self.file.name

    @property
    def path(self) -> str:
        """What a person calls the image file."""
        return self.source.path(self.name)


@dataclass(frozen=True)
class Scan:
    """What concepts hold."""

    concepts: tuple[ConceptConfig, ...]
    items: tuple[Item, ...]
    """Usable images, concept by concept and by name."""
    problems: tuple[DataProblem, ...]
    memo: Memo = field(default_factory=Memo, repr=False, compare=False)
    """What is known of the files."""

    def only(self, *types: ConceptType) -> Scan:
        """The same scan with the images of some types of concept."""
        kept = tuple(item for item in self.items if self.concepts[item.concept].type in types)
        return replace(self, items=kept)


def scan(
    concepts: Sequence[ConceptConfig], cache_dir: Path | None = None, films: bool = False
) -> Scan:
    """List the images of every enabled concept; broken ones are left out and reported.

    Only headers and captions are read, and no header that the cache knows.

    Args:
        concepts: where the images are.
        cache_dir: folder of the cache; None to read every header.
        films: list films too; otherwise they are left out and reported.
    """
    memo = Memo(None if cache_dir is None else cache_dir / "files")
    findings = Findings()
    items: list[Item] = []
    for index, concept in enumerate(concepts):
        if concept.enabled:
            items += _ConceptScan(index, concept, findings, memo, films).items()
    memo.save()
    return Scan(tuple(concepts), tuple(items), findings.problems(), memo)


class _ConceptScan:
    def __init__(
        self, index: int, concept: ConceptConfig, findings: Findings, memo: Memo, films: bool
    ) -> None:
        self._index, self._concept = index, concept
        self._findings, self._memo, self._films = findings, memo, films

    def items(self) -> list[Item]:
        concept, findings = self._concept, self._findings
        root = resolve(concept.path)
        try:
            recursive = concept.include_subdirectories
            self._source = source = open_source(root, recursive, self._films)
        except NoSourceError as failure:
            name = f"concept {concept.name!r}" if concept.name else "a concept"
            message = f"is the path of {name}, and {failure.message}"
            path = root or "(no path)"
            findings.add("missing folder", path, message, failure.fix, skipped=True)
            return []
        entries = {entry.name: entry for entry in source.entries(findings)}
        images = sorted(
            name for name in entries if _is_image(name) or (self._films and _is_film(name))
        )
        shared = self._shared_captions()
        found: list[Item] = []
        for name in images:
            header = self._header(entries[name])
            if header is None:
                continue
            captions = shared if shared is not None else self._captions(name, entries)
            if captions:
                found.append(self._item(entries, name, header, captions))
        self._report_leftovers(entries, images)
        if not images:
            below = "" if concept.include_subdirectories else " Folders below it are not read."
            read_here = IMAGE_SUFFIXES | FILM_SUFFIXES if self._films else IMAGE_SUFFIXES
            message = f"holds no image ({', '.join(sorted(read_here))}).{below}"
            findings.add("empty folder", root, message, "Choose another folder.", skipped=True)
        return found

    def _item(
        self,
        entries: dict[str, Entry],
        name: str,
        header: Header,
        captions: tuple[str, ...],
    ) -> Item:
        stem = _stem(name)
        return Item(
            self._index,
            self._source,
            entries[name],
            header.width,
            header.height,
            captions,
            entries.get(f"{stem}{MASK}.png"),
            entries.get(f"{stem}{CONDITIONING}.png"),
            Film(header.frames, header.seconds) if header.frames else None,
            header.turned,
        )

    def _header(self, entry: Entry) -> Header | None:
        """What the file's beginning says, and what of it is worth a word."""
        header = self._memo.header(self._source, entry)
        if header is None:
            film = _is_film(entry.name)
            header = self._film_header(entry) if film else self._read_header(entry.name)
        if header is None:
            return None
        self._memo.note_header(self._source, entry, header)
        path, add = self._source.path(entry.name), self._findings.add
        if header.animated:
            add("animated", path, "is animated; its first frame is used.", "Save one frame.")
        if header.transparent:
            fix = "Save it without transparency for another background."
            add("transparent", path, "is transparent in places; white stands behind it.", fix)
        if header.mode not in _PLAIN_MODES:
            kind = _MODE_NAMES.get(header.mode, header.mode)
            message = f"has {kind}; it is converted to 8-bit RGB."
            add("converted colours", path, message, "Save it as RGB to choose the conversion.")
        if header.damage:
            message = f"is damaged ({header.damage}); what can be read of it trains."
            add("damaged film", path, message, "Mend or remove it.")
        return header

    def _film_header(self, entry: Entry) -> Header | None:
        path, add = self._source.path(entry.name), self._findings.add
        try:
            header = read_header(self._source, entry)
            if header.width * header.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return header
        except Image.DecompressionBombError:
            self._note_size(path)
            return None
        except ImportError:
            message = "is a film, and imageio-ffmpeg, which reads it, is missing; it is left out."
            fix = "Install it with: pip install 'ot-notebook[video]'."
            add("unsupported", path, message, fix, skipped=True)
            return None
        except DAMAGE as error:
            message = f"cannot be read as a film ({reason(error)}), and is left out."
            add("unreadable image", path, message, "Mend or remove it.", skipped=True)
            return None

    def _note_size(self, path: str) -> None:
        message = f"has more than {MAX_PIXELS:,} pixels, and is left out."
        self._findings.add("too large", path, message, "Scale it down.", skipped=True)

    def _read_header(self, name: str) -> Header | None:
        path = self._source.path(name)
        add = self._findings.add
        try:
            with self._source.open(name) as file, Image.open(file) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                noted = orientation(image)
                if noted >= QUARTER_TURN:
                    width, height = height, width
                transparent = image.mode in TRANSPARENT or "transparency" in image.info
                animated = bool(getattr(image, "is_animated", False))
                turned = noted != UPRIGHT
                return Header(width, height, animated, transparent, image.mode, turned=turned)
        except Image.DecompressionBombError:
            self._note_size(path)
            return None
        except DAMAGE as error:
            message = f"cannot be read as an image ({reason(error)}), and is left out."
            add("unreadable image", path, message, "Mend or remove it.", skipped=True)
            return None

    def _shared_captions(self) -> tuple[str, ...] | None:
        """The captions of the concept's one file; None if each image has its own."""
        text = self._concept.text
        if text.prompt_source is not PromptSource.CONCEPT:
            return None
        path = resolve(text.prompt_path)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                content = file.read(64 * MAX_CAPTION)
        except OSError as error:
            fix = "Choose a text file with a caption on each line."
            message = f"holds the captions and cannot be read ({reason(error)})."
            self._findings.add("unreadable caption", path or "(no path)", message, fix, True)
            return ()
        return self._lines(content, path)

    def _captions(self, name: str, entries: dict[str, Entry]) -> tuple[str, ...]:
        """An image's own captions; none at all if they cannot be read."""
        stem = _stem(name)
        if self._concept.text.prompt_source is PromptSource.FILENAME:
            return (stem.rpartition("/")[2],)
        add = self._findings.add
        entry = entries.get(f"{stem}.txt")
        if entry is None:
            message = "has no caption beside it; it trains with an empty one."
            fix = "Write a .txt file of the same name, or let captions come from the file name."
            add("missing caption", self._source.path(name), message, fix)
            return ("",)
        path = self._source.path(entry.name)
        if entry.size > MAX_CAPTION:
            message = f"is longer than {MAX_CAPTION:,} bytes; its image is left out."
            fix = "Put there a caption, or a few with a line each."
            add("unreadable caption", path, message, fix, skipped=True)
            return ()
        try:
            content = read(self._source, entry.name)
        except OSError as error:
            message = f"cannot be read ({reason(error)}); its image is left out."
            add("unreadable caption", path, message, "Mend or remove it.", skipped=True)
            return ()
        return self._lines(content, path)

    def _lines(self, content: bytes, path: str) -> tuple[str, ...]:
        """Captions of a text file, one on each line that is not empty."""
        add = self._findings.add
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            message = "is not UTF-8 text; what it describes is left out."
            add("unreadable caption", path, message, "Save it as UTF-8.", skipped=True)
            return ()
        lines = tuple(line for line in map(str.strip, text.splitlines()) if line)
        if not lines:
            message = "is empty; its image trains with an empty caption."
            add("empty caption", path, message, "Write a caption.")
        if any(len(line) > LONG_CAPTION for line in lines):
            message = (
                f"has more than {LONG_CAPTION:,} characters; text encoders read the beginning."
            )
            add("long caption", path, message, "Shorten it.")
        return lines or ("",)

    def _report_leftovers(self, entries: dict[str, Entry], images: list[str]) -> None:
        """Files that look as if they belonged to an image, and images that share their files."""
        add, path = self._findings.add, self._source.path
        stems: set[str] = set()
        for name in images:
            if (stem := _stem(name)) in stems:
                message = "has the name of another image but for its ending: they share a caption."
                add("same name", path(name), message, "Rename one of them.")
            stems.add(stem)
        stems.update(_stem(name) for name in entries if _is_film(name))
        beside = self._concept.text.prompt_source is PromptSource.SAMPLE
        for name in sorted(entries):
            stem, suffix = _stem(name), _suffix(name).lower()
            if suffix == ".txt" and beside and stem not in stems:
                if path(name) != resolve(self._concept.text.prompt_path):
                    add("orphan caption", path(name), "has no image.", "Add one, or remove it.")
            elif suffix == ".png" and _label(stem) and stem[: -len(MASK)] not in stems:
                add("orphan mask", path(name), "has no image.", "Add one, or remove it.")
            elif suffix in ARCHIVES:
                message = "is a file of images beside images, and is left out."
                fix = "Make it a concept of its own."
                add("unsupported", path(name), message, fix, skipped=True)
            elif suffix in FILM_SUFFIXES and not self._films:
                message = "is a film, and this model trains on pictures alone; it is left out."
                fix = "Take pictures from it, or train a model of films."
                add("unsupported", path(name), message, fix, skipped=True)


TRANSPARENT = frozenset(("RGBA", "LA", "PA", "RGBa", "La"))
"""Pillow's modes with an alpha channel."""
_PLAIN_MODES = frozenset(("RGB", "RGBA", "L", "LA", "P", "PA", "1"))
_MODE_NAMES = {
    "CMYK": "four printing colours (CMYK)",
    "I": "16 or 32 bits for each pixel",
    "F": "floating-point pixels",
    "I;16": "16 bits for each pixel",
    "I;16B": "16 bits for each pixel",
    "YCbCr": "brightness and colour apart (YCbCr)",
    "LAB": "Lab colours",
    "HSV": "HSV colours",
}


UPRIGHT, QUARTER_TURN = 1, 5
"""Orientations that a camera notes (EXIF 2.3, 4.6.4): as it is; from 5 on, on its side."""


def orientation(image: Image.Image) -> int:
    """How the camera was held, by its note; read without decoding the picture."""
    if "exif" not in image.info and image.format not in ("TIFF", "MPO", "WEBP", "AVIF"):
        return UPRIGHT  # getexif() would decode all of a PNG to look behind its pixels
    return int(image.getexif().get(0x0112, UPRIGHT))


def upright(image: Image.Image) -> Image.Image:
    """The picture as the camera was held."""
    return ImageOps.exif_transpose(image)


def _is_image(name: str) -> bool:
    return _suffix(name).lower() in IMAGE_SUFFIXES and not _label(_stem(name))


def _is_film(name: str) -> bool:
    return _suffix(name).lower() in FILM_SUFFIXES


def _label(stem: str) -> bool:
    return stem.endswith((MASK, CONDITIONING))


def _stem(name: str) -> str:
    """A name without its ending, folders kept."""
    return name[: len(name) - len(_suffix(name))]


def _suffix(name: str) -> str:
    """A name's ending with its dot; as pathlib has it, in a tenth of the time."""
    dot = name.rfind(".")
    return name[dot:] if name.rfind("/") + 1 < dot < len(name) - 1 else ""


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or of an unknown kind"
    return str(error) or type(error).__name__
