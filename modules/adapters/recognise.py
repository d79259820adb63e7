"""Of what architecture an adapter file is, found without a model.

The layers of an architecture are those of its toy, whose blocks have the real names; where blocks
repeat, the real model has more of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from torch import Tensor, nn

from modules.adapters.files import AdapterError
from modules.adapters.reading import Adapter, Index, layer_paths, read_with, spellings
from modules.config import ModelType
from modules.families import all_families, family_for
from modules.families.base import Family

CROSS_ATTENTION = re.compile(r"attn2[._]to[._]k\.(lora_down|lora_A|lora\.down)\.weight$")
BLOCK_NUMBER = re.compile(r"(?<=[._])[0-9]{1,3}(?=[._])")
UNET_ATTENTION = re.compile(r"(?P<side>down|up)_blocks\.\d+\.(?=attentions\.)")
WIDTHS = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2", 2048: "stable-diffusion-xl"}
"""Width of the text that cross-attention of a UNet reads, by architecture."""


@dataclass(frozen=True)
class Recognised:
    """An adapter file of which the architecture is known."""

    family: Family
    index: Index
    """Every spelling of every layer of the architecture."""
    adapter: Adapter


def recognise(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    model_type: ModelType | None = None,
) -> Recognised:
    """Find the architecture of an adapter by its metadata and its keys.

    Args:
        tensors: the file.
        metadata: what it says of itself.
        model_type: the answer, where it is known.

    Raises:
        AdapterError: if no architecture has such layers, or several have them.
    """
    numbers = numbers_in(tensors)
    if model_type is not None:
        families = [family_for(model_type)]
    else:
        named = _plain(metadata.get("modelspec.architecture", "").partition("/")[0])
        families = [each for each in all_families() if _plain(each.architecture) == named][:1]
        families = families or distinct_families()
    found: list[Recognised] = []
    for family in families:
        index = spellings(family, possible_layers(family, numbers))
        found.append(Recognised(family, index, read_with(tensors, index)))
    fewest = min(len(each.adapter.unplaced) for each in found)
    best = [each for each in found if len(each.adapter.unplaced) == fewest]
    if not best[0].adapter.tensors:
        raise AdapterError(_nothing(tensors, families))
    if len(best) > 1 and (width := _width(tensors)):
        best = [each for each in best if each.family.architecture.startswith(width)] or best
    if len(best) > 1:
        names = ", ".join(each.family.model_types[0].value for each in best)
        raise AdapterError(
            f"The file's keys fit several architectures alike: {names}. Say which by a model type."
        )
    return best[0]


def possible_layers(family: Family, numbers: Sequence[int]) -> dict[str, list[str]]:
    """By part: the paths of the layers of any model of an architecture.

    Args:
        family: the architecture.
        numbers: of the repeated blocks that may be there.
    """
    return {
        part: [
            pattern.format(*chosen)
            for pattern, free in patterns
            for chosen in product(numbers, repeat=free)
        ]
        for part, patterns in _patterns(family.architecture, family.pipeline).items()
    }


@cache
def _patterns(architecture: str, pipeline: str) -> dict[str, list[tuple[str, int]]]:
    """By part: the paths of its layers, `{}` for each number of a block, and how many there are."""
    (family, *_) = (
        each
        for each in all_families()
        if (each.architecture, each.pipeline) == (architecture, pipeline)
    )
    return {
        name: list(_repeated(network))
        for name, network in family.tiny().modules().items()
        if name in (family.denoiser, *family.text_encoders)
    }


def distinct_families() -> list[Family]:
    """The architectures, each once: of variants that name their layers alike, the first.

    Those that the installed diffusers does not have yet cannot be asked for their layers.
    """
    import diffusers

    found: list[Family] = []
    for family in all_families():
        if hasattr(diffusers, family.pipeline) and not any(
            type(other) is type(family) and other.lora_formats == family.lora_formats
            for other in found
        ):
            found.append(family)
    return found


def numbers_in(keys: Iterable[str]) -> list[int]:
    """The numbers in the keys, and so that of every block that they name: no layout renumbers.

    No model has a thousand blocks; larger numbers count steps and the like.
    """
    return sorted({int(each) for key in keys for each in BLOCK_NUMBER.findall(key)})


def _repeated(network: nn.Module) -> Iterator[tuple[str, int]]:
    """Patterns of the paths of layers, the numbers of blocks in lists left open.

    UNets are left as they are: their toys have as many blocks as the real ones, whose original
    names count on from level to level. Which of the blocks have attention is the model's choice.
    """
    lists = {
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and all(any(True for _ in each.children()) for each in module)
        and not any(isinstance(each, nn.ModuleList) for each in module)  # levels, of blocks
    }
    # what a block itself repeats, such as experts, is as many in every model
    lists = {path for path in lists if not any(path.startswith(f"{each}.") for each in lists)}
    paths = list(layer_paths(network))
    if hasattr(network, "down_blocks") and hasattr(network, "mid_block"):
        lists = set()
        paths += list(_attention_anywhere(network, paths))
    seen: set[tuple[str, ...]] = set()
    for path in paths:
        steps = path.split(".")
        free = [at for at in range(1, len(steps)) if ".".join(steps[:at]) in lists]
        template = tuple("{}" if at in free else step for at, step in enumerate(steps))
        if template in seen:
            continue
        seen.add(template)
        yield ".".join(template), len(free)


def _attention_anywhere(network: nn.Module, paths: list[str]) -> Iterator[str]:
    """What a UNet's attention layers would be called in its other blocks."""
    blocks: Any = network
    counts = {"down": len(blocks.down_blocks), "up": len(blocks.up_blocks)}
    for path in paths:
        if found := UNET_ATTENTION.match(path):
            for number in range(counts[found["side"]]):
                yield f"{found['side']}_blocks.{number}.{path[found.end() :]}"


def _width(tensors: Mapping[str, Tensor]) -> str:
    for key, tensor in tensors.items():
        if CROSS_ATTENTION.search(key) and tensor.shape[1] in WIDTHS:
            return WIDTHS[tensor.shape[1]]
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _nothing(tensors: Mapping[str, Tensor], families: list[Family]) -> str:
    where = families[0].architecture if len(families) == 1 else "any known architecture"
    example = next(iter(tensors), "none at all")
    return f"None of the file's {len(tensors)} keys, such as {example}, names a layer of {where}."
