"""Overrides from Python mean what they say once a recipe is composed with them."""

from enum import Enum
from pathlib import Path

import pytest
from tiny_commands import DEMO

from ssl_zoo.api.overrides import as_words
from ssl_zoo.config import compose


class Kind(Enum):
    bf16 = "bf16"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output_dir", "runs/a b, (c)"),
        ("output_dir", 'it\'s "quoted"'),
        ("output_dir", "back\\slash"),
        ("seed", 3),
        ("optim.lr", 1e-05),
        ("monitor.progress_bar", False),
        ("trainer.num_steps", None),
        ("masks.target_scale", [0.1, 0.2]),
        ("probe.evaluators", []),
        ("probe.evaluators", ("knn", "linear")),
        ("trainer.precision", "bf16"),
    ],
)
def test_a_value_arrives_unchanged(key: str, value: object):
    node = compose(DEMO, as_words({key: value})).resolved
    for name in key.split("."):
        node = node[name]
    found = getattr(node, "value", node)
    assert (list(found) if isinstance(value, (list, tuple)) else found) == (
        list(value) if isinstance(value, tuple) else value
    )


def test_enums_paths_and_groups_are_values():
    config = compose(DEMO, as_words({"trainer.precision": Kind.bf16, "output_dir": Path("b"), "method": "mae"})).config
    assert (config.trainer.precision.value, config.output_dir) == ("bf16", "b")
    assert type(config.method).__name__ == "MAEConfig"


def test_other_types_are_refused_with_their_key():
    with pytest.raises(ValueError, match=r"optim\.lr=.*: a set is no value of a recipe"):
        as_words({"optim.lr": {1}})
