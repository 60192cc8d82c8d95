"""A recipe file and command-line overrides compose to a typed configuration, and back to a recipe.

A recipe names an option per group in its defaults list and then sets values. Hydra composes the options. The values of
the recipes, ancestors first, and then those of the command line are set on top one key at a time, so that every error
message can give the key, the file and line, and the nearest valid spelling.
"""

import dataclasses
import importlib.resources
import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import ssl_zoo
from ssl_zoo.config.derived import fill_derived
from ssl_zoo.config.keys import (
    ConfigError,
    check_bounds,
    flat,
    keys_of,
    leaves,
    listing,
    unknown_key,
    written,
    wrong_value,
)
from ssl_zoo.config.recipe import ROOT_RECIPE, Recipe, config_roots, read_document, read_recipe
from ssl_zoo.config.schema import SCHEMA, Config, sections
from ssl_zoo.engine.loggers.base import monitor_config_class
from ssl_zoo.engine.settings import MonitorConfig
from ssl_zoo.eval.presets import with_presets
from ssl_zoo.eval.probe import ProbeConfig, probe_config_class
from ssl_zoo.method import METHODS
from ssl_zoo.plugins import discover
from ssl_zoo.registry import REGISTRIES, did_you_mean, import_errors

_LOG = logging.getLogger(__name__)
_PLAIN_VALUE = re.compile(r"[\w/.~:%@?|+\-\ud800-\udfff]+")  # surrogates: bytes of a path that are no UTF-8
_RUN = "ssl_zoo_run"  # name of the composed defaults list in Hydra's store


