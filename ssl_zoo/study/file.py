"""Study files list the runs that a table compares and the published values to show beside them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_zoo.config.keys import ConfigError, keys_of, written, wrong_value
from ssl_zoo.config.recipe import Recipe, config_roots, find_recipe, read_document
from ssl_zoo.registry import nearest
from ssl_zoo.settings import setting

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SET_BY_THE_STUDY = {"seed": "seeds", "output_dir": "--out"}  # keys of a run -> where a study sets them


@dataclass
class Entry:
    """One row of the table: a recipe with overrides."""

    title: str = setting("", "name of the row in the report; empty: the entry's name")
    recipe: str | None = setting(None, "recipe of this entry; null: the study's")
    overrides: list[str] = setting([], "key=value and group=option, as on the command line; after the study's")
    published: dict[str, float] = setting({}, "the paper's values in percent, by the name of their column")
    series: str = setting("", "the plot of accuracy against compute joins the entries of a series by a line")


@dataclass
class Evaluation:
    """A further evaluation of the frozen networks of finished runs; it gets a table of its own."""

    title: str = setting("", "heading of its table; empty: the evaluation's name")
    evaluators: list[str] = setting(["knn", "linear"], "evaluators, by their registered names")
    labels: list[str] = setting([], "label sets of the data, each evaluated separately; empty: the data's first")
    columns: list[str] = setting(["knn20", "linear"], "accuracies of the evaluators that the table shows")
    overrides: list[str] = setting([], "key=value and group=option on top of a run's configuration, e.g. data=scenes")

    def __post_init__(self) -> None:
        check_overrides(self.overrides)
        if not self.evaluators or not self.columns:
            raise ValueError("needs at least one evaluator and one column, e.g. [knn] and [knn20]")
        check_columns(self.columns, self.evaluators, "evaluators")


@dataclass
class Study:
    """A table whose rows are ``entries`` and whose columns are scores of the probe."""

    title: str = setting(MISSING, "heading of the report: what is compared")
    question: str = setting("", "introduction of the report: what the comparison answers and how the entries differ")
    source: str = setting("", "source of the published values")
    published_as: str = setting("", "metric, model and training length of the published values")
    recipe: str | None = setting(None, "recipe of all entries without one of their own, e.g. ijepa/cifar10_vitt4")
    overrides: list[str] = setting([], "key=value and group=option for all entries")
    seeds: list[int] = setting([0, 1, 2], "every entry is trained once per seed")
    columns: list[str] = setting(["knn20", "logistic"], "scores of the probe, as named in metrics.jsonl")
    metrics: list[str] = setting([], "values of metrics.jsonl with a table of their own, beside the collapse alarm")
    entries: dict[str, Entry] = field(default_factory=dict, metadata={"meaning": "name of an entry: its settings"})
    evaluations: dict[str, Evaluation] = field(
        default_factory=dict, metadata={"meaning": "name of an evaluation of every finished run: its settings"}
    )

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError("entries: a study needs at least one, e.g. `entries: {pixels: {overrides: [...]}}`")
        if not self.columns:
            raise ValueError("columns: a study needs at least one score, e.g. [knn20]")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={written(self.seeds)}: needs at least one, without duplicates")
        check_overrides(self.overrides)
        for key, names in {"entries": self.entries, "evaluations": self.evaluations}.items():
            for name in names:
                if not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{key}: {name!r} becomes a directory name; use letters, digits, '_', '-' and '.', no space"
                    )
        for name, entry in self.entries.items():
            check_overrides(entry.overrides)
            if entry.recipe is None and self.recipe is None:
                raise ValueError(f"entries.{name}: neither the entry nor the study has a recipe")

    @property
    def published_columns(self) -> list[str]:
        """Names of the published values, in the order of the entries."""
        return list(dict.fromkeys(name for entry in self.entries.values() for name in entry.published))


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides of keys that the study itself sets.

    Raises:
        ConfigError: an override sets the seed or the directory of a run.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in _SET_BY_THE_STUDY:
            raise ConfigError(f"{override}: a study sets {key} from {_SET_BY_THE_STUDY[key]}")


def check_columns(columns: Sequence[str], evaluators: Sequence[str], key: str) -> None:
    """Refuse scores that none of the evaluators computes.

    Args:
        key: config key of the evaluators, for the message.

    Raises:
        ConfigError: an evaluator is missing.
    """
    for column in columns:
        if not column.startswith(tuple(evaluators)):
            raise ConfigError(f"columns: {key}={written(evaluators)} computes no score {column}")


def read_study(path: Path) -> Study:
    """Read the study of a YAML file and resolve its recipes to files.

    Recipes are looked up like an inherited recipe: beside the study, in the config root above it, in the package.

    Raises:
        ConfigError: the file has an error; the message has its line and the nearest valid spelling.
    """
    path = path.absolute()
    document = read_document(path, "study", "settings, e.g. `title: Features or pixels`")
    lines = Recipe(path, {}, document)  # finds the lines of keys
    entries = _named(document, "entries", lines, "pixels: {overrides: []}")
    evaluations = _named(document, "evaluations", lines, "scenes: {overrides: [data=scenes]}")
    values = _values(Study, document, lines, "")
    if values["title"] == MISSING:
        raise ConfigError(f"{path}: title has no value. Meaning: heading of the report: what is compared")
    roots = config_roots(path)
    values["recipe"] = _resolved(values["recipe"], path, roots, "recipe")
    values["entries"] = {name: _entry(name, given, lines, roots) for name, given in entries.items()}
    values["evaluations"] = {name: _evaluation(name, given, lines) for name, given in evaluations.items()}
    try:
        return Study(**values)
    except ValueError as error:  # of __post_init__
        raise ConfigError(f"{path}: {error}") from error


def _named(document: dict[str, Any], key: str, lines: Recipe, example: str) -> dict[str, Mapping[Any, Any]]:
    """Remove a mapping of names to settings from the document and return it."""
    named = document.pop(key, None) or {}
    if not isinstance(named, Mapping):
        raise ConfigError(f"{lines.where(key)}: {key} must map names to settings, e.g. `{example}`")
    for name, given in named.items():
        if not isinstance(given or {}, Mapping):
            raise ConfigError(f"{lines.where(f'{key}.{name}')}: {key}.{name}: expected settings, e.g. `overrides: []`")
    return {str(name): given or {} for name, given in named.items()}


def _entry(name: str, given: Mapping[Any, Any], lines: Recipe, roots: list[Path]) -> Entry:
    values = _values(Entry, given, lines, f"entries.{name}.")
    values["recipe"] = _resolved(values["recipe"], lines.path, roots, f"entries.{name}.recipe")
    return Entry(**values)


def _evaluation(name: str, given: Mapping[Any, Any], lines: Recipe) -> Evaluation:
    values = _values(Evaluation, given, lines, f"evaluations.{name}.")
    try:
        return Evaluation(**values)
    except ValueError as error:  # of __post_init__
        raise ConfigError(f"{lines.where(f'evaluations.{name}')}: evaluations.{name}: {error}") from error


def _values(config: type, given: Mapping[Any, Any], lines: Recipe, prefix: str) -> dict[str, Any]:
    """Merge ``given`` into the defaults of a dataclass and check the type of every value."""
    node = OmegaConf.structured(config)
    defaults = node.copy()
    keys = {key.name: key for key in keys_of(config)}
    for name, value in given.items():
        where = f"{lines.where(f'{prefix}{name}')}: {prefix}"
        if name not in keys:
            near = nearest(str(name), keys)
            hint = f"; did you mean {near}?" if near else "."
            raise ConfigError(f"{where}{name}: there is no such key{hint} Keys: {', '.join(keys)}")
        try:
            node[name] = value
        except OmegaConfBaseException as error:
            default = OmegaConf.to_container(defaults)[name]
            raise ConfigError(where + wrong_value(keys[name], value, default)) from error
    return OmegaConf.to_container(node)


def _resolved(name: str | None, path: Path, roots: list[Path], key: str) -> str | None:
    return None if name is None else str(find_recipe(name, path, roots, key))
