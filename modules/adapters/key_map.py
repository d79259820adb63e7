"""The names under which a file format knows a model's layers.

Shapes: R rank, in and out the widths of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from modules.config import ModelFormat

Rename = Callable[[str], str]
"""From a layer's path in diffusers to its path in the model's original code."""


@dataclass(frozen=True)
class Fused:
    """Layers that the original code holds as one: their outputs, one after another."""

    members: tuple[str, ...]
    """Paths, `{i}` for any number, in the order of the outputs."""
    name: str
    """Path of the whole in the original code."""
    widths: tuple[int, ...] = ()
    """Outputs of each member as multiples of the first's; all alike where empty."""

    def width(self, index: int) -> int:
        """Outputs of a member as a multiple of the first's."""
        return self.widths[index] if self.widths else 1

    @property
    def total(self) -> int:
        """Outputs of the whole as a multiple of the first's."""
        return sum(self.widths) if self.widths else len(self.members)


@dataclass(frozen=True)
class Place:
    """Where a file holds a layer."""

    name: str
    """Path of the layer, or of the whole that it is a part of."""
    fused: Fused | None = None
    member: int = 0
    """Which part of the whole."""
    swapped: bool = False
    """Whether the file holds the two halves of the outputs the other way round."""
    swapped_if_double: bool = False
    """Whether it does so if there are twice as many outputs as inputs."""
    transposed: bool = False
    """Whether the file of a model holds the weight as [in, out]."""

    def swaps(self, outputs: int, inputs: int) -> bool:
        """Whether the file holds the halves of a layer of such widths the other way round."""
        return self.swapped or (self.swapped_if_double and outputs == 2 * inputs)


@dataclass(frozen=True)
class Native:
    """How the original code of a model names and joins the layers of its denoiser."""

    rename: Rename
    fused: tuple[Fused, ...] = ()
    swapped: tuple[str, ...] = ()
    """Layers, by diffusers path, that give scale and shift in the other order."""
    swapped_if_double: tuple[str, ...] = ()
    """Layers of which that is true where they give two vectors, as in a last block, not six."""

    scales: tuple[str, ...] = ()
    """Ends of original paths whose weight is called `scale`, as in Flux's norms."""
    underscored: tuple[str, ...] = ()
    """Ends of original paths on which `weight` and `bias` hang by `_`, as in torch's attention."""
    flat: tuple[str, ...] = ()
    """Weights, by diffusers path, that the original holds as one row of numbers."""

    def key(self, name: str, leaf: str) -> str:
        """Key of a tensor of a layer with that original path: its "weight" or "bias"."""
        if leaf == "weight" and name.endswith(self.scales):
            leaf = "scale"
        return f"{name}{'_' if name.endswith(self.underscored) else '.'}{leaf}"

    def is_flat(self, path: str) -> bool:
        """Whether the original layout holds a weight as one row of numbers."""
        return _fits(self.flat, path)

    def place(self, path: str) -> Place:
        """Where the original layout holds a layer of the denoiser."""
        for group in self.fused:
            for index, member in enumerate(group.members):
                numbers = _match(member, path)
                if numbers is not None:
                    return Place(_fill(group.name, numbers), group, index)
        return Place(
            self.rename(path),
            swapped=_fits(self.swapped, path),
            swapped_if_double=_fits(self.swapped_if_double, path),
        )


@dataclass(frozen=True)
class KeyMap:
    """One adapter format of one family."""

    prefixes: Mapping[str, str]
    """What stands before a layer's path, by part; a part that is missing has no place there."""
    native: Native | None = None
    """The original names of the denoiser's layers; None where the format keeps diffusers' own."""
    dotted: bool = True
    """Dots between the steps of a path, as PEFT has them, or underscores, as kohya has them."""
    peft: bool = True
    """PEFT's names of the two matrices, `lora_A` and `lora_B`, or `lora_down` and `lora_up`."""
    folds_alpha: bool = False
    """No place for alpha: alpha / R is multiplied into the second matrix."""
    native_parts: frozenset[str] = frozenset({"unet", "transformer", "prior"})

    def place(self, part: str, path: str) -> Place:
        """Where this format holds a layer.

        Raises:
            KeyError: if it has no place for that part.
        """
        prefix = self.prefixes[part]
        found = Place(path)
        if self.native and part in self.native_parts:
            found = self.native.place(path)
        body = found.name if self.dotted else found.name.replace(".", "_")
        return replace(found, name=f"{prefix}{body}")