@dataclass(frozen=True)
class Composed:
    """A composed configuration before it is converted to ``Config``.

    Attributes:
        recipe: absolute path of the recipe.
        choices: the chosen option of every group that has one.
        options: all options of every group that has any.
        defaults: values of the chosen options, before recipe and command line set any.
        values: the configuration.
    """

    recipe: Path
    choices: Mapping[str, str | None]
    options: Mapping[str, Sequence[str]]
    defaults: DictConfig
    values: DictConfig

    @cached_property
    def config(self) -> Config:
        """The configuration as dataclasses, after all their checks.

        Raises:
            ConfigError: a key without a value, a broken interpolation, a value out of bounds.
        """
        for key in sorted(OmegaConf.missing_keys(self.resolved)):
            raise ConfigError(_missing(key, self))
        check_bounds(self.resolved)
        return _to_object(self.resolved)

    @cached_property
    def resolved(self) -> DictConfig:
        """``values`` with their interpolations resolved; a key without a value is no error yet."""
        for name, given in flat(self.values).items():
            try:
                OmegaConf.select(self.values, name)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{name}={written(given)}: {_first_line(error)}") from error
        values = self.values.copy()
        OmegaConf.resolve(values)
        fill_derived(values)
        return values

    def plain(self) -> dict[str, Any]:
        """Return the configuration as nested dicts, lists and scalars; Enums by name."""
        return OmegaConf.to_container(self.resolved, enum_to_str=True)

    def plain_defaults(self) -> dict[str, Any]:
        """Return ``defaults`` in the same form, interpolations unresolved."""
        return OmegaConf.to_container(self.defaults, enum_to_str=True)


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the typed configuration of a recipe with ``key=value`` and ``group=option`` overrides.

    Raises:
        ConfigError: the recipe or an override is wrong.
    """
    return compose(recipe, overrides).config


def compose(recipe: str | Path, overrides: Sequence[str] = ()) -> Composed:
    """Compose a configuration without converting it to dataclasses.

    Raises:
        ConfigError: as ``load_config``, except for missing values and values out of bounds, which ``config`` checks.
    """
    discover()
    _store_options()
    recipes = read_recipe(Path(recipe))
    path = recipes[-1].path
    roots = config_roots(path)
    options = {group: found for group in sections() if (found := _options(group, roots))}
    parsed = [_parse(override) for override in overrides]
    chosen = {choice.key_or_group: choice.value() for choice in parsed if _chooses(choice, options)}
    own = _with_defaults_of_method({group: option for layer in recipes for group, option in layer.choices.items()})
    choices = _with_defaults_of_method(_switched(own, chosen, roots))
    _check_options(own, options, f"{path}: ")
    _check_options(choices, options, "")
    defaults = _compose(choices, roots)
    if choices != own:
        switched = {group for group in sections() if choices.get(group) != own.get(group)}
        recipes = _carried_over(recipes, switched, _compose(own, roots), defaults)
    values = defaults.copy()
    for layer in recipes:
        _assign(values, _with_presets(layer.values), defaults, layer)
    # Presets first: on a command line explicit values hold wherever they stand.
    for override in sorted(parsed, key=lambda override: not override.key_or_group.endswith(".preset")):
        if not _chooses(override, options):
            _assign(values, _with_presets(_nested(override)), defaults, None)
    if not values.output_dir:
        values.output_dir = f"runs/{path.parent.name}/{path.stem}"
    return Composed(path, choices, options, defaults, values)


def compose_section(section: str, overrides: Sequence[str]) -> Any:
    """Return one section's dataclass from overrides alone, ``section=OPTION`` among them, for tools without a recipe.

    Raises:
        ConfigError: an override is wrong, or no option was chosen.
    """
    composed = compose(Path(str(importlib.resources.files("ssl_zoo.configs"))) / f"{ROOT_RECIPE}.yaml", overrides)
    if OmegaConf.is_missing(composed.values, section):
        raise ConfigError(_missing(section, composed))
    check_bounds(composed.resolved, f"{section}.")
    return _to_object(composed.resolved[section])


def compose_settings(config: type, recipe: Path | None, overrides: Sequence[str]) -> DictConfig:
    """Return the values of a settings dataclass of its own, which is no part of ``Config``, checked in every respect.

    Args:
        config: the dataclass; ``OmegaConf.to_object`` of the result is an instance.
        recipe: YAML file of values; None takes the defaults.
        overrides: ``key=value`` words, on top.

    Raises:
        ConfigError: the recipe or an override is wrong.
    """
    values = OmegaConf.structured(config)
    defaults = values.copy()
    if recipe is not None:
        document = read_document(recipe, "recipe", "settings, e.g. `trainer: {num_steps: 2000}`")
        _assign(values, document, defaults, Recipe(recipe, {}, document))
    for override in overrides:
        _assign(values, _nested(_parse(override)), defaults, None)
    check_bounds(values)
    _to_object(values)
    return values


def _to_object(values: DictConfig) -> Any:
    try:
        return OmegaConf.to_object(values)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_first_line(error)}") from error
    except ValueError as error:  # of a __post_init__
        raise ConfigError(str(error)) from error


def recipe_text(composed: Composed) -> str:
    """Write the configuration as a recipe of its own: the chosen groups and every value, resolved."""
    choices = [{group: option} for group, option in composed.choices.items()]
    defaults = yaml.safe_dump([ROOT_RECIPE, *choices, "_self_"], default_flow_style=None, sort_keys=False)
    source = f"{composed.recipe.parent.name}/{composed.recipe.name}"
    header = f"# Every value of a run of {source}, by ssl_zoo {ssl_zoo.__version__}. It loads as a recipe."
    return f"{header}\ndefaults:\n{defaults}\n{OmegaConf.to_yaml(composed.resolved)}"


# --- choices ----------------------------------------------------------------------------------------------------------


def _switched(
    own: Mapping[str, str | None], chosen: Mapping[str, str | None], roots: Sequence[Path]
) -> dict[str, str | None]:
    """Return the recipe's choices with those of the command line; another method brings its own masks and targets.

    The views stay, so that a comparison changes no augmentation unseen, unless the methods need other kinds of views.
    """
    choices, method = {**own, **chosen}, chosen.get("method")
    if method == own.get("method") or method not in METHODS:
        return choices
    for group in {"masks", "targets"} - set(chosen):
        choices.pop(group, None)
    views = METHODS.get(method).default_views
    if "views" not in chosen and _type_of("views", views, roots) is not _type_of("views", own.get("views"), roots):
        _LOG.warning("views=%s: method=%s needs other views than views=%s", views, method, own.get("views"))
        choices["views"] = views
    return choices


def _type_of(group: str, option: str | None, roots: Sequence[Path]) -> type | None:
    return None if option is None else OmegaConf.get_type(_compose({group: option}, roots), group)


def _with_defaults_of_method(choices: Mapping[str, str | None]) -> dict[str, str | None]:
    method = choices.get("method")
    if method not in METHODS:
        return dict(choices)
    cls = METHODS.get(method)
    defaults = {"views": cls.default_views, "masks": cls.default_masks, "targets": cls.default_targets}
    return {**defaults, **choices}


def _store_options() -> None:
    """Give Hydra the schema and every registered dataclass, as the option of its name in its group."""
    _store_schema(probe_config_class(), monitor_config_class())
    for group, registry in REGISTRIES.items():
        for name in registry.names():
            _store(name, group, registry.config_of(name))


@cache  # storing all of them takes half as long as composing a recipe
def _store(name: str, group: str, config: type) -> None:
    ConfigStore.instance().store(name=name, group=group, node=config, provider="ssl_zoo")


@cache
def _store_schema(probe: type[ProbeConfig], monitor: type[MonitorConfig]) -> None:
    """Store ``Config``, with sections for the evaluators and loggers that are registered by now."""
    ConfigStore.instance().store(name=SCHEMA, node=Config(probe=probe(), monitor=monitor()), provider="ssl_zoo")


def _options(group: str, roots: Sequence[Path]) -> list[str]:
    registered = REGISTRIES[group].names() if group in REGISTRIES else []
    return sorted({*registered, *(file.stem for root in roots for file in (root / group).glob("*.yaml"))})


def _check_options(choices: Mapping[str, str | None], options: Mapping[str, Sequence[str]], place: str) -> None:
    for group, option in choices.items():
        known = options.get(group, ())
        if option is None or option in known:
            continue
        hint = f"{did_you_mean(str(option), known, f'{group}=')} Options of {group}: {', '.join(known) or 'none'}."
        raise ConfigError(f"{place}{group}={option}: no such option.{hint}{import_errors()}")


def _compose(choices: Mapping[str, str | None], roots: Sequence[Path]) -> DictConfig:
    """Compose the chosen options with Hydra."""
    entries = [SCHEMA, *({group: option} for group, option in choices.items() if option is not None), "_self_"]
    node = {"defaults": entries, "hydra": {"searchpath": [f"file://{root}" for root in roots[1:]]}}
    ConfigStore.instance().store(name=_RUN, node=node, provider="ssl_zoo")
    try:
        with hydra.initialize_config_dir(config_dir=str(roots[0]), version_base="1.3"):
            return hydra.compose(_RUN)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(_explain(error)) from error


def _explain(error: BaseException) -> str:
    """Return the message for an error in an option's YAML file, with the file's name."""
    messages = [_first_line(error)]
    # Hydra chains with `raise ... from` for an override, but only implicitly for a key in a YAML file.
    while (error := error.__cause__ or error.__context__) is not None:
        full_key = getattr(error, "full_key", None)
        messages.append(f"{full_key}: {_first_line(error)}" if full_key else _first_line(error))
    return ": ".join(dict.fromkeys(messages))


# --- values -----------------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """Quote a plain value with characters beyond ASCII, such as a path with an umlaut, which Hydra's grammar lacks."""
    name, _, value = text.partition("=")
    if value.isascii() or not _PLAIN_VALUE.fullmatch(value):
        return text
    return f"{name}='{value}'"


