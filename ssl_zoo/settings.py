"""Settings of parts: dataclass fields with a meaning and bounds, checked by one function with one phrasing."""

import copy
import dataclasses
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
    """A dataclass field with a default, the one-line meaning that ``--help-config`` prints, and its bounds.

    Bounds hold for each entry of a list, and not for null. Lists, dicts and dataclass instances are copied for every
    instance.

    Args:
        at_least, at_most, above, below: limits of the value; the first two belong to the permitted range.
        multiple_of: divisor of the value.
        length: number of entries of a list.
        one_of: the permitted values, where an Enum does not list them.
    """
    bounds = {
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "below": below,
        "multiple_of": multiple_of,
        "length": length,
        "one_of": one_of,
    }
    metadata = {"meaning": meaning, "bounds": {name: bound for name, bound in bounds.items() if bound is not None}}
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class Settings:
    """Base of every config: construction checks the bounds of its fields, a ``__post_init__`` checks combinations.

    Attributes:
        section: dotted key of the section that a config stands in, for messages.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if message := out_of_bounds(self.key(field.name), getattr(self, field.name), field.metadata):
                raise ValueError(message)

    def key(self, name: str) -> str:
        """The dotted key of a field, as users write it."""
        return f"{self.section}.{name}" if self.section else name


def out_of_bounds(key: str, value: Any, metadata: Mapping[str, Any]) -> str | None:
    """A message with key, value and permitted range where a value is outside its bounds, None where it is inside."""
    bounds = metadata.get("bounds", {})
    is_list = isinstance(value, (list, tuple))
    fits = not is_list or len(value) == bounds.get("length", len(value))
    if fits and all(_is_inside(entry, bounds) for entry in (value if is_list else [value]) if entry is not None):
        return None
    shown = f"[{', '.join(map(str, value))}]" if is_list else value
    return f"{key}={shown} must be {permitted(bounds)}"


def permitted(bounds: Mapping[str, Any]) -> str:
    """The bounds in words, e.g. ``at least 1 and a multiple of 4``; empty without bounds."""
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
