"""The keys of a configuration have types, bounds and meanings; a wrong key or value gets one message."""

import dataclasses
import difflib
import functools
import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ssl_zoo.registry import REGISTRIES
from ssl_zoo.settings import bounds_of, out_of_bounds, permitted

_WORDS = {int: "integer", float: "number", bool: "true or false", str: "text"}


class ConfigError(ValueError):
    """A recipe or an override does not fit the schema; the message gives the remedy."""


@dataclass(frozen=True)
class Key:
    """One leaf of the configuration."""

    name: str  # dotted
    hint: Any  # type annotation
    meaning: str
    bounds: Mapping[str, Any]  # as `setting` declares them

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def expected(self) -> str:
        """The type in words, with the names of an Enum, and the bounds."""
        return ", ".join(filter(None, [_words(self.hint), permitted(self.bounds)]))


def keys_of(node: DictConfig | type, prefix: str = "") -> Iterator[Key]:
    """Yield the leaf keys of a composed section or of a dataclass, in the order of their definition.

    In a composed configuration a section has the keys of its chosen option, and none without a choice.
    """
    config = node if isinstance(node, type) else OmegaConf.get_type(node)
    for field in dataclasses.fields(config):
        name = prefix + field.name
        inner = _section_type(config, field.name)
        if inner is None:
            yield Key(name, _hints(config)[field.name], field.metadata.get("meaning", ""), bounds_of(field))
        elif isinstance(node, type):
            yield from keys_of(inner, name + ".")
        elif not OmegaConf.is_missing(node, field.name) and node[field.name] is not None:
            yield from keys_of(node[field.name], name + ".")


@functools.cache
def _hints(config: type) -> Mapping[str, Any]:
    return get_type_hints(config)


@functools.cache
def _section_type(config: type, name: str) -> type | None:
    """Return the dataclass of a field that is a section, None for a leaf."""
    hint = _hints(config)[name]
    inner = [arg for arg in get_args(hint) if arg is not NoneType] if get_origin(hint) in (Union, UnionType) else [hint]
    return inner[0] if len(inner) == 1 and dataclasses.is_dataclass(inner[0]) else None


def leaves(given: Mapping[Any, Any], keys: Container[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of every leaf of nested values; a mapping is a leaf if it is in ``keys`` or empty."""
    for name, value in given.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and full not in keys:
            yield from leaves(value, keys, f"{full}.")
        else:
            yield full, value


def flat(values: DictConfig) -> dict[str, Any]:
    """Return the value of every leaf key, interpolations unresolved, ``"???"`` where there is none."""
    return dict(leaves(OmegaConf.to_container(values, resolve=False), [key.name for key in keys_of(values)]))


def check_bounds(values: DictConfig, section: str = "") -> None:
    """Raise ConfigError for the first value of a resolved configuration, or one section, outside its key's bounds."""
    given = flat(values)
    for key in keys_of(values):
        if key.name.startswith(section) and (message := out_of_bounds(key.name, given[key.name], key.bounds)):
            raise ConfigError(message)


def _words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        inner = [arg for arg in get_args(hint) if arg is not NoneType]
        return " or ".join([*map(_words, inner), "null"])
    if get_origin(hint) is list:
        return f"list of {_words(get_args(hint)[0])}s"
    if get_origin(hint) is dict:
        return f"names, each with a {_words(get_args(hint)[1])}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(hint.__members__)
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def written(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (list, tuple)) or OmegaConf.is_list(value):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def unknown_key(name: str, values: DictConfig) -> str:
    """Return the message for a key that the composed configuration ``values`` does not have."""
    keys = [key.name for key in keys_of(values)]
    sections = [field.name for field in dataclasses.fields(OmegaConf.get_type(values))]
    elsewhere = _other_options(name)
    near = _nearest_key(name, [*keys, *elsewhere, *([] if "." in name else sections)])
    if near in elsewhere and near not in keys:
        owners = " or ".join(f"{near.partition('.')[0]}={option}" for option in elsewhere[near])
        hint = f"{near} belongs to {owners}."
    else:
        hint = f"did you mean {near}?" if near else "no key has a similar name."
    section = _longest_section(name, keys)
    listed = f"Keys of {section}: {listing(section, keys)}" if section else f"Sections: {', '.join(sections)}"
    return f"there is no key {name}; {hint} {listed}"


def listing(section: str, keys: Iterable[str]) -> str:
    """Return the names right below a section, subsections as ``name.*``; empty if it is no section."""
    below = [key.removeprefix(f"{section}.").partition(".") for key in keys if key.startswith(f"{section}.")]
    return ", ".join(dict.fromkeys(f"{name}.*" if rest else name for name, _, rest in below))


def _nearest_key(name: str, known: Sequence[str]) -> str | None:
    """Return the key most likely meant: a near spelling, an abbreviation or its words, a name of another section."""
    leaf = name.rpartition(".")[2]
    ranked = difflib.get_close_matches(name, known, n=max(len(known), 1), cutoff=0.0)
    return next(
        itertools.chain(
            (key for key in ranked if _similarity(name, key) > 0.85),
            (key for key in ranked if _initials(key) == leaf),
            (key for key in ranked if _initials(name) == key.rpartition(".")[2]),
            (key for key in ranked if key.rpartition(".")[2] == leaf),
            (key for key in ranked if _similarity(name, key) > 0.6),
        ),
        None,
    )


def _similarity(name: str, key: str) -> float:
    return difflib.SequenceMatcher(None, key, name).ratio()


def _initials(key: str) -> str:
    return "".join(word[:1] for word in key.rpartition(".")[2].split("_"))


def _longest_section(name: str, keys: Iterable[str]) -> str:
    section = name
    while section := section.rpartition(".")[0]:
        if any(key.startswith(section + ".") for key in keys):
            return section
    return ""


def _other_options(name: str) -> dict[str, list[str]]:
    """Map the keys of all registered options of the group that ``name`` is in to the options that have them."""
    registry = REGISTRIES.get(name.partition(".")[0])
    owners: dict[str, list[str]] = {}
    for option in registry.names() if registry else ():
        for key in keys_of(registry.config_of(option), registry.group + "."):
            owners.setdefault(key.name, []).append(option)
    return owners


def wrong_value(key: Key, value: Any, default: Any) -> str:
    """Return the message for a value that does not have the type of its key."""
    given = f"{key.name}={written(value)}: expected {key.expected}"
    return f"{given}; the default is {written(default)}. Meaning: {key.meaning}"