def _parse(text: str) -> Override:
    if text.startswith(("+", "~")):
        raise ConfigError(f"{text}: keys can't be added or deleted, since the set of keys is fixed; write key=value")
    name, equals, _ = text.partition("=")
    if not equals:
        raise ConfigError(f"{text}: an override is written key=value or group=option")
    try:
        override = OverridesParser.create().parse_override(_quoted(text))
    except HydraException as error:
        remedy = f"""put the value in quotes of its own: '{name}="..."'"""
        raise ConfigError(f"{text}: the value can't be read; {remedy} if it holds a special character") from error
    if override.is_sweep_override():
        raise ConfigError(f"{text}: give one value; a list is written {name}=[a,b]")
    if override.package is not None:
        raise ConfigError(f"{text}: a group is chosen as group=option, without a package")
    return override


def _chooses(override: Override, options: Mapping[str, Sequence[str]]) -> bool:
    return override.key_or_group in options and not isinstance(override.value(), dict)


def _nested(override: Override) -> dict[str, Any]:
    value = override.value()
    for name in reversed(override.key_or_group.split(".")):
        value = {name: value}
    return value


def _assign(node: DictConfig, given: Mapping[Any, Any], defaults: DictConfig, source: Recipe | None) -> None:
    """Set nested values in a composed configuration.

    Args:
        source: the recipe of the values; None for the command line.
    """
    keys = {key.name: key for key in keys_of(node)}
    for name, value in leaves(given, keys):
        if name in sections() and not value:
            continue  # a section whose keys are all commented out; null where no option was chosen
        try:
            if name in keys:
                # Merging would refuse new names in a mapping; replacing would refuse dicts in a list of dataclasses.
                OmegaConf.update(node, name, value, merge=not isinstance(value, Mapping))
                continue
            message, cause = _not_a_leaf(name, value, node), None
        except OmegaConfBaseException as error:
            message, cause = wrong_value(keys[name], value, OmegaConf.select(defaults, name)), error
        raise ConfigError(("" if source is None else f"{source.where(name)}: ") + message) from cause


