"""The settings as data: what form, docs, command line and schema are made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from modules.config.enums import ModelType, TrainingMethod
from modules.config.models import MODELS
from modules.config.section import Section, Show


@dataclass(frozen=True)
class Setting:
    """One setting, as a form or a page of documentation shows it."""

    path: str
    """Dotted name, such as "unet.learning_rate"."""
    annotation: Any
    """Python type of the value, without its "or null"."""
    nullable: bool
    """Whether null is a value."""
    choices: tuple[Enum, ...]
    """Members of the enumeration it is of; empty for other types."""
    default: Any = field(hash=False)
    help: str
    """What it does, in a sentence."""
    unit: str
    group: str
    """Heading under which it stands."""
    level: Literal["basic", "advanced"]
    applies: Literal["now", "epoch", "restart"]
    """When a change during a run takes effect."""
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    exclusive_maximum: bool
    families: frozenset[ModelType] | None
    """Model types that use it; None for all."""
    methods: frozenset[TrainingMethod] | None
    """Training methods that use it; None for all."""
    when: Mapping[str, tuple[Any, ...]] = field(hash=False)
    """Other settings, by dotted name, and the values they must have for this one to count."""
    default_text: str
    """The default in words, where it differs between machines; else empty."""

    offers: str
    """The fact of the model type whose names are there to choose from; empty for none."""

    def offered(self, config: Section) -> tuple[str, ...]:
        """Names to choose from for the config's model type, where it may also hold others."""
        return tuple(getattr(MODELS[config.get("model_type")], self.offers)) if self.offers else ()

    def applies_to(self, config: Section) -> bool:
        """Whether the setting counts for a config: its model type, method and other settings."""
        return self.fits_model(config) and self.is_reached(config)

    def fits_model(self, config: Section) -> bool:
        """Whether the config's model type uses it."""
        return self.families is None or config.get("model_type") in self.families

    def is_reached(self, config: Section) -> bool:
        """Whether the config's method and other settings use it."""
        if self.methods is not None and config.get("training_method") not in self.methods:
            return False
        return all(config.get(name) in values for name, values in self.when.items())


@lru_cache(maxsize=64)
def settings(cls: type[Section], collections: bool = False) -> tuple[Setting, ...]:
    """Every setting of a config class, in order, sections flattened.

    Args:
        cls: `TrainConfig`, `ConceptConfig`, `SampleConfig` or any other section.
        collections: include settings that hold lists or objects, which no simple control can edit.
    """
    return tuple(
        setting
        for setting in _described(cls(), "", "", Show())
        if collections or _is_scalar(setting.annotation)
    )


def _is_scalar(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, (bool, int, float, str, Enum))


def _described(defaults: Section, prefix: str, group: str, outer: Show) -> Iterator[Setting]:
    cls = type(defaults)
    for name, info in cls.model_fields.items():
        if name in outer.omit:
            continue
        own = next((item for item in info.metadata if isinstance(item, Show)), Show())
        own = replace(own, methods=_both(own.methods, outer.only.get(name)))
        show = _inside(outer, own, prefix, cls.conditions(name))
        heading = own.group or group or _home(cls, name).GROUP
        value = getattr(defaults, name)
        if isinstance(value, Section):
            yield from _described(value, f"{prefix}{name}.", own.group or value.GROUP, show)
            continue
        kind, nullable = _without_none(info.annotation)
        minimum, exclusive_minimum = _bound(info, annotated_types.Ge, annotated_types.Gt)
        maximum, exclusive_maximum = _bound(info, annotated_types.Le, annotated_types.Lt)
        yield Setting(
            path=f"{prefix}{name}",
            annotation=kind,
            nullable=nullable,
            choices=tuple(kind) if isinstance(kind, type) and issubclass(kind, Enum) else (),
            default=value,
            help=" ".join((info.description or "").split()),
            unit=show.unit,
            group=heading,
            level=show.level,
            applies=show.applies,
            minimum=minimum,
            maximum=maximum,
            exclusive_minimum=exclusive_minimum,
            exclusive_maximum=exclusive_maximum,
            families=show.families,
            methods=show.methods,
            when=show.when,
            default_text=show.default,
            offers=show.offers,
        )


def _inside(outer: Show, own: Show, prefix: str, more: Mapping[str, tuple[Any, ...]]) -> Show:
    """A field's presentation, narrowed by that of the section it is in."""
    when = {f"{prefix}{name}": values for name, values in {**own.when, **more}.items()}
    return replace(
        own,
        families=_both(outer.families, own.families),
        methods=_both(outer.methods, own.methods),
        when=MappingProxyType({**outer.when, **when}),
    )


Kind = TypeVar("Kind")


def _both(first: frozenset[Kind] | None, second: frozenset[Kind] | None) -> frozenset[Kind] | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second


def _home(cls: type[Section], name: str) -> type[Section]:
    """The class that declares a field; its group is the field's."""
    for base in cls.__mro__:
        if issubclass(base, Section) and name in base.model_fields and name not in _inherited(base):
            return base
    return cls


def _inherited(cls: type[Section]) -> set[str]:
    return {
        name for base in cls.__bases__ if issubclass(base, Section) for name in base.model_fields
    }


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """The type inside `X | None` and inside `Annotated`, and whether null was among them."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        nullable = len(kinds) < len(get_args(annotation))
        return _without_none(kinds[0])[0], nullable
    return annotation, False


def _bound(info: FieldInfo, inclusive: type, exclusive: type) -> tuple[float | None, bool]:
    """A limit of a field and whether the limit itself is excluded."""
    for item in _constraints(info):
        if isinstance(item, inclusive):
            return getattr(item, inclusive.__name__.lower()), False
        if isinstance(item, exclusive):
            return getattr(item, exclusive.__name__.lower()), True
    return None, False


def _constraints(info: FieldInfo) -> Iterator[Any]:
    """A field's constraints, those inside `X | None` too."""
    yield from info.metadata
    pending = [info.annotation]
    while pending:
        kind = pending.pop()
        if get_origin(kind) is Annotated:
            for item in get_args(kind)[1:]:
                yield from item.metadata if isinstance(item, FieldInfo) else [item]
        pending += get_args(kind) if get_origin(kind) in (Annotated, Union, UnionType) else []
