"""The config.yaml of a run is itself a recipe."""

import pytest

from ssl_zoo.config import compose, load_config, recipe_text

OVERRIDES = [
    [],
    ["masks=null", "targets=null", "seed=${trainer.batch_size}", "output_dir='1e3'"],
    ["targets=pixels", "masks.target_scale=[0.1,0.3]", "optim.eps=1e-9", "backbone.layer_scale=1e-5"],
    ["method.distance=l2", "data.seed=3", "trainer.device=cpu", "trainer.num_steps=3"],
]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=range(len(OVERRIDES)))
def test_the_text_of_a_run_loads_as_an_equal_config_from_anywhere(tmp_path, overrides):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("defaults: [method: ijepa, backbone: vit_tiny, data: scenes]\n")
    composed = compose(recipe, overrides)
    written = tmp_path / "far" / "away" / "config.yaml"
    written.parent.mkdir(parents=True)
    written.write_text(recipe_text(composed))
    assert load_config(written) == composed.config
    assert compose(written).choices == composed.choices


def test_the_text_of_a_run_takes_another_option_and_keeps_changed_values(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("defaults: [method: ijepa, backbone: vit_tiny, data: scenes]\n")
    written = tmp_path / "config.yaml"
    written.write_text(recipe_text(compose(recipe, ["backbone.image_size=96"])))
    backbone = load_config(written, ["backbone=vit_base"]).backbone
    assert (backbone.embed_dim, backbone.image_size) == (768, 96)
