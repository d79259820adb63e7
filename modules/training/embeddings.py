"""Textual inversion: words whose vectors train, alone or beside a model or its adapter.

Source: Gal et al. 2022, arXiv:2208.01618.

Shapes: T tokens, N vectors of a word, D width of a text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.adapters.embedding_files import (
    EmbeddingError,
    as_word,
    bundled,
    read_embedding,
    to_file,
)
from modules.adapters.embeddings import Word, Words, hidden_state, layer_of, readers, tokenizer_of
from modules.adapters.files import save_tensors
from modules.config import ConfigError, Problem, TrainConfig, TrainEmbeddingConfig
from modules.config.paths import resolve
from modules.data import Dataset
from modules.families import Family, Parts
from modules.families.loading import DTYPES

Bundle = Mapping[str, Mapping[str, Tensor]]
"""Embeddings that an adapter file brought, by their placeholders."""


class Embeddings:
    """The embeddings of a run: live from now on, with what trains of them and their files.

    Args:
        config: which there are and how they train.
        family: the architecture.
        parts: its networks.
        bundle: embeddings to go on from that the run's adapter file holds.
    """

    def __init__(
        self, config: TrainConfig, family: Family, parts: Parts, bundle: Bundle | None = None
    ) -> None:
        self._family = family
        self._settings = config.embeddings_in_use
        self._words: dict[str, Word] = {}
        self.trainable: dict[str, list[nn.Parameter]] = {}
        """What trains, by the path of its settings."""
        bundle = bundle or {}
        placeholders = {each.placeholder for each in self._settings.values()}
        if foreign := sorted(bundle.keys() - placeholders):
            raise _error(
                "lora_model_name",
                f"{config.lora_model_name} brings an embedding {foreign[0]}, which this run lacks.",
                "Add it to additional_embeddings.",
            )
        dtype = DTYPES[config.embedding_weight_dtype]
        for path, settings in self._settings.items():
            word = _first(path, settings, family, parts, bundle.get(settings.placeholder))
            parameters = {
                name: nn.Parameter(rows.detach().to(_device(parts, name), dtype, copy=True), False)
                for name, rows in word.vectors.items()
            }
            self._words[path] = Word(settings.placeholder, parameters, word.behind)
            chosen = [
                parameter
                for name, parameter in parameters.items()
                if settings.train and config.get(name).train_embedding
            ]
            for parameter in chosen:
                parameter.requires_grad_(True)
            if chosen:
                self.trainable[path] = chosen
        self.networks = {name: parts.module(name) for name in readers(family, parts)}
        """What their gradients come through, besides the denoiser."""
        self._held = self._lengths(parts) if config.preserve_embedding_norm else []
        self._live = Words(family, parts, list(self._words.values()))
        self.put_aside = self._live.put_aside
        """Inside this block the pipeline has its own tokenizers, as a saved model shall."""

    def check(self, dataset: Dataset) -> None:
        """Refuse to train a word that no caption holds.

        Raises:
            ConfigError: if there is one.
        """
        for path in self.trainable:
            name = self._settings[path].placeholder
            spellings = (name, name.lower())
            captions = (
                dataset.caption(index, variation)
                for variation in range(CAPTIONS)
                for index in range(len(dataset))
            )
            if not any(spelling in caption for caption in captions for spelling in spellings):
                raise _error(
                    f"{path}.placeholder",
                    f"No caption of the training set holds {name!r}, so it would learn nothing.",
                    f"Write {name} into captions, or turn {path}.train off.",
                )

    @torch.no_grad()
    def hold_lengths(self) -> None:
        """Bring what trains back to its usual length, if the config says so; after each step."""
        for rows, behind, usual in self._held:
            if rows.requires_grad:
                now = _spread(rows) if behind else rows.float().norm(dim=1, keepdim=True)
                rows.copy_(rows.float() * (usual / now.clamp(min=torch.finfo(now.dtype).tiny)))

    def bundle(self) -> dict[str, Tensor]:
        """All of them as an adapter file holds them."""
        return {
            key: rows
            for word in self._words.values()
            for key, rows in bundled(word, self._family).items()
        }

    def write(self, path: Path, config: TrainConfig, metadata: Mapping[str, str]) -> None:
        """The file of the one that EMBEDDING trains, and of the others in a folder beside it."""
        dtype = DTYPES[config.output_dtype]
        notes = {**self._family.metadata("embedding"), **metadata}
        for name, file in embedding_files(self._settings, path).items():
            word = self._words[name]
            tensors = to_file(word, self._family)
            if wrong := [key for key, rows in tensors.items() if not rows.isfinite().all()]:
                raise ValueError(
                    f"{wrong[0]} of {word.placeholder} holds numbers that are not finite; it was "
                    f"not written. Lower the learning rate, and go on from a backup."
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(tensors, file, dtype, notes)

    def write_backup(self, folder: Path) -> None:
        """`embeddings/<uuid>.safetensors` for each."""
        (folder / "embeddings").mkdir()
        for path, file in backup_files(self._settings, folder).items():
            word = self._words[path]
            save_tensors(to_file(word, self._family), file, torch.float32)

    @torch.no_grad()
    def read_backup(self, folder: Path) -> None:
        """Take the vectors of a backup.

        Raises:
            ValueError: if they are of another shape.
            OSError: if there are none of one of them.
        """
        for path, file in backup_files(self._settings, folder).items():
            word = self._words[path]
            found = read_embedding(file)
            for key, rows in to_file(word, self._family).items():
                if key not in found or found[key].shape != rows.shape:
                    shape = tuple(found[key].shape) if key in found else "missing"
                    raise ValueError(
                        f"{key} of {word.placeholder} is {shape} in the backup, "
                        f"{tuple(rows.shape)} in this run"
                    )
                rows.copy_(found[key])

    def _lengths(self, parts: Parts) -> list[tuple[Tensor, bool, Tensor]]:
        """Each vector's rows, whether behind the encoder, and the length that they shall have.

        Before an encoder that is the median length of the words in its table; behind it, the
        spread that they began with.
        """
        found = []
        for word in self._words.values():
            for name, rows in word.vectors.items():
                behind = name in word.behind
                usual = _spread(rows.detach()) if behind else _median_length(parts, name)
                found.append((rows, behind, usual))
        return found


def embedding_files(settings: Mapping[str, TrainEmbeddingConfig], path: Path) -> dict[str, Path]:
    """Where a run's result at `path` has its embeddings, by the paths of their settings."""
    files: dict[str, Path] = {}
    folder = path.with_name(f"{path.name}_embeddings")
    for name, each in settings.items():
        stem = _safe(each.placeholder) or _safe(each.uuid)
        file = path if name == "embedding" else folder / f"{stem}.safetensors"
        number = 1
        while file in files.values():  # <a> and a
            number += 1
            file = folder / f"{stem}-{number}.safetensors"
        files[name] = file
    return files


