"""Settings are dataclass fields with a meaning and bounds, which one function checks and one phrasing reports."""

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


def setting(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    multiple_of: int | None = None,
    length: int | None = None,
    one_of: tuple[object, ...] | None = None,
) -> Any:
    """Make a dataclass field with a default, a one-line meaning and bounds; ``--help-config`` prints all three.

    Bounds hold for each entry of a list. Null is inside all bounds, NaN is outside every numeric one. Defaults that are
    lists, dicts or dataclass instances are copied for every instance.

    Args:
        at_least, at_most: inclusive limits of the value.
        above, below: exclusive limits of the value.
        multiple_of: divisor of the value.
        length: number of entries of a list.
        one_of: the permitted values, where an Enum does not list them.
    """
    limits = {"at_least": at_least, "at_most": at_most, "above": above, "below": below}
    bounds = {**limits, "multiple_of": multiple_of, "length": length, "one_of": one_of}
    metadata = {"meaning": meaning, "bounds": {name: bound for name, bound in bounds.items() if bound is not None}}
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class Settings:
    """Base of every config; construction checks the bounds of its fields.

    A subclass's ``__post_init__`` calls this one first and checks combinations of fields.

    Attributes:
        section: dotted key of the section that holds the config, for messages.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if message := out_of_bounds(self.key(field.name), getattr(self, field.name), bounds_of(field)):
                raise ValueError(message)

    def key(self, name: str) -> str:
        """Return the dotted key of a field, as users write it."""
        return f"{self.section}.{name}" if self.section else name


@dataclass(frozen=True)
class Section:
    """A section of a config that a registered part brings with it."""

    name: str
    config: type
    meaning: str


@functools.cache
def with_sections(base: type, kind: str, sections: tuple[Section, ...]) -> type:
    """Return the dataclass ``base`` with a section for each of the parts; instances can be pickled.

    Args:
        kind: noun for the parts, for messages.

    Raises:
        ValueError: the name of a part is no key, or one that ``base`` has already.
    """
    for section in sections:
        if not section.name.isidentifier() or section.name in dir(base()):
            key = f"{base.section}.{section.name}"
            raise ValueError(f"{kind} {section.name!r} can't have a section {key}; register it under another name")

    # The class has no name that pickle could find it by.
    def reduce(self: Settings) -> tuple[object, ...]:
        return _unpickled, (base, kind, sections, vars(self))

    fields = [(section.name, section.config, setting(section.config(), section.meaning)) for section in sections]
    return dataclasses.make_dataclass(base.__name__, fields, bases=(base,), namespace={"__reduce__": reduce})


def _unpickled(base: type, kind: str, sections: tuple[Section, ...], values: Mapping[str, object]) -> Settings:
    config = object.__new__(with_sections(base, kind, sections))
    vars(config).update(values)
    return config


def bounds_of(field: dataclasses.Field) -> Mapping[str, Any]:
    """Return the bounds that ``setting`` declared for a field."""
    return field.metadata.get("bounds", {})


def out_of_bounds(key: str, value: Any, bounds: Mapping[str, Any]) -> str | None:
    """Return a message with key, value and permitted range if a value is outside its bounds, else None."""
    is_list = isinstance(value, (list, tuple))
    fits = not is_list or len(value) == bounds.get("length", len(value))
    if fits and all(_is_inside(entry, bounds) for entry in (value if is_list else [value]) if entry is not None):
        return None
    shown = f"[{', '.join(map(str, value))}]" if is_list else value
    return f"{key}={shown} must be {permitted(bounds)}"


def permitted(bounds: Mapping[str, Any]) -> str:
    """Return the bounds in words, e.g. ``at least 1 and a multiple of 4``; empty without bounds."""
    limits = [f"{word} {_written(bounds[name])}" for name, (word, _) in _LIMITS.items() if name in bounds]
    if "length" not in bounds:
        return " and ".join(limits)
    return f"{bounds['length']} values" + (f", each {' and '.join(limits)}" if limits else "")


_LIMITS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "at_least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "at_most": ("at most", operator.le),
    "below": ("below", operator.lt),
    "multiple_of": ("a multiple of", lambda value, divisor: value % divisor == 0),
    "one_of": ("one of", lambda value, known: value in known),
}


def _is_inside(value: Any, bounds: Mapping[str, Any]) -> bool:
    return all(holds(value, bounds[name]) for name, (_, holds) in _LIMITS.items() if name in bounds)


def _written(bound: Any) -> str:
    return ", ".join(map(str, bound)) if isinstance(bound, tuple) else f"{bound:g}"
