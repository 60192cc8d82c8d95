"""``--help-config`` prints every key of a composed configuration with its type, bounds, default and meaning."""

import dataclasses
import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ssl_zoo.config.keys import Key, flat, keys_of, written
from ssl_zoo.config.load import Composed
from ssl_zoo.config.schema import Config, sections


def describe(composed: Composed) -> str:
    """Return one line per key, grouped by section; a value that differs from its default is shown beside it.

    Defaults are those of the chosen option: with ``backbone=vit_large``, ``backbone.embed_dim`` defaults to 1024.
    """
    keys = list(keys_of(composed.values))
    blocks = [_table(composed, [key for key in keys if "." not in key.name])]
    for field in dataclasses.fields(Config):
        if field.name in sections():
            inside = [key for key in keys if key.name.startswith(f"{field.name}.")]
            blocks.append([_title(composed, field), *_table(composed, inside)])
    return "\n\n".join("\n".join(block) for block in blocks)


def _title(composed: Composed, field: dataclasses.Field) -> str:
    meaning, options = field.metadata["meaning"], composed.options.get(field.name)
    if not options:
        return f"{field.name}: {meaning}"
    return f"{field.name}={written(composed.choices.get(field.name))}: {meaning}. Options: {', '.join(options)}"


def _table(composed: Composed, keys: Iterable[Key]) -> list[str]:
    defaults, values = flat(composed.defaults), flat(composed.values)
    rows = [(key.name, key.expected, _value(key.name, defaults, values), key.meaning) for key in keys]
    widths = [min(max(map(len, column)), 44) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _value(name: str, defaults: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    default, value = written(defaults[name]), written(values[name])
    return default if default == value else f"{default} (here {value})"


def presets(group: str) -> dict[str, str]:
    """Return the options of a group that are YAML files of the package, each with the first comment in its file."""
    folder = Path(str(importlib.resources.files("ssl_zoo.configs"))) / group
    first_lines = {file.stem: file.read_text(encoding="utf-8").partition("\n")[0] for file in folder.glob("*.yaml")}
    return {name: line.removeprefix("#").strip() for name, line in first_lines.items()}