def backup_files(settings: Mapping[str, TrainEmbeddingConfig], folder: Path) -> dict[str, Path]:
    """Where a backup has its embeddings, by the paths of their settings."""
    return {
        name: folder / "embeddings" / f"{_safe(each.uuid)}.safetensors"
        for name, each in settings.items()
    }


CAPTIONS = 8
"""Variations of each caption that are looked through for a word: tags may be left out of some."""


def _first(
    path: str,
    settings: TrainEmbeddingConfig,
    family: Family,
    parts: Parts,
    brought: Mapping[str, Tensor] | None,
) -> Word:
    """What a word begins from: a file, the run's adapter file, or the initial text."""
    if not settings.model_name and brought is None:
        return _new(path, settings, family, parts)
    source = settings.model_name or f"the embedding {settings.placeholder} of the adapter file"
    try:
        if settings.model_name:
            brought = read_embedding(Path(resolve(settings.model_name)))
        word = as_word(settings.placeholder, brought or {}, family, parts, source)
    except EmbeddingError as error:
        fix = "Give the file of an embedding for this model, or leave it empty to begin anew."
        raise _error(f"{path}.model_name", str(error), fix) from error
    if bool(word.behind) != settings.is_output_embedding:
        found = "an output embedding" if word.behind else "no output embedding"
        raise _error(
            f"{path}.is_output_embedding",
            f"{path}.is_output_embedding is {str(settings.is_output_embedding).lower()}, but "
            f"{source} is {found}.",
            f"Set it to {str(bool(word.behind)).lower()}.",
        )
    missing = [name for name in readers(family, parts) if name not in word.vectors]
    if missing:
        fresh = _new(path, settings, family, parts)
        vectors = {**{name: fresh.vectors[name] for name in missing}, **word.vectors}
        word = Word(word.placeholder, vectors, word.behind | (fresh.behind & set(missing)))
    return word


def _new(path: str, settings: TrainEmbeddingConfig, family: Family, parts: Parts) -> Word:
    behind = frozenset(
        name
        for name in readers(family, parts)
        if settings.is_output_embedding and family.words[name].layer is not None
    )
    vectors = {}
    for name in readers(family, parts):
        ids = _initial_ids(path, settings, tokenizer_of(parts, name))
        if name in behind:
            vectors[name] = _output_of(ids, name, family, parts)
        else:
            vectors[name] = _table(parts, name)[ids]
    return Word(settings.placeholder, vectors, behind)


def _initial_ids(path: str, settings: TrainEmbeddingConfig, tokenizer: Any) -> list[int]:
    """Ids of the initial text, filled up with those of * to the wanted count."""
    ids: list[int] = tokenizer(settings.initial_embedding_text, add_special_tokens=False).input_ids
    count = settings.token_count or len(ids)
    if not count:
        raise _error(
            f"{path}.token_count",
            f"{path}.token_count is empty, and so is the initial text that it would be taken from.",
            "Give one of the two.",
        )
    filler = tokenizer("*", add_special_tokens=False).input_ids[0]
    return [*ids, *[filler] * count][:count]


@torch.no_grad()
def _output_of(ids: list[int], name: str, family: Family, parts: Parts) -> Tensor:
    """What the model reads of an encoder for these ids, [N, D]."""
    tokenizer, encoder = tokenizer_of(parts, name), parts.module(name)
    one = tokenizer("*").input_ids
    start = one.index(tokenizer("*", add_special_tokens=False).input_ids[0])
    whole = [*one[:start], *ids, *one[start + 1 :]]
    device = _device(parts, name)
    output = encoder(torch.tensor([whole], device=device), output_hidden_states=True)
    rows: Tensor = hidden_state(output, layer_of(parts, name, family.words[name]))[0]
    return rows[start : start + len(ids)].float()


def _table(parts: Parts, name: str) -> Tensor:
    encoder: Any = parts.module(name)
    weight: Tensor = encoder.get_input_embeddings().weight
    return weight.detach()


def _device(parts: Parts, name: str) -> torch.device:
    return _table(parts, name).device


def _median_length(parts: Parts, name: str) -> Tensor:
    known = _table(parts, name)[: len(tokenizer_of(parts, name))]
    return torch.median(known.float().norm(dim=1))


def _spread(rows: Tensor) -> Tensor:
    return torch.mean(rows.float().std(dim=1))


def _safe(name: str) -> str:
    """A name as every file system takes it."""
    return re.sub(r"[^\w.#-]+", "", name).strip(".")[:100]


def _error(field: str, message: str, fix: str) -> ConfigError:
    return ConfigError([Problem(field, "error", message, fix)])
