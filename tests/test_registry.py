"""Registries map explicit names to classes and configs, and explain wrong names."""

from dataclasses import dataclass

import pytest

from ssl_zoo.registry import BROKEN_PLUGINS, REGISTRIES, Registry, UnknownName
from ssl_zoo.settings import setting


@dataclass
class ShapeConfig:
    sides: int = setting(3, "corners of the shape")
    lengths: list[float] = setting([1.0], "side lengths")


@dataclass
class OtherConfig(ShapeConfig):
    """A subclass configures another class."""


@pytest.fixture
def shapes():
    registry = Registry("shape", "test_shapes")

    @registry.register("triangle", ShapeConfig)
    class Triangle:
        """Three sides.

        More about it.
        """

        def __init__(self, config, color):
            self.config, self.color = config, color

    yield registry
    del REGISTRIES["test_shapes"]


def test_build_passes_the_config_to_the_class_that_it_configures(shapes):
    built = shapes.build(ShapeConfig(sides=4), color="red")
    assert (type(built), built.config.sides, built.color) == (shapes.get("triangle"), 4, "red")


def test_a_name_has_a_class_and_a_config(shapes):
    assert (shapes.get("triangle").__name__, shapes.config_of("triangle")) == ("Triangle", ShapeConfig)


def test_an_unknown_name_lists_the_nearest_and_all_names(shapes):
    shapes.register("square", OtherConfig)(type("Square", (), {}))
    with pytest.raises(UnknownName) as caught:
        shapes.get("trianlge")
    assert str(caught.value) == "no shape is named 'trianlge'. Did you mean 'triangle'? Known: square, triangle."


def test_an_unknown_name_lists_the_plug_ins_that_may_have_failed_to_register_it(shapes, monkeypatch):
    monkeypatch.setitem(BROKEN_PLUGINS, "roundness", "SyntaxError: invalid syntax")
    with pytest.raises(UnknownName, match="roundness can't be imported: SyntaxError"):
        shapes.get("circle")


def test_a_name_is_registered_once(shapes):
    with pytest.raises(ValueError, match="'triangle' is registered already"):
        shapes.register("triangle", OtherConfig)(type("Triangle", (), {}))


def test_a_config_belongs_to_its_own_class_not_to_that_of_a_base(shapes):
    assert shapes.name_of(ShapeConfig()) == "triangle"
    with pytest.raises(UnknownName, match="OtherConfig"):
        shapes.name_of(OtherConfig())


def test_the_summary_is_the_first_line_of_the_docstring(shapes):
    assert shapes.summary("triangle") == "Three sides."


def test_mutable_defaults_are_not_shared():
    ShapeConfig().lengths.append(2.0)
    assert ShapeConfig().lengths == [1.0]
