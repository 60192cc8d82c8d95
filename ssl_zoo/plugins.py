"""Discovery imports every module that registers parts, so that a new part is one file and no import list.

The registries of ``ssl_zoo.registry`` are complete after ``discover()``; tools and the composition of recipes call it.
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ssl_zoo.registry import BROKEN_PLUGINS

_FILE_MODULE = "ssl_zoo_plugin_"  # start of the names of modules that are files
ENTRY_POINT_GROUP = "ssl_zoo.plugins"
# Packages in which each module may register parts, and modules that do. Those that a version lacks are skipped.
_PARTS = (
    *("nn", "masks", "targets", "views", "regularizers", "losses", "data.sources", "engine.optim"),
    *("engine.loggers", "eval"),
)


def discover(plugins: Iterable[str] = ()) -> None:
    """Import the parts of ssl_zoo, its methods, installed plug-ins, then ``plugins``.

    A method file or an installed plug-in that fails to import is kept in ``BROKEN_PLUGINS`` and stops nothing else.

    Args:
        plugins: importable module names or paths of Python files, as given to ``--plugin``.

    Raises:
        ValueError: a module in ``plugins`` can't be imported; these were asked for explicitly.
    """
    for part in (f"ssl_zoo.{name}" for name in _PARTS):
        for module in _modules_of(part) if importlib.util.find_spec(part) else ():
            importlib.import_module(module)
    for name in _modules_of("ssl_zoo.methods"):
        _import_optional(name, lambda name=name: importlib.import_module(name))
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        _import_optional(entry.name, entry.load)
    for plugin in plugins:
        try:
            _import_plugin(plugin)
        except Exception as error:
            raise ValueError(f"--plugin {plugin}: {type(error).__name__}: {error}") from error


class PluginFiles:
    """Imports the plug-in files of this process where it is unpickled.

    Processes that are not forked (macOS, and Linux from Python 3.14 on) find classes by the names of their modules, but
    no module path leads to a plug-in that is a file. An object that holds such classes pickles this one first.
    """

    def __reduce__(self) -> tuple[Callable[[Sequence[str]], "PluginFiles"], tuple[Sequence[str]]]:
        files = [module.__file__ for name, module in sys.modules.items() if name.startswith(_FILE_MODULE)]
        return _import_files, (files,)


def _import_files(files: Sequence[str]) -> PluginFiles:
    for file in files:
        _import_plugin(file)
    return PluginFiles()


def plugin_words(plugins: Iterable[str]) -> list[str]:
    """Return the command-line words that pass plug-ins to another tool."""
    return [word for plugin in plugins for word in ("--plugin", plugin)]


def _modules_of(part: str) -> Iterator[str]:
    """Import a package or module and yield the names of the package's modules."""
    package = importlib.import_module(part)
    yield from (module.name for module in pkgutil.iter_modules(getattr(package, "__path__", ()), f"{part}."))


def _import_optional(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except Exception as error:  # any error of a foreign module; messages about unknown names and tools/list.py show it
        BROKEN_PLUGINS[name] = f"{type(error).__name__}: {error}"


def _import_plugin(plugin: str) -> None:
    if not plugin.endswith(".py"):
        importlib.import_module(plugin)
        return
    path = Path(plugin).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = f"{_FILE_MODULE}{path.stem}"
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
