"""Which encodings in a cache belong to which settings, so that no model must be loaded to know.

Encodings are filed under a fingerprint of the network that made them, which only a loaded network
has. A run notes the fingerprints of its encoders beside the cache, under the settings that decide
which encoders are loaded; whoever has the same settings finds them there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from modules.atomic import atomic_file
from modules.config import MODELS, ConfigError, DataType, TrainConfig, TrainingMethod
from modules.config.paths import resolve

FOLDER = "encoders"
"""Where the notes lie, below the folder of the cache."""

IMPORTED = "imported"
"""Where those lie below it that came along with a cache from elsewhere."""

_NOTE = re.compile(r"(image|hint|text)-[0-9a-f]{16}\.txt")
_SPACE = re.compile(r"((image|hint|text)-[0-9a-f]{16})?")
"""What the name of a note looks like, and what stands in it."""

NOTE_BYTES = 64
"""More than any note has."""

_WHOLE = (DataType.FLOAT_32, DataType.FLOAT_16, DataType.BFLOAT_16)
"""Types of weights that are used as they are stored; others are unpacked to the run's own."""


class Settings(NamedTuple):
    """What of a run decides which encoders it loads, and whether its captions are cached."""

    image: str
    text: str
    cached_text: bool

    @classmethod
    def of(cls, config: TrainConfig) -> Settings:
        """Those of a run."""
        facts = MODELS[config.model_type]
        method = config.training_method
        pictures = method is TrainingMethod.FINE_TUNE_VAE
        base: dict[str, Any] = {"model_type": config.model_type.value}
        base["base"] = config.base_model_name
        encoder = "effnet_encoder" if "effnet_encoder" in facts.parts else "vae"
        image = base | {encoder: _part(config, encoder), "pictures": pictures}
        image["tiles"] = config.force_circular_padding
        names = facts.text_encoders
        text = base | {name: _part(config, name) for name in names}
        for name in names:
            text[f"{name}.skip"] = getattr(config, f"{name}_layer_skip")
        for name in facts.conditioners:
            text[name] = _conditioner(config, facts.denoiser, name)
        text["lengths"] = [
            config.text_encoder_sequence_length,
            config.text_encoder_2_sequence_length,
        ]
        trained = method in (TrainingMethod.LORA, TrainingMethod.FINE_TUNE) and facts.text_training
        learns = trained and any(getattr(config, name).train for name in names)
        live = pictures or learns or bool(config.embeddings_in_use)
        return cls(_text(image), _text(text), not live)


def note(cache_dir: Path, settings: Settings, spaces: Mapping[str, str]) -> None:
    """Remember which encodings belong to settings.

    A note that cannot be written only costs knowledge, so that is no error.

    Args:
        cache_dir: folder of the cache.
        settings: the run's.
        spaces: folder below `cache_dir` by kind: image, hint, text; empty for what is not cached.
    """
    for kind, name in spaces.items():
        path = _path(cache_dir, settings, kind)
        with suppress(OSError):
            if _read(path) != name:
                with atomic_file(path) as temporary:
                    temporary.write_text(name, encoding="ascii")


def noted(cache_dir: Path, settings: Settings, kind: str) -> str | None:
    """The folder that holds a kind of encodings; empty if it is not cached, None if not known."""
    path = _path(cache_dir, settings, kind)
    own = _read(path)
    return _read(path.parent / IMPORTED / path.name) if own is None else own


def tells(cache_dir: Path, settings: Settings) -> bool:
    """Whether the notes tell what a cache has for settings, if only that it has nothing.

    Any note of a run here does; of those from elsewhere, where the same model may lie in another
    folder, only the one for these settings. An older cache has no notes at all.
    """
    here = any((cache_dir / FOLDER).glob("*.txt"))
    return here or noted(cache_dir, settings, "image") is not None


def all_notes(cache_dir: Path) -> dict[str, str]:
    """What each note says, by the name of its file; those of runs here before imported ones."""
    folder = cache_dir / FOLDER
    paths = [*(folder / IMPORTED).glob("*.txt"), *folder.glob("*.txt")]
    said = {path.name: _read(path) or "" for path in paths}
    return {name: text for name, text in sorted(said.items()) if is_note(name, text)}


def is_note(name: str, text: str) -> bool:
    """Whether a file of such a name and content is a note, and leads into a cache alone."""
    return bool(_NOTE.fullmatch(name) and _SPACE.fullmatch(text))


def take_notes(cache_dir: Path, notes: Mapping[str, str]) -> None:
    """Keep the notes that came along with a cache, by the names of their files."""
    for name, text in notes.items():
        with atomic_file(cache_dir / FOLDER / IMPORTED / name) as temporary:
            temporary.write_text(text, encoding="ascii")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


def _path(cache_dir: Path, settings: Settings, kind: str) -> Path:
    said = settings.text + str(settings.cached_text) if kind == "text" else settings.image
    digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return cache_dir / FOLDER / f"{kind}-{digest}.txt"


def _part(config: TrainConfig, name: str) -> dict[str, Any]:
    """Where a network comes from and how it is stored."""
    section = getattr(config, name)
    dtype = section.weight_dtype
    told = {"model": section.model_name, "dtype": dtype.value, "include": section.include}
    if dtype not in _WHOLE:
        told["unpacked"] = config.train_dtype.value
    return told | {"files": _files(section.model_name or config.base_model_name, name)}


def _conditioner(config: TrainConfig, denoiser: str, name: str) -> dict[str, Any]:
    """Where a network comes from that a single file of the denoiser may hold in its own stead."""
    told: dict[str, Any] = {"files": _files(config.base_model_name, name)}
    own = getattr(config, denoiser).model_name
    if Path(own).suffix == ".safetensors":
        told |= {"model": own, "own": _files(own, name)}
    return told


def _files(model: str, part: str) -> list[tuple[str, int, int]]:
    """Name, size and time of a network's files on this disk: weights change under the same path."""
    try:
        place = Path(resolve(model))
    except ConfigError:
        return []  # the settings' own checks name the package that is missing
    folder = place / part if (place / part).is_dir() else place
    found = sorted(folder.glob("*.*")) if folder.is_dir() else [folder]
    stats = [(path.name, path.stat()) for path in found if path.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in stats]


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
