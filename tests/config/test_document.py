"""Every key is documented, and --help-config prints it."""

import dataclasses

import pytest

import ssl_zoo.config.schema as schema
from ssl_zoo.config import compose, describe
from ssl_zoo.config.keys import keys_of
from ssl_zoo.masks import MASKS, MasksConfig
from ssl_zoo.plugins import discover
from ssl_zoo.registry import REGISTRIES
from ssl_zoo.settings import setting

discover()
REGISTERED = {
    f"{group}={name}": REGISTRIES[group].config_of(name) for group in REGISTRIES for name in REGISTRIES[group].names()
}
SECTIONS = {name: config for name, config in schema.sections().items() if name not in REGISTRIES}


@pytest.mark.parametrize("name, config", (REGISTERED | SECTIONS | {"root": schema.Config}).items())
def test_every_key_has_a_meaning_of_one_line(name, config):
    undocumented = [key.name for key in keys_of(config) if not key.meaning.strip() or "\n" in key.meaning]
    assert undocumented == []


@pytest.mark.parametrize("group", REGISTRIES)
def test_every_registered_part_has_a_summary(group):
    assert [name for name in REGISTRIES[group].names() if not REGISTRIES[group].summary(name)] == []


def test_the_text_shows_every_key_with_default_value_meaning_and_the_options(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("defaults: [method: ijepa, backbone: vit_large, data: scenes]\nmasks: {num_targets: 2}\n")
    composed = compose(recipe)
    lines = describe(composed).splitlines()
    for key in keys_of(composed.values):
        assert sum(line.split()[:1] == [key.name] and key.meaning in line for line in lines) == 1, key.name
    assert any("masks.num_targets" in line and "integer" in line and "4 (here 2)" in line for line in lines)
    assert any(line.startswith("backbone=vit_large: ") and "vit_huge" in line for line in lines)
    assert any("backbone.embed_dim" in line and "1024" in line and "here" not in line for line in lines)


@dataclasses.dataclass
class RangeConfig(MasksConfig):
    ratio: float = setting(0.5, "share of the grid", above=0, below=1)
    scale: list[float] | None = setting(None, "range of areas", length=2, at_least=0)


def test_a_key_is_printed_with_its_type_and_permitted_range(tmp_path, monkeypatch):
    for names in ("_obj_map", "_configs"):
        monkeypatch.setattr(MASKS, names, dict(getattr(MASKS, names)))
    MASKS.register("range", RangeConfig)(type("Range", (), {}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("defaults: [method: ijepa, backbone: vit_tiny, data: scenes, masks: range]\n")
    rows = [" ".join(line.split()) for line in describe(compose(recipe)).splitlines()]
    assert "masks.ratio number, above 0 and below 1 0.5 share of the grid" in rows
    assert "masks.scale list of numbers or null, 2 values, each at least 0 null range of areas" in rows


def test_a_config_with_a_missing_value_can_be_documented(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("defaults: [method: ijepa]\n")
    assert "backbone=null: " in describe(compose(recipe))


def test_sections_have_a_meaning():
    assert all(field.metadata["meaning"] for field in dataclasses.fields(schema.Config))
