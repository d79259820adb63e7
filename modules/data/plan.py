"""Everything random about a training set, decided: its views and captions, and their names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from modules.config import ConceptConfig, ConfigError
from modules.config.models import Hint
from modules.config.problems import error
from modules.data.ahead import ahead
from modules.data.buckets import Bucket, Size, Target, targets
from modules.data.captions import CaptionRules
from modules.data.draws import stream
from modules.data.films import Clip, Film, Lengths
from modules.data.findings import Findings
from modules.data.images import (
    Circle,
    View,
    decode,
    draw_circle,
    draw_frame,
    draw_view,
    fitted_mask,
    needed_edge,
    render,
    still,
)
from modules.data.items import DAMAGE, Item, Scan, reason
from modules.data.memo import Memo
from modules.data.sources import Entry, digest_of, read


@dataclass(frozen=True)
class Framing:
    """How large images are trained, and which files beside them count."""

    resolution: str
    """`512`, several as `512,768`, or width and height as `768x512`."""
    quantum: int
    """Edges are multiples of this many pixels."""
    bucketing: bool
    """Train at several shapes; otherwise crop to squares."""
    masks: bool = False
    conditioning: bool = False
    hint: Hint = "none"
    """What the denoiser reads of the picture itself."""
    films: Lengths | None = None
    """How long films are; None where there are none."""

    @classmethod
    def for_hint(
        cls,
        hint: Hint,
        resolution: str,
        quantum: int,
        bucketing: bool,
        *,
        masks: bool,
        conditioning: bool,
        films: Lengths | None = None,
    ) -> Framing:
        """What counts for a denoiser; one that paints reads masks whether the loss does or not."""
        paints = hint == "inpainting"
        masks, conditioning = masks or paints, conditioning and paints
        return cls(resolution, quantum, bucketing, masks, conditioning, hint, films)


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 of an item's files; empty where there is none or it does not count."""

    image: bytes
    mask: bytes = b""
    conditioning: bytes = b""


@dataclass(frozen=True, slots=True)
class Planned:
    """An item with all that is drawn about it."""

    item: Item
    digests: Digests
    views: tuple[View, ...]
    circles: tuple[Circle | None, ...]
    captions: tuple[str, ...]

    def image_keys(self) -> list[bytes]:
        """What the cache calls each view."""
        return [key_of("image", self.digests.image, view.changes()) for view in self.views]

    def hint_keys(self, hint: Hint) -> list[bytes]:
        """What the cache calls what a denoiser reads of each view; none if it reads nothing."""
        if hint == "none":
            return []
        keys, files = [], self.digests
        for view, circle in zip(self.views, self.circles, strict=True):
            if hint == "depth":
                keys.append(key_of("hint", files.image, view.changes()))
            elif files.conditioning:
                place = view.geometry().changes()
                keys.append(key_of("hint", files.conditioning, files.mask, place, circle))
            elif files.mask:
                keys.append(key_of("hint", files.image, files.mask, view.changes(), circle))
            else:  # nothing of the picture is seen
                keys.append(key_of("hint", view.size))
        return keys

    def shown(self, hint: Hint) -> tuple[Entry | None, bytes]:
        """The file that a hint is made from, and its digest; None if nothing of one is seen."""
        if hint == "inpainting" and self.digests.conditioning:
            return self.item.conditioning, self.digests.conditioning
        if hint == "inpainting" and not self.digests.mask:
            return None, b""
        return self.item.file, self.digests.image

    def shown_views(self) -> tuple[View, ...]:
        """How a hint's file is cut and changed; a conditioning image keeps its colours."""
        if self.digests.conditioning:
            return tuple(view.geometry() for view in self.views)
        return self.views

    def mask_keys(self, grids: Sequence[tuple[int, int]]) -> list[bytes]:
        """What the cache calls the mask in each view, for latents of each view's size."""
        if not self.digests.mask:
            return []
        return [
            key_of("mask", self.digests.mask, view.geometry().changes(), circle, grid)
            for view, circle, grid in zip(self.views, self.circles, grids, strict=True)
        ]

    def text_keys(self) -> list[bytes]:
        """What the cache calls each caption."""
        return [key_of("text", caption) for caption in self.captions]


