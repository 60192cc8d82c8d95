"""Registries map the explicit name of a part to its class and to the dataclass that configures it.

The parts are methods, backbones, views, mask generators, targets, regularizers, data sources, evaluators, optimizers
and loggers. ``ssl_zoo.plugins`` imports the modules that register them.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from fvcore.common.registry import Registry as _Registry

T = TypeVar("T", bound=type)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known spelling closest to ``word``, or None when nothing is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a sentence that suggests the nearest known spelling, with a space before it; empty without one."""
    near = nearest(word, known)
    return f" Did you mean {prefix}{near if prefix else repr(near)}?" if near else ""


class UnknownName(LookupError):
    """A name that no part is registered under; the message lists the nearest and all known names."""

    def __str__(self) -> str:  # LookupError subclasses like KeyError would print the repr, quotes included
        return self.args[0]


class Registry(_Registry):
    """A registry holds the classes of one kind, each with the dataclass that configures it.

    Args:
        kind: singular noun for messages and ``tools/list.py``, e.g. ``"mask generator"``.
        group: config group whose options are the registered dataclasses, e.g. ``"masks"``.
    """

    def __init__(self, kind: str, group: str) -> None:
        super().__init__(kind)
        self.kind, self.group = kind, group
        self._configs: dict[str, type] = {}
        REGISTRIES[group] = self

    def register(self, name: str, config: type) -> Callable[[T], T]:
        """Return a class decorator that registers the class and its config under ``name``."""

        def add(cls: T) -> T:
            if name in self:
                raise ValueError(f"{self.kind} {name!r} is registered already, by {self._obj_map[name].__module__}")
            self._do_register(name, cls)
            self._configs[name] = config
            return cls

        return add

    def get(self, name: str) -> type:
        if name not in self:
            raise UnknownName(self._unknown(name))
        return self._obj_map[name]

    def names(self) -> list[str]:
        return sorted(name for name, _ in self)

    def config_of(self, name: str) -> type:
        self.get(name)
        return self._configs[name]

    def name_of(self, config: Any) -> str:
        """Return the name whose registered config class is exactly the class of ``config``."""
        for name, cls in self._configs.items():
            if type(config) is cls:
                return name
        raise UnknownName(f"no {self.kind} is configured by {type(config).__name__}. Known: {', '.join(self.names())}")

    def build(self, config: Any, *args: Any, **kwargs: Any) -> Any:
        """Construct the class that ``config`` configures, with the config as its first argument."""
        return self.get(self.name_of(config))(config, *args, **kwargs)

    def summary(self, name: str) -> str:
        """Return the first line of the class's docstring."""
        return (inspect.getdoc(self.get(name)) or "").partition("\n")[0]

    def __iter__(self) -> Iterator[tuple[str, type]]:
        return iter(self._obj_map.items())

    def _unknown(self, name: str) -> str:
        hint, known = did_you_mean(name, self.names()), ", ".join(self.names())
        return f"no {self.kind} is named {name!r}.{hint} Known: {known}.{import_errors()}"


REGISTRIES: dict[str, Registry] = {}  # by config group
BROKEN_PLUGINS: dict[str, str] = {}  # optional module that failed to import -> its error, for messages about names


def import_errors() -> str:
    """Return a line per broken plug-in, for a message about a name that it may have failed to register."""
    return "".join(f"\nPlug-in {plugin} can't be imported: {error}" for plugin, error in BROKEN_PLUGINS.items())
