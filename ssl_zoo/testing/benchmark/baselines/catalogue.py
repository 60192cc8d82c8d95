"""The baselines by name: which methods each one has, and what it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from ssl_zoo.engine.build import RunConfig
from ssl_zoo.method import METHODS
from ssl_zoo.registry import UnknownName
from ssl_zoo.testing.benchmark.baselines.base import Baseline
from ssl_zoo.testing.benchmark.baselines.requirements import check_requirements


@dataclass(frozen=True)
class Entry:
    """A baseline.

    Attributes:
        classes: class of the baseline by the registered name of its method.
        module: module of this package that has the classes; imported on use.
        package: what the module needs to be installed; None = nothing beyond this project's own requirements.
        extra: extra of this project that installs it.
        has_recipes_precision: otherwise it trains in float32.
    """

    module: str
    classes: Mapping[str, str]
    package: str | None = None
    extra: str | None = None
    has_recipes_precision: bool = True


_MAE_AND_IJEPA = {"ijepa": "IJEPA", "mae": "MAE"}
_ALL = {**_MAE_AND_IJEPA, "dino": "DINO"}
BASELINES: Mapping[str, Entry] = {
    "plain": Entry("plain", {"ijepa": "PlainIJEPA"}),
    "plain-fp32": Entry("plain", {"ijepa": "PlainIJEPA"}, has_recipes_precision=False),
    "lightly": Entry("lightly", _ALL, "lightly", "lightly"),
    "transformers": Entry("transformers", _MAE_AND_IJEPA, "transformers", "hf"),
    "stable-pretraining": Entry("stable_pretraining", _ALL, "stable_pretraining", "stable-pretraining"),
    "timm": Entry("timm", _ALL),
}


def not_installed(name: str) -> str | None:
    """Return how to install what a baseline needs, or None where it is there."""
    entry = BASELINES[name]
    if entry.package is None or find_spec(entry.package) is not None:
        return None
    return f"--baseline {name} needs {entry.package}, which is not installed: pip install 'ssl-zoo[{entry.extra}]'"


def has_method(name: str, config: RunConfig) -> bool:
    """Return whether a baseline trains the method of a recipe."""
    return _method_name(config) in BASELINES[name].classes


def combinations() -> str:
    """List the methods of each baseline, for messages."""
    return "; ".join(f"{name}: {', '.join(entry.classes)}" for name, entry in BASELINES.items())


def check_baseline(name: str, config: RunConfig) -> None:
    """Refuse a recipe whose computation a baseline would not repeat.

    Raises:
        ValueError: the baseline does not have the recipe's method, or one of its settings.
    """
    if not has_method(name, config):
        raise ValueError(f"--baseline {name} has no {_method_name(config)}; there are {combinations()}")
    check_requirements(name, _method_name(config), config)


def build_baseline(name: str, config: RunConfig) -> Baseline:
    """Build a baseline for a recipe.

    Raises:
        ValueError: the baseline does not have the recipe's method, or one of its settings; it is not installed.
    """
    check_baseline(name, config)
    if message := not_installed(name):
        raise ValueError(message)
    entry = BASELINES[name]
    try:
        module = import_module(f"ssl_zoo.testing.benchmark.baselines.{entry.module}")
    except ImportError as error:
        install = f"pip install -U 'ssl-zoo[{entry.extra}]'"
        raise ValueError(f"--baseline {name} can't be imported, {error}; try {install}") from error
    return getattr(module, entry.classes[_method_name(config)])(config)


def _method_name(config: RunConfig) -> str:
    try:
        return METHODS.name_of(config.method)
    except UnknownName:  # a method of a decoder or of a test, which is not registered
        return type(config.method).__name__