class Planner:
    """Draws what is random about each concept's images.

    Args:
        concepts: their settings.
        framing: the run's.

    Raises:
        ConfigError: if a resolution is none, or a caption rule cannot work.
    """

    def __init__(self, concepts: Sequence[ConceptConfig], framing: Framing) -> None:
        self._concepts, self._framing = concepts, framing
        enabled = [concept for concept in concepts if concept.enabled]
        self._rules = {id(concept): self._checked_rules(concept) for concept in enabled}
        self._targets = {id(concept): self._allowed(concept) for concept in enabled}

    def _checked_rules(self, concept: ConceptConfig) -> CaptionRules:
        try:
            return CaptionRules.of(concept)
        except ConfigError as failure:
            at = f"concepts.{self._concepts.index(concept)}"
            named = [replace(p, field=f"{at}.{p.field}") for p in failure.problems]
            raise ConfigError(named) from None

    def _allowed(self, concept: ConceptConfig) -> tuple[Target, ...]:
        own = concept.image.enable_resolution_override
        text = concept.image.resolution_override if own else self._framing.resolution
        try:
            return targets(text, self._framing.quantum, self._framing.bucketing)
        except ValueError as failure:
            field = "resolution"
            if own:
                field = f"concepts.{self._concepts.index(concept)}.image.resolution_override"
            raise error(field, str(failure), "") from None

    def plan(self, item: Item, digests: Digests) -> Planned:
        """An item's variations.

        Raises:
            OSError: or another of `DAMAGE`, if its mask decides the crop and cannot be read.
        """
        concept = self._concepts[item.concept]
        mask = self._mask(item, concept)
        drawn = [
            self._view(concept, item, mask, (concept.seed, digests.image.hex(), variation))
            for variation in range(concept.image_variations)
        ]
        return Planned(
            item,
            digests,
            tuple(view for view, _ in drawn),
            tuple(circle for _, circle in drawn),
            tuple(self.caption(item, digests.image, v) for v in range(concept.text_variations)),
        )

    def once(self, item: Item, digests: Digests, variation: int, bucket: Bucket) -> Planned:
        """An item in one variation, which may be beyond those of its concept, without captions.

        Args:
            item: what to plan.
            digests: of its files.
            variation: decides the draws.
            bucket: to cut it to.

        Raises:
            OSError: or another of `DAMAGE`, as `plan` does.
        """
        concept = self._concepts[item.concept]
        names = (concept.seed, digests.image.hex(), variation)
        view, circle = self._view(concept, item, self._mask(item, concept), names, bucket.size)
        return Planned(item, digests, (view,), (circle,), ())

    def _mask(self, item: Item, concept: ConceptConfig) -> Image.Image | None:
        """The item's mask, if its crop depends on it."""
        by_mask = (
            concept.image.enable_random_mask_rotate_crop
            or concept.image.enable_random_circular_mask_shrink
        )
        if not (by_mask and item.mask):
            return None
        return fitted_mask(decode(read(item.source, item.mask.name)), (item.width, item.height))

    def _view(
        self,
        concept: ConceptConfig,
        item: Item,
        mask: Image.Image | None,
        names: tuple[object, ...],
        size: Size | None = None,
    ) -> tuple[View, Circle | None]:
        circle = frame = None
        if mask and concept.image.enable_random_circular_mask_shrink:
            circle = draw_circle(mask, *names)
        if mask and concept.image.enable_random_mask_rotate_crop:
            frame = draw_frame(mask, circle, *names)
        width, height = item.width, item.height
        if frame:
            width, height = frame.right - frame.left, frame.bottom - frame.top
        size = size or self._size(concept, width, height, names)
        clip = self._clip(item.film, names)
        view = draw_view(concept.image, width, height, size, *names, frame=frame, clip=clip)
        return view, circle

    def _clip(self, film: Film | None, names: tuple[object, ...]) -> Clip | None:
        """The part of a film that trains: as long as it can be, from a random time on."""
        lengths = self._framing.films
        if film is None or lengths is None:
            return None
        frames = lengths.of(film)
        last = film.length(lengths.rate) - frames
        return Clip(stream("clip", *names).randint(0, last), frames, lengths.rate)

    def bucket(self, item: Item, digest: bytes, variation: int) -> Bucket:
        """The bucket that an item takes in a variation, where no mask decides the crop."""
        concept = self._concepts[item.concept]
        names = (concept.seed, digest.hex(), variation)
        size = self._size(concept, item.width, item.height, names)
        lengths = self._framing.films
        return Bucket(*size, lengths.of(item.film) if item.film and lengths else 1)

    def _size(
        self, concept: ConceptConfig, width: int, height: int, names: tuple[object, ...]
    ) -> Size:
        allowed = self._targets[id(concept)]
        target = allowed[0] if len(allowed) == 1 else stream("size", *names).choice(allowed)
        return target.nearest(width, height)

    def caption(self, item: Item, digest: bytes, variation: int) -> str:
        """What is said about an item in a variation."""
        concept = self._concepts[item.concept]
        rules = self._rules[id(concept)]
        if not rules.varies(item.captions):
            return rules.vary(item.captions, _UNUSED)
        rng = stream("caption", concept.seed, digest.hex(), variation)
        return rules.vary(item.captions, rng)