def renamer(rules: Sequence[tuple[str, str]]) -> Rename:
    """A renaming by the first rule whose left side ends no path midway.

    A rule replaces the beginning of a path; `{i}` on both sides is any number. Rules apply one
    after another, each at most once, so that a rule for a block and one for a leaf both hold: a
    leaf rule begins with `*.`, which is whatever the block rules left.
    """
    heads = [(_pattern(old, whole=False), new) for old, new in rules if not old.startswith("*.")]
    leaves = [(old[2:], new) for old, new in rules if old.startswith("*.")]

    def rename(path: str) -> str:
        for pattern, new in heads:
            if found := pattern.match(path):
                path = _fill(new, found.groups()) + path[found.end() :]
                break
        for old, new in leaves:
            if path.endswith(f".{old}"):
                return path[: -len(old)] + new
        return path

    return rename


def lora_formats(
    denoiser: str,
    native: Native | None,
    *,
    kohya_encoders: Mapping[str, str] | None = None,
    comfy_encoders: Mapping[str, str] | None = None,
    legacy: str | None = None,
    legacy_encoders: Mapping[str, str] | None = None,
    kohya_native: bool = True,
    encoders: Iterable[str] = (),
) -> Mapping[ModelFormat, KeyMap]:
    """The five adapter formats of a family.

    Args:
        denoiser: pipeline name of the network that trains.
        native: names and groups of its original code.
        kohya_encoders: kohya's prefix of each trainable text encoder, such as "lora_te1".
        comfy_encoders: ComfyUI's name of each, such as "clip_l".
        legacy: the denoiser's prefix in LEGACY_LORA; "" for the names of backups, None for a
            family that the format does not have.
        legacy_encoders: the text encoders' prefixes in LEGACY_LORA, where they differ from kohya's.
        kohya_native: whether KOHYA_LORA uses the original names.
        encoders: pipeline names of the trainable text encoders.
    """
    kohya = {name: f"{prefix}_" for name, prefix in (kohya_encoders or {}).items()}
    comfy = {
        name: f"text_encoders.{word}.transformer." for name, word in (comfy_encoders or {}).items()
    }
    names = {name: f"{name}." for name in (denoiser, *encoders)}
    formats = {
        ModelFormat.DIFFUSERS_LORA: KeyMap(names, folds_alpha=True),
        ModelFormat.KOHYA_LORA: KeyMap(
            {denoiser: "lora_unet_", **kohya},
            native if kohya_native else None,
            dotted=False,
            peft=False,
        ),
        ModelFormat.ORIGINAL_LORA: KeyMap({denoiser: ""}, native),
        ModelFormat.COMFY_LORA: KeyMap({denoiser: "diffusion_model.", **comfy}, native),
    }
    if legacy == "":
        formats[ModelFormat.LEGACY_LORA] = KeyMap(names, peft=False)
    elif legacy is not None:
        te = {name: f"{prefix}_" for name, prefix in (legacy_encoders or {}).items()} or kohya
        formats[ModelFormat.LEGACY_LORA] = KeyMap(
            {denoiser: f"{legacy}_", **te}, dotted=False, peft=False
        )
    return formats


@cache
def _pattern(text: str, whole: bool) -> re.Pattern[str]:
    body = re.escape(text).replace(re.escape("{i}"), r"(\d+)")
    return re.compile(body + ("$" if whole else r"(?=\.|$)"))


def _match(pattern: str, path: str) -> tuple[str, ...] | None:
    """The numbers of a path that fits a pattern as a whole; None if it does not."""
    found = _pattern(pattern, whole=True).match(path)
    return found.groups() if found else None


def _fits(patterns: Iterable[str], path: str) -> bool:
    return any(_match(pattern, path) is not None for pattern in patterns)


def _fill(pattern: str, numbers: Iterable[str]) -> str:
    for number in numbers:
        pattern = pattern.replace("{i}", number, 1)
    return pattern
