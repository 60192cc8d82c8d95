"""View sets and their presets."""

import importlib.resources
import logging
from pathlib import Path

import pytest

from ssl_zoo.config import ConfigError, compose_section, load_config
from ssl_zoo.method import METHODS
from ssl_zoo.views import VIEWS

ROOT = Path(str(importlib.resources.files("ssl_zoo.configs")))


def specs(*overrides: str) -> dict:
    return {spec.name: spec for spec in VIEWS.build(compose_section("views", overrides)).specs((32, 48))}


def test_a_single_crop_is_one_masked_view_at_the_size_of_the_backbone() -> None:
    [(name, spec)] = specs("views=single_crop", "views.blur=0.5").items()
    assert (name, spec.size, spec.masked, spec.config.blur) == ("image", (32, 48), True, 0.5)


def test_multi_crop_has_two_masked_global_crops_and_smaller_local_ones_without_masks() -> None:
    found = specs("views=multi_crop", "views.num_local_crops=2", "views.local_size=16")
    assert list(found) == ["global_0", "global_1", "local_0", "local_1"]
    assert [(spec.size, spec.masked) for spec in found.values()] == [((32, 48), True)] * 2 + [((16, 16), False)] * 2


def test_two_crops_are_global_crops_with_augmentations_of_their_own() -> None:
    found = specs("views=two_crops", "views.second_global_crop.solarize=0.2")
    assert [spec.config.solarize for spec in found.values()] == [0.0, 0.2] and list(found) == ["global_0", "global_1"]


@pytest.mark.parametrize("name", METHODS.names())
def test_the_default_views_of_a_method_are_of_a_kind_that_it_accepts(name: str) -> None:
    found = specs(f"views={METHODS.get(name).default_views}")
    assert "image" in found or {"global_0", "global_1"} <= set(found)


def test_another_method_keeps_the_views_unless_it_needs_another_kind(caplog: pytest.LogCaptureFixture) -> None:
    recipe = ROOT / "ijepa" / "cifar10_vitt4.yaml"
    caplog.set_level(logging.WARNING, logger="ssl_zoo.config")
    assert load_config(recipe, ["method=mae"]).views == load_config(recipe).views
    assert "views" not in caplog.text
    views = load_config(recipe, ["method=dino"]).views
    assert type(views) is VIEWS.config_of("multi_crop") and views.num_local_crops == 8
    assert "views=dino: method=dino needs other views than views=single_crop" in caplog.text


def test_augmentations_are_a_swap_of_their_own() -> None:
    recipe = ROOT / "ijepa" / "vitb16.yaml"
    jittered = load_config(recipe, ["views.color_jitter=[0.4,0.4,0.4,0.1]"])
    assert jittered.views.color_jitter == [0.4, 0.4, 0.4, 0.1] and jittered.views.crop_scale == [0.3, 1.0]
    assert load_config(recipe, ["views=mae"]).views.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("views.crop_scale=[0.5,0.2]", "views.crop_scale"),
        ("views.horizontal_flip=2", "views.horizontal_flip=2.0 must be at least 0 and at most 1"),
        ("views.local_size=16", "views.local_size belongs to views=multi_crop"),
    ],
)
def test_mistakes_name_their_keys(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(ROOT / "mae" / "vitb16.yaml", [override])
