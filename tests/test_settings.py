"""Bounds of settings: which values are inside, and the message about one that is not."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest

from ssl_zoo.settings import Settings, bounds_of, out_of_bounds, permitted, setting


@dataclass
class KnobConfig(Settings):
    section: ClassVar[str] = "knob"

    ratio: float = setting(0.5, "share", above=0, below=1)
    width: int | None = setting(8, "width", at_least=4, at_most=64, multiple_of=4)
    scale: list[float] = setting([0.1, 0.2], "range", length=2, above=0)
    mode: str = setting("fast", "mode", one_of=("fast", "slow"))


@pytest.mark.parametrize(
    "bounds, inside, outside, words",
    [
        ({"at_least": 1}, [1, 2, math.inf], [0, 0.999, -math.inf, math.nan], "at least 1"),
        ({"at_most": 1}, [1, 0, -math.inf], [2, 1.001, math.inf, math.nan], "at most 1"),
        ({"above": 0}, [1e-9, 5], [0, -1, math.nan], "above 0"),
        ({"below": 1}, [0.999, -5], [1, 2, math.nan], "below 1"),
        ({"multiple_of": 4}, [4, 0, 64], [1, 6, math.nan], "a multiple of 4"),
        ({"one_of": ("a", "b")}, ["a", "b"], ["c", ""], "one of a, b"),
        ({"length": 2}, [[1, 2], (3, 4)], [[], [1], [1, 2, 3]], "2 values"),
        ({"at_least": 0, "below": 1}, [0, 0.5], [-1, 1], "at least 0 and below 1"),
        ({"length": 2, "above": 0}, [[1, 2]], [[1], [0, 1], [1, math.nan]], "2 values, each above 0"),
        ({"at_least": 1}, [[], [1, 2]], [[1, 0]], "at least 1"),
        ({}, [0, math.nan, "x", [], None], [], ""),
    ],
)
def test_a_bound_admits_the_values_inside_and_refuses_those_outside(bounds, inside, outside, words):
    assert [value for value in inside if out_of_bounds("key", value, bounds)] == []
    assert [value for value in outside if not out_of_bounds("key", value, bounds)] == []
    assert permitted(bounds) == words


@pytest.mark.parametrize("bounds", [{"at_least": 1}, {"above": 0, "multiple_of": 2}, {"one_of": ("a",)}, {"length": 2}])
def test_null_is_inside_every_bound(bounds):
    assert out_of_bounds("key", None, bounds) is None


@pytest.mark.parametrize(
    "values, message",
    [
        ({"ratio": 1.5}, "knob.ratio=1.5 must be above 0 and below 1"),
        ({"ratio": math.nan}, "knob.ratio=nan must be above 0 and below 1"),
        ({"width": 6}, "knob.width=6 must be at least 4 and at most 64 and a multiple of 4"),
        ({"scale": [0.1]}, "knob.scale=[0.1] must be 2 values, each above 0"),
        ({"scale": [0.1, -2]}, "knob.scale=[0.1, -2] must be 2 values, each above 0"),
        ({"mode": "warp"}, "knob.mode=warp must be one of fast, slow"),
    ],
)
def test_construction_refuses_a_value_outside_with_key_value_and_permitted_range(values, message):
    with pytest.raises(ValueError) as caught:
        KnobConfig(**values)
    assert str(caught.value) == message


def test_construction_accepts_values_on_inclusive_limits_and_null():
    assert [KnobConfig(width=width).width for width in (4, 64, None)] == [4, 64, None]


def test_a_config_without_section_names_the_field_alone():
    @dataclass
    class Loose(Settings):
        size: int = setting(1, "size", at_least=1)

    with pytest.raises(ValueError, match=r"^size=0 must be at least 1$"):
        Loose(size=0)


def test_a_field_keeps_its_meaning_and_declares_only_the_given_bounds():
    ratio, *_ = fields(KnobConfig)
    assert (ratio.metadata["meaning"], bounds_of(ratio)) == ("share", {"above": 0, "below": 1})


def test_mutable_defaults_are_copied_for_every_instance():
    KnobConfig().scale.append(0.3)
    assert KnobConfig().scale == [0.1, 0.2]
