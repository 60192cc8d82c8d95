"""Recipe files are read with what they inherit; messages give the line of a key."""

import importlib.resources
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from ssl_zoo.config.keys import ConfigError
from ssl_zoo.config.schema import SCHEMA, sections
from ssl_zoo.registry import did_you_mean

ROOT_RECIPE = "train"  # its folder is a config root: the folder that holds the groups
_NO_RECIPES = ("_self_", SCHEMA)  # Hydra's entries, accepted and ignored: values always come last, the schema first


@dataclass(frozen=True)
class Recipe:
    """One recipe file, without what it inherits.

    Attributes:
        choices: the option that its defaults list names per group; None for null.
        values: nested values below the defaults list, interpolations unresolved.
    """

    path: Path
    choices: Mapping[str, str | None]
    values: Mapping[str, Any]

    def where(self, key: str) -> str:
        """Return ``file:line`` of a dotted key, for messages."""
        node = yaml.compose(self.path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        place = str(self.path)
        for name in key.split("."):
            entries = reversed(node.value if isinstance(node, yaml.MappingNode) else [])
            by_name = {name_node.value: (name_node, value_node) for name_node, value_node in entries}
            if name not in by_name:
                break
            name_node, node = by_name[name]
            place = f"{self.path}:{name_node.start_mark.line + 1}"
        return place


def config_roots(recipe: Path) -> list[Path]:
    """Return the folders in which groups and inherited recipes are looked up, nearest first.

    They are the recipe's own folder, the config root above it if there is one, and the config root of the package.
    """
    above = next((folder for folder in recipe.parents if (folder / f"{ROOT_RECIPE}.yaml").is_file()), None)
    packaged = Path(str(importlib.resources.files("ssl_zoo.configs")))
    return list(dict.fromkeys(folder for folder in (recipe.parent, above, packaged) if folder is not None))


def read_recipe(path: Path) -> list[Recipe]:
    """Return the recipe and those it inherits from, ancestors first; later ones take precedence.

    Raises:
        ConfigError: no such file, no valid YAML, an entry of the defaults list that can't be followed.
    """
    path = path.absolute()
    return list(_with_ancestors(path, config_roots(path), ()))


def _with_ancestors(path: Path, roots: list[Path], descendants: tuple[Path, ...]) -> Iterator[Recipe]:
    if path in descendants:
        raise ConfigError(f"{path}: its defaults list inherits from itself, through {descendants[-1]}")
    document = read_document(path, "recipe", "sections, e.g. `trainer: {epochs: 300}`")
    entries = document.pop("defaults", None) or []
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: defaults must be a list, e.g. `- method: ijepa` on lines of their own")
    inherits = any(isinstance(entry, str) and entry not in _NO_RECIPES for entry in entries)
    if not inherits and path.stem != ROOT_RECIPE:
        entries = [ROOT_RECIPE, *entries]
    choices: dict[str, str | None] = {}
    for entry in entries:
        if isinstance(entry, str) and entry in _NO_RECIPES:
            continue
        if isinstance(entry, str):
            yield from _with_ancestors(find_recipe(entry, path, roots, "defaults"), roots, (*descendants, path))
        else:
            choices.update([_choice(entry, path)])
    yield Recipe(path, choices, document)


def read_document(path: Path, kind: str, content: str) -> dict[str, Any]:
    """Return the nested values of a YAML file, interpolations unresolved.

    Args:
        kind: noun for the file, for messages.
        content: description of its values with an example, for messages.

    Raises:
        ConfigError: no such file, no valid YAML, no mapping.
    """
    if not path.is_file():
        raise ConfigError(_missing_file(path, kind))
    try:
        document = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise ConfigError(f"{path}{line}: no valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: can't be read as YAML: {error}") from error
    document = OmegaConf.to_container(document, resolve=False)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: a {kind} is a mapping of {content}")
    return document


def _choice(entry: Any, path: Path) -> tuple[str, str | None]:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ConfigError(f"{path}: defaults: {entry!r}: an entry is the name of a recipe or `group: option`")
    (group, option), *_ = entry.items()
    # Hydra's keyword is accepted, although a later entry takes precedence here anyway.
    group = str(group).removeprefix("override ").strip()
    if group not in sections():
        hint = f"{did_you_mean(group, sections())} Groups: {', '.join(sections())}"
        raise ConfigError(f"{path}: defaults: there is no group {group!r}.{hint}")
    if option is not None and not isinstance(option, str):
        raise ConfigError(f"{path}: defaults: {group}: {option!r}: an option is one name, or null")
    return group, option


def find_recipe(name: str, path: Path, roots: list[Path], key: str) -> Path:
    """Find the file of a recipe that another file names, e.g. ``ijepa/demo``.

    Args:
        path: the file that names it, which is never the result.
        roots: folders to search, in the order of ``config_roots``.
        key: key of the name in ``path``, for messages.

    Raises:
        ConfigError: there is none.
    """
    for folder in roots:
        candidate = (folder / name).with_suffix(".yaml") if not name.endswith(".yaml") else folder / name
        if candidate.is_file() and candidate != path:
            return candidate
    raise ConfigError(f"{path}: {key}: there is no recipe {name!r} in {' or '.join(map(str, roots))}")


def _missing_file(path: Path, kind: str) -> str:
    folder = next(parent for parent in path.parents if parent.is_dir())
    if folder != path.parent:
        return f"no {kind} at {path}: there is no folder {path.parent}"
    found = sorted(file.name for file in folder.glob("*.yaml"))
    hint = did_you_mean(path.name, found, f"{folder}/")
    return f"no {kind} at {path}.{hint} Files there: {', '.join(found) or 'none'}"
