"""Named parts: registries that also feed Hydra, and the discovery of plug-ins.

Every part (method, backbone, mask generator, target, data source, evaluator, optimizer) is registered under an explicit
name together with the dataclass that configures it. The dataclass becomes the option of the same name in the Hydra
group of that kind, so its defaults are written once.
"""

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fvcore.common.registry import Registry as _Registry
from hydra.core.config_store import ConfigStore

ENTRY_POINT_GROUP = "ssl_zoo.plugins"
_PART_PACKAGES = (
    "ssl_zoo.nn",
    "ssl_zoo.masks",
    "ssl_zoo.targets",
    "ssl_zoo.views.single_crop",
    "ssl_zoo.views.multi_crop",
    "ssl_zoo.data.sources",
    "ssl_zoo.eval",
)

T = TypeVar("T", bound=type)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known spelling closest to ``word``, or None when nothing is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


class UnknownName(LookupError):
    """A name that no part is registered under; the message lists the nearest and all known names."""

    def __str__(self) -> str:  # LookupError subclasses like KeyError would print the repr, quotes included
        return self.args[0]


class Registry(_Registry):
    """Classes of one kind under explicit names, each with the dataclass that configures it.

    Args:
        kind: singular noun for messages and ``tools/list.py``, e.g. ``"mask generator"``.
        group: the Hydra config group its configs are options of, e.g. ``"masks"``.
    """

    def __init__(self, kind: str, group: str) -> None:
        super().__init__(kind)
        self.kind, self.group = kind, group
        self._configs: dict[str, type] = {}
        REGISTRIES[group] = self

    def register(self, name: str, config: type) -> Callable[[T], T]:
        """Class decorator: store the class under ``name`` and its config as option ``name`` of the group."""

        def add(cls: T) -> T:
            if name in self:
                raise ValueError(f"{self.kind} {name!r} is registered already, by {self._obj_map[name].__module__}")
            self._do_register(name, cls)
            self._configs[name] = config
            ConfigStore.instance().store(group=self.group, name=name, node=config, provider="ssl_zoo")
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
        """The name whose registered config class is exactly the class of ``config``."""
        for name, cls in self._configs.items():
            if type(config) is cls:
                return name
        raise UnknownName(f"no {self.kind} is configured by {type(config).__name__}. Known: {', '.join(self.names())}")

    def build(self, config: Any, *args: Any, **kwargs: Any) -> Any:
        """An instance of the class that ``config`` configures; the config is its first argument."""
        return self.get(self.name_of(config))(config, *args, **kwargs)

    def summary(self, name: str) -> str:
        """First line of the class's docstring."""
        return (inspect.getdoc(self.get(name)) or "").partition("\n")[0]

    def __iter__(self) -> Iterator[tuple[str, type]]:
        return iter(self._obj_map.items())

    def _unknown(self, name: str) -> str:
        near = nearest(name, self.names())
        hint = f" Did you mean {near!r}?" if near else ""
        broken = "".join(
            f"\nPlug-in {plugin} could not be imported: {error}" for plugin, error in BROKEN_PLUGINS.items()
        )
        return f"no {self.kind} is named {name!r}.{hint} Known: {', '.join(self.names())}.{broken}"


REGISTRIES: dict[str, Registry] = {}  # by config group
BROKEN_PLUGINS: dict[str, str] = {}  # plug-in -> its import error, told when a name is not found


def discover(plugins: Iterable[str] = ()) -> None:
    """Import everything that registers parts: the packages of ssl_zoo, installed plug-ins, then ``plugins``.

    A method file or plug-in that fails to import is remembered in ``BROKEN_PLUGINS`` and stops nothing else.

    Args:
        plugins: importable module names or paths of Python files, as given to ``--plugin``.

    Raises:
        ValueError: a name in ``plugins`` can't be imported; these were asked for explicitly.
    """
    for package in _PART_PACKAGES:
        importlib.import_module(package)
    methods = importlib.import_module("ssl_zoo.methods")
    for module in pkgutil.iter_modules(methods.__path__, "ssl_zoo.methods."):
        _import_or_remember(module.name, lambda name=module.name: importlib.import_module(name))
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        _import_or_remember(entry.name, entry.load)
    for plugin in plugins:
        try:
            _import_plugin(plugin)
        except Exception as error:
            raise ValueError(f"--plugin {plugin}: {type(error).__name__}: {error}") from error


def plugin_words(plugins: Iterable[str]) -> list[str]:
    """What hands plugins on to another of the tools on its command line."""
    return [word for plugin in plugins for word in ("--plugin", plugin)]


def _import_or_remember(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except Exception as error:  # whatever a foreign module raises; reported when a name is missing and by tools/list.py
        BROKEN_PLUGINS[name] = f"{type(error).__name__}: {error}"


def _import_plugin(plugin: str) -> None:
    if not plugin.endswith(".py"):
        importlib.import_module(plugin)
        return
    path = Path(plugin).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = f"ssl_zoo_plugin_{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
