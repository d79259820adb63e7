"""Room where a run is kept: on a network drive, or within what a platform keeps of a folder."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from ot_notebook.services.network_drive import is_network

KAGGLE = Path("/kaggle/working")
KAGGLE_KEEPS = 20 * 10**9
"""Bytes of that folder that Kaggle keeps with a version; the disk itself is larger."""

COUNT_SECONDS = 60.0
"""Time between two counts of a folder's files."""


@dataclass(frozen=True, slots=True)
class Drive:
    """Bytes left for a run's files, where they lie elsewhere than the disk of the kernel."""

    label: str
    free: int
    total: int
    where: str


class DriveSpace:
    """Looks at the drive of one folder.

    Args:
        folder: a run's workspace.
        disk: a folder on the disk that is told already.
        quota: bytes that may lie in `folder`, where the drive itself does not tell.
        kaggle: the folder that Kaggle keeps.
    """

    def __init__(
        self, folder: Path, disk: Path, quota: int | None = None, kaggle: Path = KAGGLE
    ) -> None:
        self._folder, self._quota, self._label = folder.absolute(), quota, "Drive"
        if quota is None and self._folder.is_relative_to(kaggle) and kaggle.is_dir():
            self._folder, self._quota, self._label = kaggle, KAGGLE_KEEPS, "Output"
        self._network = self._quota is None and is_network(self._folder)
        self._disk = disk
        self._used, self._counted = 0, float("-inf")

    def look(self) -> Drive | None:
        """What is left there; None if it is the disk that is told already.

        Raises:
            OSError: if the drive does not answer.
        """
        if self._quota is not None:
            if time.monotonic() - self._counted > COUNT_SECONDS:
                self._used, self._counted = size_of(self._folder), time.monotonic()
            free = max(0, self._quota - self._used)
            return Drive(self._label, free, self._quota, str(self._folder))
        place = self._folder
        while not place.exists() and place != place.parent:
            place = place.parent  # a run makes its workspace
        if not self._network and place.stat().st_dev == self._disk.stat().st_dev:
            return None
        total, _, free = shutil.disk_usage(place)
        return Drive(self._label, free, total, str(self._folder))


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    found = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118 - a tenth of the time
            except FileNotFoundError:
                continue
    return found
