"""How much of a training set the cache has, by the cache's own names for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from modules.config import ConceptConfig
from modules.data.buckets import Size
from modules.data.cache import SUFFIX, Space
from modules.data.encoder_notes import Settings, noted, tells
from modules.data.items import DAMAGE, Item
from modules.data.memo import Memo
from modules.data.plan import Framing, Planned, Planner, digests_of

State = Literal["fresh", "stale", "new", "error"]
"""All is there; something of it was once, and the rest changed; nothing is; it cannot be read."""


class Freshness:
    """Tells of images whether a run would find all that it needs of them in a cache.

    Args:
        concepts: the images'; a disabled one counts as enabled.
        framing: the run's.
        cache_dir: folder of the cache.
        settings: decide which encoders the run has; None for those that used the cache last, which
            also count where no run noted its own.

    Raises:
        ConfigError: if a resolution is none, or a caption rule cannot work.
    """

    def __init__(
        self,
        concepts: Sequence[ConceptConfig],
        framing: Framing,
        cache_dir: Path,
        settings: Settings | None = None,
    ) -> None:
        self._planner = Planner([one.update(enabled=True) for one in concepts], framing)
        self._framing, self._cache_dir = framing, cache_dir
        self._memo = Memo(cache_dir / "files")
        self._settings = settings if settings and tells(cache_dir, settings) else None
        self._images, self._hints = self._space("image"), self._space("hint")
        self._masks, self._texts = Space(cache_dir / "mask"), self._text_space()
        self._grids: dict[Size, tuple[int, int]] = {}

    @property
    def empty(self) -> bool:
        """Whether no image was ever encoded into this cache."""
        return not any(self._cache_dir.glob(f"image-*/*{SUFFIX}"))

    def state(self, item: Item) -> State:
        """How the cache has an item; a file is only read where nobody noted what is in it."""
        try:
            digests = digests_of(item, self._framing, self._memo)
            for beside in filter(None, (item.mask, item.conditioning)):
                self._memo.digest(item.source, beside)  # or it would not be kept
            planned = self._planner.plan(item, digests)
            there = self._there(planned)
        except DAMAGE:
            return "error"
        if all(there):
            return "fresh"
        seen = any(there) or any(
            key in space for key in planned.image_keys() for space in self._others
        )
        return "stale" if seen else "new"

    def save(self) -> None:
        """Keep what was learned of the files: the next run needs it too."""
        self._memo.save()

    def _there(self, planned: Planned) -> list[bool]:
        """Whether the cache has each thing that a run reads of an item."""
        names = planned.image_keys()
        there = [key in self._images for key in names]
        there += [key in self._hints for key in planned.hint_keys(self._framing.hint)]
        if self._texts is not None:
            there += [key in self._texts for key in planned.text_keys()]
        if planned.digests.mask and all(key in self._images for key in names):
            sizes = zip(names, planned.views, strict=True)
            grids = [self._grid(key, view.size) for key, view in sizes]
            there += [key in self._masks for key in planned.mask_keys(grids)]
        return there

    def _grid(self, key: bytes, size: Size) -> tuple[int, int]:
        """Height and width of the latents of a size, which one of its images tells."""
        if size not in self._grids:
            height, width = self._images.shape(key, "latents")[-2:]
            self._grids[size] = height, width
        return self._grids[size]

    @cached_property
    def _others(self) -> list[Space]:
        """Images as other encoders made them."""
        folders = sorted(self._cache_dir.glob("image-*"))
        return [Space(folder) for folder in folders if folder != self._images.folder]

    def _space(self, kind: str) -> Space:
        if self._settings is None:
            return self._latest(kind)
        return Space(self._cache_dir / (noted(self._cache_dir, self._settings, kind) or "none"))

    def _text_space(self) -> Space | None:
        """Where captions are; None where they are not cached."""
        if self._settings is None:
            latest = self._latest("text")
            return latest if latest.folder.is_dir() else None
        name = noted(self._cache_dir, self._settings, "text")
        if name is None:
            return Space(self._cache_dir / "none") if self._settings.cached_text else None
        return Space(self._cache_dir / name) if name else None

    def _latest(self, kind: str) -> Space:
        """The space of a kind that was used last; one that holds nothing where there is none."""
        used = {
            folder: max((path.stat().st_mtime_ns for path in folder.glob(f"*{SUFFIX}")), default=0)
            for folder in self._cache_dir.glob(f"{kind}-*")
        }
        folder = max(used, key=lambda one: used[one], default=None)
        return Space(folder if folder and used[folder] else self._cache_dir / "none")
