"""The base of every config section: immutable, typed, and exact about what is wrong."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from typing_extensions import Self

from modules.config.enums import ModelType, TrainingMethod
from modules.config.explain import explain
from modules.config.problems import ConfigError, error

ANY_KEY = "*"
"""In the validation context's "kept": unknown keys are kept, because a file is being read."""


def no_bool(value: Any) -> Any:
    """Refuse true and false where a number is meant; pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Int = Annotated[int, BeforeValidator(no_bool)]
Count = Annotated[Int, Field(ge=0)]
Positive = Annotated[Int, Field(ge=1)]
Real = Annotated[float, BeforeValidator(no_bool), Field(allow_inf_nan=False)]
NonNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Show:
    """How a field is presented, and where it counts. Plain data: form, docs and checks read it."""

    unit: str = ""
    level: Literal["basic", "advanced"] = "advanced"
    applies: Literal["now", "epoch", "restart"] = "restart"
    """When a change during a run takes effect."""
    group: str = ""
    """Heading in form and docs; empty for that of the class."""
    families: frozenset[ModelType] | None = None
    """Model types that use it; None for all."""
    methods: frozenset[TrainingMethod] | None = None
    """Training methods that use it; None for all."""
    when: Mapping[str, tuple[Any, ...]] = dataclass_field(
        default_factory=lambda: MappingProxyType({})
    )
    """Other settings and the values they must have for this one to count."""
    omit: tuple[str, ...] = ()
    """On a section: its fields that mean nothing here."""
    only: Mapping[str, frozenset[TrainingMethod]] = dataclass_field(
        default_factory=lambda: MappingProxyType({})
    )
    """On a section: its fields that some training methods alone use here."""
    default: str = ""
    """The default in words, where it is not the same on every machine."""
    offers: str = ""
    """The fact of the model type (a field of `ModelFacts`) whose names are there to choose from."""


class Section(BaseModel):
    """Base of every config section.

    Built directly or by `update`, an unknown name is an error. Read from a file, it is kept for the
    round trip and reported by the reader.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        validate_default=False,
        protected_namespaces=(),
    )

    VERSION: ClassVar[int] = 0
    """Version of the section's layout in files."""
    GROUP: ClassVar[str] = ""
    """Heading of the fields that this class declares."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any, info: ValidationInfo) -> Any:
        """Refuse unknown names, and let a section that is given in part keep its defaults.

        A part's defaults depend on where it stands: a text encoder's are not a denoiser's.
        """
        if not isinstance(data, Mapping):
            return data
        kept = (info.context or {}).get("kept", ())
        filled = {name: value for name, value in data.items() if name != "__version"}
        for name, value in filled.items():
            field = cls.model_fields.get(name)
            if field is None and name not in kept and ANY_KEY not in kept:
                raise ValueError(unknown_name(str(name), cls.model_fields))
            if isinstance(value, str) and not _writable(value):
                raise ValueError(f"{name} holds characters that no file can hold. Remove them.")
            if field and isinstance(value, Mapping) and isinstance(field.default, Section):
                filled[name] = {**_fields_of(field.default), **value}
        return filled

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Only what is not as usual: a config has hundreds of settings."""
        usual = _usual(type(self))
        for name, value in _fields_of(self).items():
            if value != getattr(usual, name):
                yield name, value
        yield from (self.model_extra or {}).items()

    def get(self, path: str) -> Any:
        """The value at a dotted name, such as "unet.learning_rate" or "concepts.0.path".

        Raises:
            ConfigError: if there is none; names the nearest that exists.
        """
        value: Any = self
        for key in path.split("."):
            if isinstance(value, Section) and key in type(value).model_fields:
                value = getattr(value, key)
            elif isinstance(value, tuple) and key.isdigit() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, Mapping) and key in value:
                value = value[key]
            else:
                raise error(path, unknown_name(path, self.names()), "")
        return value

    def update(self, **changes: Any) -> Self:
        """A copy with some settings changed; names may be dotted (`**{"unet.train": False}`).

        A dict given for a section changes what it names and keeps the rest of the section.

        Raises:
            ConfigError: for an unknown name, or a value that its setting cannot take.
        """
        values: Any = self
        for path, value in changes.items():
            values = _changed(values, path.split("."), value, path, self)
        return self.parse(values, kept=_extra_keys(self)) if changes else self

    @classmethod
    def parse(cls, data: Any, kept: Iterable[str] = ()) -> Self:
        """A section from plain values, its errors in our words.

        Args:
            data: a mapping, or a section as it is.
            kept: names that may be there though no field has them; `ANY_KEY` for all.

        Raises:
            ConfigError: with a problem for each bad value.
        """
        try:
            return cls.model_validate(data, context={"kept": frozenset(kept)})
        except ValidationError as failure:
            raise ConfigError(explain(failure, cls)) from None
        except RecursionError:
            raise error("", "The config is nested too deeply.", "Flatten it.") from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, as OneTrainer reads them: `__version`, enum names, "inf"."""
        values: dict[str, Any] = {"__version": self.VERSION}
        for name in type(self).model_fields:
            values[name] = plain(getattr(self, name))
        return values | {name: plain(value) for name, value in (self.model_extra or {}).items()}

    @classmethod
    def conditions(cls, name: str) -> Mapping[str, tuple[Any, ...]]:
        """More conditions under which a field counts, as `Show.when` says them in this section."""
        del name
        return {}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Dotted names of all settings below this section, collections by their own name."""
        found: list[str] = []
        for name, info in cls.model_fields.items():
            section = info.annotation
            if isinstance(section, type) and issubclass(section, Section):
                found += [f"{name}.{inner}" for inner in section.names()]
            else:
                found.append(name)
        return tuple(found)