def plan(
    found: Scan,
    framing: Framing,
    threads: int,
    should_stop: Callable[[], bool],
    findings: Findings,
) -> tuple[Planner, list[Planned]]:
    """All items' variations; an item whose files cannot be read is reported and left out.

    Raises:
        CachingStopped: if told to stop.
        ConfigError: as `Planner` does.
    """
    planner = Planner(found.concepts, framing)
    alike: dict[tuple[View, ...], tuple[View, ...]] = {}  # most images of a set are cut alike

    def one(item: Item) -> Planned | None:
        if item.film and framing.films and framing.films.too_short(item.film):
            _note_short(item, item.film, framing.films, findings)
        try:
            made = planner.plan(item, digests_of(item, framing, found.memo))
            return replace(made, views=alike.setdefault(made.views, made.views))
        except DAMAGE as failure:
            message = f"or a file beside it cannot be read ({reason(failure)}); it is left out."
            findings.add("unreadable file", item.path, message, "Mend or remove it.", True)
            return None

    planned = list(ahead(one, found.items, threads, 64, should_stop))
    found.memo.save()
    return planner, [one for one in planned if one]


def variants(
    item: Item, concept: ConceptConfig, framing: Framing, count: int
) -> list[tuple[Image.Image, str]]:
    """What an item looks like, and what is said about it, in its first `count` variations.

    Raises:
        ConfigError: if the settings cannot work.
        OSError: or another of `DAMAGE`, if a file cannot be read.
    """
    more = concept.update(image_variations=count, text_variations=count, enabled=True)
    alone = replace(item, concept=0)
    digests = Digests(digest_of(item.source, item.name))
    planned = Planner([more], framing).plan(alone, digests)
    image = still(item, needed_edge(planned.views))
    pictures = [Image.fromarray(render(image, view)) for view in planned.views]
    return list(zip(pictures, planned.captions, strict=True))


def _note_short(item: Item, film: Film, lengths: Lengths, findings: Findings) -> None:
    frames = lengths.of(film)
    many = "1 frame" if frames == 1 else f"{frames} frames"
    message = (
        f"is shorter than the {lengths.frames[0]} frames that `frames` asks for, at {lengths.rate} "
        f"a second; it trains with {many}."
    )
    fix = f"Add {frames} to `frames`, or take the film out."
    findings.add("short film", item.path, message, fix)


def key_of(*parts: object) -> bytes:
    """Name of an encoding, 16 bytes: equal if and only if what it is made from is."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()[:16]


def digests_of(item: Item, framing: Framing, memo: Memo) -> Digests:
    """Of those of an item's files that count; a file is only read where nobody noted its digest.

    Raises:
        OSError: or another of `DAMAGE`, if one cannot be read.
    """

    def digest(entry: Entry | None) -> bytes:
        if entry is None:
            return b""
        found = memo.digest(item.source, entry)
        if not found:
            found = digest_of(item.source, entry.name)
            memo.note_digest(item.source, entry, found)
        return found

    mask = item.mask if framing.masks else None
    conditioning = item.conditioning if framing.conditioning else None
    return Digests(digest(item.file), digest(mask), digest(conditioning))


_UNUSED = stream()
"""For captions in which nothing is random."""
