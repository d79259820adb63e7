"""Reading and writing configs, concepts and samples as OneTrainer's JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modules.atomic import atomic_file
from modules.config.concept_config import ConceptConfig
from modules.config.migrations import RETIRED, migrate, migrate_concept
from modules.config.paths import resolve
from modules.config.problems import ConfigError, Problem, error
from modules.config.resolve import resolve_loaded
from modules.config.sample_config import SampleConfig
from modules.config.section import ANY_KEY, Section, clip, unknown_name

if TYPE_CHECKING:
    from modules.config.train_config import TrainConfig

    Config = TypeVar("Config", bound=TrainConfig)

MAX_BYTES = 64 * 2**20
"""Larger files are no configs; a real one is below a megabyte, however many concepts it has."""
MAX_DEPTH = 64
MAX_REPORTED = 100
"""Unknown keys that are reported one by one."""
SECRET_NAMES = frozenset({"huggingface_token", "hf_token", "api_key", "password", "key_file"})
"""Keys that are never kept, wherever they stand; no setting has such a name."""
_SILENT = ("__version", "__description")
"""Keys about the file itself."""


Source = str | PathLike[str] | Mapping[str, Any]


def load(
    cls: type[Config], source: Source, preset: Source | None = None
) -> tuple[Config, list[Problem]]:
    """See `TrainConfig.load`."""
    warnings: list[Problem] = []
    data, folder = _migrated(source, warnings)
    if preset is not None:
        below, _ = _migrated(preset, warnings)
        data = _laid_over(below, data)
    config = cls.parse(resolve_loaded(data, warnings), kept=(ANY_KEY,))
    _report_unknown(config, warnings)
    return _with_files(config, folder, warnings), warnings


def _migrated(source: Source, warnings: list[Problem]) -> tuple[dict[str, Any], Path]:
    """The plain values of a source in today's layout, and the folder it lies in."""
    if isinstance(source, Mapping):
        return _prepared(dict(_copied(source)), warnings), Path()
    path = Path(resolve(fspath(source)))
    data = read_json(path, warnings)
    if isinstance(data, list):
        raise error(
            "",
            f"{path} holds a list, as files of concepts or samples do, not a config.",
            "Name it in concept_file_name or sample_definition_file_name of a config.",
        )
    if not isinstance(data, Mapping):
        raise error("", f"The config is {clip(data)}, but must be an object.", "Name another file.")
    return _prepared(dict(_copied(data)), warnings), path.parent


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two sets of values as one; in a section that both have, what stands above wins."""
    merged = {**below, **above}
    for name, value in above.items():
        under = below.get(name)
        if not isinstance(value, dict) or not isinstance(under, dict):
            continue
        same = name != "optimizer" or value.get("optimizer") in (None, under.get("optimizer"))
        merged[name] = _laid_over(under, value) if same else value
    for stated, derived in (
        ("layer_filter_preset", ("layer_filter", "layer_filter_regex")),
        ("layer_filter", ("layer_filter_preset", "layer_filter_regex")),
    ):
        if stated in above:  # what stands below it was said about another filter
            for name in set(derived) - above.keys():
                merged.pop(name, None)
    return merged


def load_concepts(path: Path) -> tuple[tuple[ConceptConfig, ...], list[Problem]]:
    """The concepts of a concepts file, and a warning for each key that nothing knows.

    Raises:
        ConfigError: if it cannot be read, or holds no list of concepts.
    """
    return _load_list(path, ConceptConfig, "concepts")


def load_samples(
    path: Path, usual: Mapping[str, Any]
) -> tuple[tuple[SampleConfig, ...], list[Problem]]:
    """The definitions of a samples file; `usual` fills what they leave out.

    Raises:
        ConfigError: if it cannot be read, or holds no list of samples.
    """
    return _load_list(path, SampleConfig, "samples", usual)


def read_json(path: Path, warnings: list[Problem]) -> Any:
    """The JSON of a file; a name that stands twice in an object is a warning, the last one counts.

    Raises:
        ConfigError: if the file is missing, too large or no JSON that a config can be.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise error("", f"{path} does not exist.", "Check the path.") from None
    except OSError as failure:
        raise error("", f"{path} cannot be read: {failure.strerror}.", "Check the path.") from None
    if len(raw) > MAX_BYTES:
        raise error("", f"{path} is larger than 64 MiB, so it is no config.", "Check the path.")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in made if names.count(name) > 1)
            message = f"{clip(twice)} stands twice in one object of {path.name}."
            warnings.append(
                Problem("", "warning", message, "The last one counts; remove the rest.")
            )
        return made

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number that JSON knows")

    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError as failure:
        message = f"{path} is no UTF-8 text (byte {failure.start})."
        raise error("", message, "Save it as UTF-8.") from None
    except RecursionError:
        raise error("", f"{path} is nested too deeply.", "Check that it is a config.") from None
    except ValueError as failure:
        message = f"{path} is no JSON: {clip(str(failure), 200)}."
        raise error("", message, "Mend the file, or export it again.") from None