def _with_presets(given: Mapping[Any, Any]) -> Mapping[Any, Any]:
    try:
        return with_presets(given)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _not_a_leaf(name: str, value: Any, node: DictConfig) -> str:
    group, *_ = name.split(".")
    if name in sections() and name in REGISTRIES and not isinstance(value, Mapping):
        return f"{name} is chosen in the defaults list, by an entry `- {name}: {written(value)}`; here its keys are set"
    if group in sections() and (OmegaConf.is_missing(node, group) or node[group] is None):
        return f"{name}={written(value)}: this run has no {group}; choose one first, as {group}=OPTION"
    inside = listing(name, (key.name for key in keys_of(node)))
    if inside:
        return f"{name}={written(value)}: {name} is a section; set its keys, as {name}.KEY=VALUE: {inside}"
    return unknown_key(name, node)


def _carried_over(recipes: Sequence[Recipe], switched: set[str], own: DictConfig, chosen: DictConfig) -> list[Recipe]:
    """Return the recipes without the values that don't apply to the options that the command line chose instead.

    A key that both options inherit from the same dataclass has the same meaning in both and keeps its value
    (``backbone.image_size``), unless the value is the default of the recipe's own option. All other values are dropped,
    with a warning per section.

    Args:
        switched: sections with another option.
        own: the options of the recipes.
        chosen: the options that replace them.
    """
    values = own.copy()
    for layer in recipes:
        _assign(values, layer.values, own, layer)
    before, after = flat(own), flat(values)
    carried = []
    for layer in recipes:
        kept: dict[str, Any] = {}
        dropped: dict[str, list[str]] = {}
        for name, value in leaves(layer.values, after):
            group = name.partition(".")[0]
            if group not in switched or name == group:  # an empty section
                kept[name] = value
            elif (owner := _owner(own, name)) is None or owner is not _owner(chosen, name):
                dropped.setdefault(group, []).append(f"{name}={written(value)}")
            elif before.get(name) != after.get(name):
                kept[name] = value
        for group, keys in dropped.items():
            kind = REGISTRIES[group].kind
            _LOG.warning("%s: ignored, since another %s was chosen: %s", layer.path, kind, ", ".join(keys))
        carried.append(dataclasses.replace(layer, values=kept))
    return carried


def _owner(values: DictConfig, name: str) -> type | None:
    """Return the first ancestor of the chosen option's dataclass that declares a key."""
    group, field, *_ = name.split(".")
    bases = reversed((OmegaConf.get_type(values, group) or object).__mro__)
    return next((base for base in bases if field in inspect.get_annotations(base)), None)


def _missing(key: str, composed: Composed) -> str:
    if key in sections():
        options = ", ".join(composed.options.get(key, ()))
        return f"no {key} is chosen: write `- {key}: OPTION` in the recipe's defaults list. Options: {options}"
    meaning = next((known.meaning for known in keys_of(composed.values) if known.name == key), "")
    return f"{key} has no value: set it in the recipe or as {key}=... on the command line. Meaning: {meaning}"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
