"""Keys use the field's words; no key has a name of the project's former dialect."""

import importlib.resources
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from ssl_zoo.config.keys import keys_of
from ssl_zoo.config.schema import Config, sections
from ssl_zoo.plugins import discover
from ssl_zoo.registry import REGISTRIES

FORBIDDEN = {
    # trainer, optim, monitor, probe
    *("images_per_step", "micro_batches", "checkpoint_activations"),
    *("learning_rate", "initial_learning_rate", "final_learning_rate", "clip_norm", "weight_decay_shape"),
    *("pictures_every", "protocols"),
    # masks, targets
    *("hidden_fraction", "cell_patches", "block_patches", "min_block_patches"),
    *("averaged_teacher", "num_blocks", "tap", "momentum_shape", "annealing"),
    # methods
    *("temperature_warmup", "frozen_last_layer", "view", "global_view", "local_view", "method.local_size"),
}
CONFIGS = Path(str(importlib.resources.files("ssl_zoo.configs")))


def registered() -> Iterator[str]:
    discover()
    for group, registry in REGISTRIES.items():
        for name in registry.names():
            yield f"{group}.{name}"
            yield from (key.name for key in keys_of(registry.config_of(name), f"{group}."))


def sections_of_the_schema() -> Iterator[str]:
    yield from (key.name for key in keys_of(Config))
    for name, config in sections().items():
        yield from (key.name for key in keys_of(config, f"{name}."))


def of_files(*patterns: str) -> Iterator[str]:
    for pattern in patterns:
        for path in CONFIGS.glob(pattern):
            yield from of_document(yaml.safe_load(path.read_text(encoding="utf-8")))


def of_document(node: object, prefix: str = "") -> Iterator[str]:
    """Keys of nested mappings and lists, and of the overrides ``key=value`` among them."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from of_document(value, f"{prefix}{name}.")
    elif isinstance(node, list):
        for entry in node:
            yield from of_document(entry, prefix)
    elif isinstance(node, str) and "=" in node:
        yield node.partition("=")[0]


def forbidden(keys: set[str]) -> list[str]:
    return sorted(key for key in keys if any(f".{name}." in f".{key}." for name in FORBIDDEN))


@pytest.mark.parametrize(
    "found, known",
    [
        (registered, "masks.mask_ratio"),
        (sections_of_the_schema, "trainer.batch_size"),
        (lambda: of_files("train.yaml", "*/*.yaml"), "optim.lr"),  # recipes and the options of groups
        (lambda: of_files("studies/*.yaml"), "masks.num_targets"),
    ],
    ids=["registered options", "sections", "recipes and options", "studies"],
)
def test_no_key_has_a_forbidden_name(found, known):
    keys = set(found())
    assert known in keys
    assert forbidden(keys) == []


def test_a_forbidden_name_is_found_in_recipes_overrides_and_inner_sections():
    document = {"trainer": {"micro_batches": 2}, "method": {"global_view": {"flip": True}}, "seed": 1}
    keys = {*of_document(document), *of_document({"overrides": ["optim.clip_norm=3", "optim.lr=1"]})}
    names = ["method.global_view", "method.global_view.flip", "optim.clip_norm", "trainer.micro_batches"]
    assert forbidden(keys) == names
