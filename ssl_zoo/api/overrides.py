"""Overrides of a recipe from Python: the words of the command line, or a mapping of keys to values."""

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]


def as_words(overrides: Overrides) -> list[str]:
    """Return ``key=value`` words.

    Args:
        overrides: such words, or a mapping of dotted keys and groups to values: numbers, strings, booleans, None,
            paths, Enums, and lists and dicts of these.

    Raises:
        ValueError: a single string instead of a list, or a value of another type.
    """
    if isinstance(overrides, str):
        raise ValueError(f"overrides={overrides!r} is a string; give a list of them: [{overrides!r}]")
    if isinstance(overrides, Mapping):
        return [f"{key}={_written(key, value)}" for key, value in overrides.items()]
    return list(overrides)


def _written(key: str, value: Any) -> str:
    """Write a value in the grammar of overrides."""
    if isinstance(value, Enum):
        value = value.name
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, (str, Path)):
        # Quotes end a string of the grammar, and only backslashes before a quote escape.
        text = str(value).replace('"', '\\"')
        return f'"{text}"'
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_written(key, entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(_written(key, entry) for entry in value) + "]"
    raise ValueError(f"{key}={value!r}: a {type(value).__name__} is no value of a recipe")
