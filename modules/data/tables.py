"""Images in the columns of parquet and arrow files, as the `datasets` library writes them."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from modules.data.findings import Findings
from modules.data.sources import Entry, NoSourceError, changed_at, in_memory

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture")
"""Names of columns that hold images; any column of files with `bytes` does too."""
TEXTS = ("text", "caption", "captions", "prompt", "txt", "description")
"""Names of columns that hold captions, the best first."""
GROUPS = 2
"""Pieces of a parquet file that are kept decoded."""


class Table:
    """The rows of a parquet or arrow file: an image each, and a caption where there is one.

    Row 12 is the file `00000012.png`, whatever its format, and `00000012.txt`.

    Args:
        path: the file.

    Raises:
        NoSourceError: if it cannot be read, or has no column of images.
    """

    def __init__(self, path: Path) -> None:
        self.root = str(path)
        try:
            self._stamp = changed_at(path.stat())
            schema, counts, group = _parquet(path) if path.suffix == ".parquet" else _arrow(path)
        except ImportError:
            fix = "Install it with: pip install 'ot-notebook[datasets]'."
            raise NoSourceError("needs the package pyarrow to be read.", fix) from None
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise NoSourceError(f"cannot be read ({error}).", "Choose a whole file.") from None
        self._ends = list(accumulate(counts))
        self._group, self._lock = group, threading.Lock()
        self._image = _image_column(schema)
        self._text = next((name for name in TEXTS if name in schema.names), None)

    def entries(self, findings: Findings) -> Iterator[Entry]:  # noqa: ARG002
        """An image for each row, and a caption if the table has any."""
        for row in range(self._ends[-1] if self._ends else 0):
            yield Entry(f"{row:08}.png", 0, self._stamp)
            if self._text:
                yield Entry(f"{row:08}.txt", 0, self._stamp)

    def open(self, name: str) -> BinaryIO:
        """A cell to read from."""
        stem, _, suffix = name.rpartition(".")
        row = int(stem)
        piece = bisect.bisect_right(self._ends, row)
        with self._lock:
            group = self._group(piece)
        column = self._text if suffix == "txt" else self._image
        cell = group[column][row - (self._ends[piece] - len(group))].as_py()
        if suffix == "txt":
            return in_memory(_lines(cell).encode())
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if content is None:
            raise FileNotFoundError("only the name of an image file; embed the images themselves")
        return in_memory(content)

    def path(self, name: str) -> str:
        """The table's path and the row."""
        return f"{self.root}/{name}"


def _parquet(path: Path) -> tuple[Any, list[int], Callable[[int], Any]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    counts = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    return file.schema_arrow, counts, lru_cache(GROUPS)(file.read_row_group)


def _arrow(path: Path) -> tuple[Any, list[int], Callable[[int], Any]]:
    """An arrow file or stream, mapped from the disk."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return table.schema, [table.num_rows], lambda _piece: table


def _image_column(schema: Any) -> str:
    for name in schema.names:
        kind = schema.field(name).type
        files = hasattr(kind, "fields") and any(f.name == "bytes" for f in kind.fields)
        if files or (name.lower() in IMAGES and "binary" in str(kind)):
            return str(name)
    raise NoSourceError(
        f"has no column of images among {', '.join(schema.names)}.",
        "Choose a data set with a column of images, such as `image`.",
    )


def _lines(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, list):
        return "\n".join(" ".join(str(text).split()) for text in cell)
    return " ".join(str(cell).split())  # a caption of several lines is one caption here