def unknown_name(name: str, known: Iterable[str]) -> str:
    """What to say about a name that no setting has; dotted names match by their last part too."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.6)
    if not close:
        tails = {full.rpartition(".")[2]: full for full in known}
        tail = difflib.get_close_matches(name.rpartition(".")[2], list(tails), 1, 0.75)
        close = [tails[tail[0]]] if tail else []
    hint = f"Did you mean {close[0]}?" if close else "See docs/options.md for the names."
    return f"{clip(name)} is no setting. {hint}"


def clip(value: Any, limit: int = 80) -> str:
    """A value as a message shows it: its repr, at most `limit` long; a str as it is."""
    text = value if isinstance(value, str) else _bounded_repr(value)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _writable(text: str) -> bool:
    """Whether a text can stand in a file: halves of characters, which JSON can name, cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _bounded_repr(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"
    return repr(value)


def plain(value: Any) -> Any:
    """A value as JSON holds it; infinities are OneTrainer's strings."""
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _changed(value: Any, keys: list[str], new: Any, path: str, root: Section) -> Any:
    """`value` with `new` put at `keys` below it; sections on the way become plain dicts."""
    if not keys:
        if isinstance(value, Section) and isinstance(new, Mapping):
            for key, inner in new.items():
                value = _changed(value, [str(key)], inner, f"{path}.{key}", root)
            return value
        return new
    key, rest = keys[0], keys[1:]
    if isinstance(value, Section):
        known = {**_fields_of(value), **(value.model_extra or {})}
        if key not in known:
            raise error(path, unknown_name(path, root.names()), "")
        return known | {key: _changed(known[key], rest, new, path, root)}
    if isinstance(value, dict):
        return value | {key: _changed(value.get(key), rest, new, path, root)}
    if isinstance(value, (tuple, list)) and key.isdigit() and int(key) < len(value):
        items = list(value)
        items[int(key)] = _changed(items[int(key)], rest, new, path, root)
        return items
    raise error(path, unknown_name(path, root.names()), "")


@lru_cache(maxsize=64)
def _usual(cls: type[Section]) -> Section:
    return cls()


def _fields_of(section: Section) -> dict[str, Any]:
    return {name: getattr(section, name) for name in type(section).model_fields}


def _extra_keys(value: Any) -> set[str]:
    """Unknown keys that a section and those below it keep from their file."""
    if isinstance(value, Section):
        found = set(value.model_extra or {})
        for inner in _fields_of(value).values():
            found |= _extra_keys(inner)
        return found
    if isinstance(value, tuple):
        return set().union(*map(_extra_keys, value))
    if isinstance(value, Mapping):
        return set().union(*map(_extra_keys, value.values()))
    return set()