def write_json(path: Path, data: Any) -> None:
    """Write JSON as OneTrainer does, indented by four; all of it, or nothing."""
    text = json.dumps(data, indent=4, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _prepared(data: dict[str, Any], warnings: list[Problem]) -> dict[str, Any]:
    """In today's layout, without secrets and keys about the file."""
    held: list[str] = []
    data = _without_secrets(data, held)
    if held:
        message = f"The file holds secrets ({', '.join(sorted(set(held)))}), which no config keeps."
        fix = "Put them into secrets.json or the HF_TOKEN environment variable, and remove them."
        warnings.append(Problem("secrets", "warning", message, fix))
    data = migrate(data, warnings)
    concepts = data.get("concepts")
    if isinstance(concepts, list):
        data["concepts"] = [migrate_concept(c) if isinstance(c, dict) else c for c in concepts]
    own = data.get("optimizer_defaults")
    if isinstance(own, dict):
        data["optimizer_defaults"] = {
            name: {"optimizer": name, **values} if isinstance(values, dict) else values
            for name, values in own.items()
        }
    cleaned: dict[str, Any] = _without(data, _SILENT)
    return cleaned


def _with_files(config: Config, folder: Path, warnings: list[Problem]) -> Config:
    """The config with the concepts and samples of the files that it names, where they exist."""
    from modules.config.models import MODELS

    found: dict[str, Any] = {}
    if config.concepts is None and (path := _beside(folder, config.concept_file_name)):
        found["concepts"], more = load_concepts(path)
        warnings += more
    if config.samples is None and (path := _beside(folder, config.sample_definition_file_name)):
        found["samples"], more = load_samples(path, MODELS[config.model_type].sampling)
        warnings += more
    return config.model_copy(update=found) if found else config


def _beside(folder: Path, name: str) -> Path | None:
    """A file named by a config: as it stands, or beside the config."""
    try:
        path = Path(resolve(name))
        return next((p for p in (path, folder / path) if name and p.is_file()), None)
    except (ConfigError, OSError, ValueError):
        return None  # reported by `validate`, which knows whether the file is needed


ListItem = TypeVar("ListItem", bound=Section)


def _load_list(
    path: Path, cls: type[ListItem], what: str, usual: Mapping[str, Any] | None = None
) -> tuple[tuple[ListItem, ...], list[Problem]]:
    warnings: list[Problem] = []
    data = read_json(path, warnings)
    if not isinstance(data, list):
        raise error(what, f"{path} holds no list of {what}.", f"Name a file of {what}.")
    made = []
    for number, item in enumerate(_copied(data)):
        if isinstance(item, dict):
            item = migrate_concept(item) if cls is ConceptConfig else item
            item = {**(usual or {}), **_without(item, _SILENT)}
        try:
            made.append(cls.parse(item, kept=(ANY_KEY,)))
        except ConfigError as failure:
            raise ConfigError(
                [
                    Problem(f"{what}.{number}.{p.field}".rstrip("."), *_rest(p))
                    for p in failure.problems
                ]
            ) from None
        _report_unknown(made[-1], warnings, f"{what}.{number}.")
    return tuple(made), warnings


def _rest(problem: Problem) -> tuple[Any, str, str]:
    return problem.severity, problem.message, problem.fix


def _copied(value: Any, *path: str) -> Any:
    """Plain containers copied, so that nothing of the caller's is changed."""
    if len(path) > MAX_DEPTH:
        raise error("", f"The config is nested more than {MAX_DEPTH} deep.", "Flatten it.")
    if isinstance(value, Mapping):
        return {str(key): _copied(inner, *path, str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(inner, *path, str(number)) for number, inner in enumerate(value)]
    if isinstance(value, float) and math.isnan(value):
        name = clip(".".join(path))
        raise error(name, f"{name} is nan, but must be a finite number.", "Give a number.")
    return value


def _without(value: Any, names: tuple[str, ...]) -> Any:
    """A copy without some keys, at every depth."""
    if isinstance(value, dict):
        return {key: _without(inner, names) for key, inner in value.items() if key not in names}
    if isinstance(value, list):
        return [_without(inner, names) for inner in value]
    return value


def _without_secrets(value: Any, held: list[str]) -> Any:
    """A copy without secrets at any depth; the names of those that were filled go to `held`."""
    if isinstance(value, dict):
        kept = {}
        for name, inner in value.items():
            if name == "secrets":
                _without_secrets(inner, held)
            elif name not in SECRET_NAMES:
                kept[name] = _without_secrets(inner, held)
            elif inner:
                held.append(name)
        return kept
    if isinstance(value, list):
        return [_without_secrets(inner, held) for inner in value]
    return value


def _report_unknown(section: Section, warnings: list[Problem], prefix: str = "") -> None:
    """Append a warning for each key that no setting has; after many, one for the rest."""
    found = list(_unknown(section))
    for outer, path, known in found[:MAX_REPORTED]:
        name = f"{prefix}{outer}{path}"
        if name in RETIRED:
            message = f"{name} is a setting of old versions that nothing reads any more."
            warnings.append(Problem(name, "warning", message, "It is kept, and has no effect."))
            continue
        _, _, hint = unknown_name(path, known).partition(" is no setting. ")
        message = f"{clip(name)} is no setting."
        warnings.append(Problem(clip(name), "warning", message, f"It is kept. {hint}"))
    if len(found) > MAX_REPORTED:
        message = f"{len(found) - MAX_REPORTED} more keys are no settings."
        warnings.append(Problem("", "warning", message, "They are kept."))


def _unknown(
    section: Section, known: tuple[str, ...] = (), outer: str = "", prefix: str = ""
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Unknown keys: the list item they are in, their dotted name in it, the names known there."""
    known = known or type(section).names()
    for name in section.model_extra or {}:
        yield outer, f"{prefix}{name}", known
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _unknown(value, known, outer, f"{prefix}{name}.")
            continue
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, tuple):
            items = enumerate(value)
        elif isinstance(value, Mapping):
            items = value.items()
        for key, item in items:
            if isinstance(item, Section):
                yield from _unknown(item, (), f"{outer}{prefix}{name}.{key}.")
