"""Embedding files: the layouts that tools give new words, and words inside adapter files.

Keys are those of `Family.words`, such as `emp_params` or `clip_l`, followed by `_out` where the
vectors take the place of an encoder's output. Also read: the one tensor of diffusers, whatever it
is called, and the `.pt` of the first web interface (`string_to_param`).

Shapes: N vectors of a word, D width of a text encoder.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from modules.adapters.embeddings import Word, readers
from modules.adapters.files import AdapterError
from modules.config import ModelType
from modules.families.base import Family, Parts

OUTPUT = "_out"
BUNDLED = "bundle_emb."
"""Begins the keys of embeddings in an adapter file: `bundle_emb.<placeholder>.<key>`."""
STABLE_DIFFUSION_WIDTHS = (768, 1024)
"""Of the text encoder of 1.x and of 2.x."""
SUFFIXES = (".safetensors", ".pt", ".bin", ".pth")


class EmbeddingError(AdapterError):
    """An embedding file that does not fit the model, or is none; the text says what it is."""


def to_file(word: Word, family: Family) -> dict[str, Tensor]:
    """A word's vectors [N, D] as a file holds them."""
    return {
        family.words[name].key + (OUTPUT if name in word.behind else ""): rows
        for name, rows in word.vectors.items()
    }


def bundled(word: Word, family: Family) -> dict[str, Tensor]:
    """A word's vectors as an adapter file holds them."""
    tensors = to_file(word, family)
    return {f"{BUNDLED}{word.placeholder}.{key}": rows for key, rows in tensors.items()}


def unbundled(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """What of an adapter file is adapter, and the embeddings in it by their placeholders."""
    rest: dict[str, Tensor] = {}
    words: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if key.startswith(BUNDLED):
            placeholder, _, name = key.removeprefix(BUNDLED).rpartition(".")
            words[placeholder][name] = tensor
        else:
            rest[key] = tensor
    return rest, dict(words)


def read_embedding(path: Path) -> dict[str, Tensor]:
    """The tensors of an embedding file, as it names them.

    Raises:
        EmbeddingError: if it is gone, or is something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise EmbeddingError(f"{path} does not exist. Check the path of the embedding.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise EmbeddingError(f"{path} cannot be read as an embedding: {error}.") from error
    if isinstance(found, dict) and isinstance(found.get("string_to_param"), Mapping):
        found = dict(found["string_to_param"])
    if isinstance(found, Mapping) and all(isinstance(rows, Tensor) for rows in found.values()):
        return dict(found)
    raise EmbeddingError(f"{path} holds no embedding, but {type(found).__name__}.")


def named_as_here(
    tensors: Mapping[str, Tensor], kind: ModelType | None, source: str
) -> dict[str, Tensor]:
    """An embedding's tensors [N, D] by the keys that this and other trainers write.

    Args:
        tensors: what a file of any layout holds.
        kind: the model it is for, where the keys do not tell it.
        source: what to call the file in a message.

    Raises:
        EmbeddingError: if there is no telling what they are.
    """
    from modules.families import all_families, family_for

    families = [family_for(kind)] if kind else list(all_families())
    known = {place.key for family in families for place in family.words.values()}
    if all(key.removesuffix(OUTPUT) in known for key in tensors):
        return {key: rows.reshape(-1, rows.shape[-1]) for key, rows in tensors.items()}
    alone = [list(family.words.values()) for family in families if len(family.words) == 1]
    (rows, *more) = tensors.values()
    if kind is None and rows.shape[-1] in STABLE_DIFFUSION_WIDTHS:
        alone = [[place] for places in alone for place in places if place.key == "emp_params"][:1]
    if more or len(alone) != 1:
        raise EmbeddingError(
            f"{source} holds {', '.join(sorted(tensors)[:3])}, which does not say what it is an "
            f"embedding for. Name the model type."
        )
    return {alone[0][0].key: rows.reshape(-1, rows.shape[-1])}


def as_word(
    placeholder: str, tensors: Mapping[str, Tensor], family: Family, parts: Parts, source: str
) -> Word:
    """The word that a file's tensors are for a loaded model.

    Args:
        placeholder: how texts write it.
        tensors: what the file holds.
        family: the architecture.
        parts: its networks.
        source: what to call the file in a message.

    Raises:
        EmbeddingError: if they are of another architecture.
    """
    known = {
        family.words[name].key + suffix: name
        for name in readers(family, parts)
        for suffix in (("",) if family.words[name].layer is None else ("", OUTPUT))
    }
    if len(tensors) == 1 and len(readers(family, parts)) == 1 and not tensors.keys() & known.keys():
        (rows,) = tensors.values()
        tensors = {family.words[readers(family, parts)[0]].key: rows}
    vectors: dict[str, Tensor] = {}
    behind: set[str] = set()
    for key in sorted(tensors):  # `clip_l_out` after `clip_l`, whose place it takes
        if key not in known:
            continue
        rows = tensors[key].reshape(-1, tensors[key].shape[-1])
        width = parts.module(known[key]).get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        if rows.shape[1] != width:
            raise EmbeddingError(
                f"{source} is made for another model: {key} is {tuple(rows.shape)}, but "
                f"{known[key]} of {family.architecture} takes vectors of {width} numbers."
            )
        vectors[known[key]] = rows
        if key.endswith(OUTPUT):
            behind.add(known[key])
    if not vectors:
        found, expected = ", ".join(sorted(tensors)[:3]) or "nothing", ", ".join(sorted(known)[:4])
        raise EmbeddingError(
            f"{source} is no embedding for {family.architecture}: it holds {found}, where "
            f"{expected} is expected."
        )
    return Word(placeholder, vectors, frozenset(behind))
