"""How much of a training set the cache has, by the cache's own names for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from modules.config import ConceptConfig
from modules.data.cache import SUFFIX, Space
from modules.data.items import DAMAGE, Item
from modules.data.memo import Memo
from modules.data.plan import Digests, Framing, Planner
from modules.data.sources import digest_of

State = Literal["fresh", "stale", "new", "error"]
"""All is there; some of it is, and the rest changed since; none is; it cannot be read."""


class Freshness:
    """Tells of images whether the encoders that used a cache last would find them there.

    Masks and what inpainting models read are not looked at: they are made anew in no time.

    Args:
        concepts: the images'; a disabled one counts as enabled.
        framing: the run's.
        cache_dir: folder of the cache.

    Raises:
        ConfigError: if a resolution is none, or a caption rule cannot work.
    """

    def __init__(
        self, concepts: Sequence[ConceptConfig], framing: Framing, cache_dir: Path
    ) -> None:
        self._planner = Planner([one.update(enabled=True) for one in concepts], framing)
        self._memo = Memo(cache_dir / "files")
        self._images, self._texts = _latest(cache_dir, "image"), _latest(cache_dir, "text")

    @property
    def empty(self) -> bool:
        """Whether no image was ever encoded into this cache."""
        return self._images is None

    def state(self, item: Item) -> State:
        """How the cache has an item; a file is only read where nobody noted what is in it."""
        if self._images is None:
            return "new"
        try:
            digest = self._memo.digest(item.source, item.file)
            if not digest:
                digest = digest_of(item.source, item.name)
                self._memo.note_digest(item.source, item.file, digest)
            for beside in filter(None, (item.mask, item.conditioning)):
                self._memo.digest(item.source, beside)  # or it would not be kept
            planned = self._planner.plan(item, Digests(digest))
        except DAMAGE:
            return "error"
        there = [key in self._images for key in planned.image_keys()]
        if self._texts is not None:
            there += [key in self._texts for key in planned.text_keys()]
        return "fresh" if all(there) else "stale" if any(there) else "new"

    def save(self) -> None:
        """Keep what was learned of the files: the next run needs it too."""
        self._memo.save()


def _latest(cache_dir: Path, kind: str) -> Space | None:
    """The space of a kind that was used last."""
    used = {
        folder: max((path.stat().st_mtime_ns for path in folder.glob(f"*{SUFFIX}")), default=0)
        for folder in cache_dir.glob(f"{kind}-*")
    }
    folder = max(used, key=lambda one: used[one], default=None)
    return Space(folder) if folder and used[folder] else None
