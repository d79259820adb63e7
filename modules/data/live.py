"""Training without a cache: pictures are read, cut and encoded when their batch comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.data.buckets import Bucket
from modules.data.encode import (
    Encoder,
    Picture,
    at_once,
    decoded,
    read_hint,
    read_picture,
    shown_of,
    shrunk,
    to_masks,
    to_pixels,
)
from modules.data.findings import DataProblem, Findings
from modules.data.images import View, render_mask
from modules.data.items import DAMAGE, Item, reason
from modules.data.plan import Digests, Framing, Planned, Planner
from modules.data.schedule import Indices, Positions

Grey = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture, cut and ready to be encoded."""

    item: int
    variation: int
    view: View
    image: NDArray[np.uint8]
    """[h, w, 3], or the frames of a film [f, h, w, 3]."""
    mask: Grey | None
    """[h, w]; None where the picture has none."""
    hint: tuple[NDArray[np.uint8], Grey] | None
    """What the denoiser sees of it, [h, w, 3], and the mask, [h, w]."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a batch is made of; only the pictures that could be read."""

    items: Indices
    variations: Indices
    crops: list[tuple[int, int]]
    """Top and left of each."""
    latents: Tensor
    """[B, C, H, W]; of films [B, C, F, H, W]."""
    mask: Tensor | None
    """[B, 1, H, W] in 0 ... 1; None where no image of the set has one."""
    hints: dict[str, Tensor] | None
    """Each [B, ...]; None where the denoiser reads nothing."""


class Live(Positions):
    """Encodes each batch anew. Every look at an image draws its crop, flip and colours afresh.

    Args:
        encoder: the networks.
        planner: draws what is random.
        framing: which files beside an image count.
        planned: the images; of their views only the sizes are kept.
        sizes: the buckets.
        threads: how many read and decode images.
        warn: receives what is wrong with a file, once for each.
    """

    def __init__(
        self,
        encoder: Encoder,
        planner: Planner,
        framing: Framing,
        planned: Sequence[Planned],
        sizes: Sequence[Bucket],
        threads: int,
        warn: Callable[[DataProblem], None],
    ) -> None:
        super().__init__([len(each.views) for each in planned])
        self._encoder, self._planner, self._framing = encoder, planner, framing
        self._known: list[tuple[Item, Digests]] = [(each.item, each.digests) for each in planned]
        self._masked = any(each.digests.mask for each in planned)
        number = {bucket: index for index, bucket in enumerate(sizes)}
        views = (view for each in planned for view in each.views)
        self._sizes = tuple(sizes)
        self._buckets = np.array([number[view.bucket] for view in views], np.int16)
        self._warn, self._warned = warn, set[str]()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")

    def read(self, items: Indices, variations: Indices) -> tuple[list[Seen], Findings]:
        """Read and cut the pictures of a batch, those that can be. Any thread may call it."""
        findings = Findings()
        buckets = self._buckets[self.at(items, variations)]
        looks = zip(items.tolist(), variations.tolist(), buckets.tolist(), strict=True)
        found = self._pool.map(lambda look: self._see(look, findings), looks)
        return [seen for seen in found if seen is not None], findings

    def encode(self, seen: Sequence[Seen], findings: Findings) -> Encoded | None:
        """Encode what was read; None if nothing was. For the thread that trains.

        The networks are its own: what it does with them meanwhile must not be disturbed.
        """
        for problem in findings.problems():
            if not self._warned.issuperset(problem.paths):
                self._warned.update(problem.paths)
                self._warn(problem)
        if not seen:
            return None
        images = (to_pixels([one.image for one in few]) for few in _few(seen))
        latents = torch.cat([self._encoder.encode_images(pixels) for pixels in images])
        return Encoded(
            np.array([one.item for one in seen], np.int32),
            np.array([one.variation for one in seen], np.int32),
            [(one.view.top, one.view.left) for one in seen],
            latents,
            _mask(seen, latents) if self._masked else None,
            self._hints(seen) if self._framing.hint != "none" else None,
        )

    def _see(self, look: tuple[int, int, int], findings: Findings) -> Seen | None:
        """One picture: which item, in which variation and bucket; None if a file fails."""
        index, variation, bucket = look
        item, digests = self._known[index]
        try:
            planned = self._planner.once(item, digests, variation, self._sizes[bucket])
        except DAMAGE as failure:
            message = f"has a mask that cannot be read ({reason(failure)}), and is left out."
            findings.add("unreadable file", item.path, message, "Mend or remove it.", True)
            return None
        (view,), (circle,) = planned.views, planned.circles
        pictures = read_picture(Picture(item, digests.image, ((b"", view),)), findings)
        if not pictures:
            return None
        ((_, image),) = pictures
        mask = hint = None
        if self._masked and item.mask and digests.mask:
            drawn = decoded(item.source, item.mask.name, digests.mask, findings)
            if drawn is None:
                return None
            mask = render_mask(drawn, view, circle, (item.width, item.height))
        if self._framing.hint != "none":
            (place,) = planned.shown_views()
            hints = read_hint(
                shown_of(planned, self._framing.hint, ((b"", place, circle),)), findings
            )
            if not hints:
                return None
            ((_, *pair),) = hints
            hint = pair[0], pair[1]
        return Seen(index, variation, view, image, mask, hint)

    def _hints(self, seen: Sequence[Seen]) -> dict[str, Tensor]:
        hide = not self._framing.conditioning
        rows = []
        for few in _few(seen):
            pairs = [one.hint for one in few if one.hint is not None]
            pixels, masks = to_pixels([p for p, _ in pairs]), to_masks([m for _, m in pairs])
            rows.append(self._encoder.encode_hints(pixels, masks, hide))
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _few(seen: Sequence[Seen]) -> Iterator[Sequence[Seen]]:
    """As many at a time as are encoded at once."""
    most = at_once(seen[0].view.bucket)
    return (seen[start : start + most] for start in range(0, len(seen), most))


def _mask(seen: Sequence[Seen], latents: Tensor) -> Tensor:
    masks = torch.ones(len(seen), 1, *latents.shape[-2:])
    for row, one in zip(masks, seen, strict=True):
        if one.mask is not None:
            row.copy_(shrunk(one.mask, *latents.shape[-2:])).div_(255)
    return masks
