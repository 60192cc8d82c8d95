"""Recipes and overrides become a typed configuration; every key is documented and checked."""

from ssl_zoo.config.document import describe
from ssl_zoo.config.keys import ConfigError
from ssl_zoo.config.load import Composed, compose, compose_section, compose_settings, load_config, recipe_text
from ssl_zoo.config.schema import Config

__all__ = [
    *("Composed", "Config", "ConfigError", "compose", "compose_section", "compose_settings"),
    *("describe", "load_config", "recipe_text"),
]
