"""Files that a page gives: they come in parts, as Jupyter's server takes no message of 10 MiB."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ot_notebook.services.inference_request import refused

MAX_UPLOAD = 64 * 2**20
"""Largest picture that a page may give, in bytes."""


class Upload:
    """The file that is coming; another that begins takes its place."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: Any = None
        self._parts: dict[int, bytes] = {}

    def add(self, told: Mapping[str, Any], part: bytes) -> bytes | None:
        """Take up a part; gives the file once it is whole.

        Args:
            told: which `file` it is of, a word of the page's; where it belongs (`at`); and how
                large the file is (`of`), in bytes. Without them it is the whole of one.
            part: its bytes.

        Raises:
            ConfigError: for a file that is larger than `MAX_UPLOAD`.
        """
        size = int(told.get("of", len(part)))
        if size > MAX_UPLOAD:
            raise refused(
                "image", f"The file has {size // 2**20} MiB.", "At most 64 MiB are taken."
            )
        with self._lock:  # threads of a kernel may serve them at the same time
            if told.get("file") != self._file:
                self._parts = {}
            self._file = told.get("file")
            self._parts[int(told.get("at", 0))] = part
            if sum(map(len, self._parts.values())) < size:
                return None
            whole = b"".join(self._parts[at] for at in sorted(self._parts))
            self._file, self._parts = None, {}
            return whole
