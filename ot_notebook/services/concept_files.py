"""Caption and mask files of a training set: read, checked, and refused in clear words."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from PIL import Image

from modules.data.findings import printable
from modules.data.items import DAMAGE, MASK, MAX_CAPTION
from modules.data.sources import Entry, changed_at
from ot_notebook.services.concept_items import Row
from ot_notebook.services.edit_journal import read


def check_file(row: Row) -> None:
    """Raise ValueError where nothing can be written beside an image."""
    if not row.path.parent.is_dir():
        raise ValueError(
            f"{row.name} is in no folder that files can be written to: "
            f"{printable(str(row.path.parent))}. Unpack the archive, or bring the folder back."
        )


def check_length(row: Row, text: str) -> None:
    """Raise ValueError for a caption that a scan would refuse."""
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_CAPTION:
        raise ValueError(
            f"The caption of {row.name} would have {size:,} bytes, but no more than "
            f"{MAX_CAPTION:,} are read. Shorten it."
        )


@contextmanager
def clear_refusal(path: Path) -> Iterator[None]:
    """Say which file cannot be written, that nothing was lost, and what to do."""
    try:
        yield
    except OSError as error:
        name = Path(error.filename).name if error.filename else path.name
        fix = "Make its folder writable, or work on a copy of it."
        if error.errno == errno.ENAMETOOLONG:
            fix = "Give the image a shorter name."
        raise type(error)(
            f"{printable(name)} cannot be written ({error.strerror or error}), and nothing was "
            f"changed. {fix}"
        ) from error


def read_text(path: Path) -> str:
    """A caption file's text, newlines as they are; empty where there is none.

    Raises:
        ValueError: if it cannot be read as a text that can be edited.
    """
    try:
        content = read(path) or b""
    except OSError as error:
        raise ValueError(
            f"{printable(path.name)} cannot be read ({error.strerror}). Mend or remove it."
        ) from None
    if len(content) > MAX_CAPTION:
        raise ValueError(
            f"{printable(path.name)} has {len(content):,} bytes, too many for a caption "
            f"(at most {MAX_CAPTION:,}). Shorten it with another program."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{printable(path.name)} is no UTF-8 text (byte {error.start}). Save it as UTF-8, or "
            f"write a new caption in its place."
        ) from None


def lossy_text(path: Path) -> str:
    """A caption file's text where it is compared or shown: bytes that are no text are marked."""
    return (read(path) or b"")[:MAX_CAPTION].decode("utf-8-sig", "replace")


def as_mask(png: bytes, row: Row) -> bytes:
    """The file of a mask, in shades of grey and as large as the image.

    Raises:
        ValueError: if `png` is no picture.
    """
    try:
        with Image.open(io.BytesIO(png)) as picture:
            mask = picture.convert("L")
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"The mask is no picture ({error}). Give the bytes of a PNG.") from None
    if row.width and mask.size != (row.width, row.height):
        mask = mask.resize((row.width, row.height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


def by_stem(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by path without ending, from which captions and masks have their names."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_stem(row.path), []).append(row)
    return found


def note_written(rows: Mapping[str, Sequence[Row]], paths: Iterable[Path]) -> None:
    """Bring rows, as `by_stem` gives them, up to date whose caption or mask was written."""
    for path in paths:
        for row in rows.get(_stem(path).removesuffix(MASK), ()):
            if path == row.mask_path:
                row.masked = path.exists()
                if row.item is not None:
                    row.item = replace(row.item, mask=_entry(row.item.name, path))
            else:
                row.set_caption(lossy_text(path))


def _entry(image: str, path: Path) -> Entry | None:
    """A mask as its image's source lists it; None where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    name = f"{os.path.splitext(image)[0]}{MASK}.png"  # noqa: PTH122 - a name, with / between
    return Entry(name, status.st_size, changed_at(status))


def _stem(path: Path) -> str:
    return os.path.splitext(path)[0]  # noqa: PTH122 - pathlib is 10x slower, and sets are large
