"""Recipes and overrides compose to a configuration; each mistake gives one message."""

import logging
import pickle
from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from ssl_zoo.config import ConfigError, compose, load_config
from ssl_zoo.config.keys import check_bounds
from ssl_zoo.masks import MASKS, MaskGenerator, MasksConfig
from ssl_zoo.settings import Settings, setting
from ssl_zoo.targets import MaskTeacher, PixelsConfig, TeacherConfig

RECIPE = """
defaults: [train, method: ijepa, backbone: vit_tiny, data: scenes, masks: multiblock, targets: teacher, _self_]
trainer:
  epochs: 7
backbone:
  image_size: 96
targets:
  ema:
    momentum: 0.5
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def message(recipe, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    return str(caught.value)


def test_values_come_from_dataclass_then_option_then_recipe_then_command_line(recipe):
    config = load_config(recipe, ["trainer.num_steps=9", "targets.mask=input"])
    assert config.backbone.num_registers == 0
    assert config.backbone.embed_dim == 192
    assert (config.trainer.epochs, config.targets.ema.momentum) == (7.0, 0.5)
    assert (config.trainer.num_steps, config.targets.mask) == (9, MaskTeacher.input)


def test_output_dir_follows_from_the_place_of_the_recipe(recipe):
    assert load_config(recipe).output_dir == "runs/mine/tiny"
    assert load_config(recipe, ["output_dir=elsewhere"]).output_dir == "elsewhere"


def test_a_recipe_inherits_from_its_neighbour_and_takes_precedence_without_override_keyword(recipe):
    child = recipe.with_name("child.yaml")
    child.write_text(
        "defaults: [tiny, targets: pixels, backbone: vit_small]\ntrainer: {gradient_accumulation_steps: 2}\n"
    )
    recipe.write_text(RECIPE.replace("targets:\n  ema:\n    momentum: 0.5\n", ""))
    config = load_config(child)
    assert isinstance(config.targets, PixelsConfig)
    assert (config.backbone.embed_dim, config.backbone.image_size) == (384, 96)
    assert (config.trainer.epochs, config.trainer.gradient_accumulation_steps) == (7.0, 2)


def test_masks_and_targets_default_to_the_methods_own(recipe):
    recipe.write_text("defaults: [method: ijepa, backbone: vit_tiny, data: scenes]\n")
    assert compose(recipe).choices["masks"] == "multiblock"
    assert isinstance(load_config(recipe).targets, TeacherConfig)
    assert load_config(recipe, ["masks=null"]).masks is None


def test_another_option_keeps_shared_keys_and_warns_of_the_values_that_it_drops(recipe, caplog):
    with caplog.at_level(logging.WARNING, logger="ssl_zoo"):
        config = load_config(recipe, ["targets=pixels", "backbone=vit_small"])
    assert config.targets == PixelsConfig()
    assert (config.backbone.image_size, config.backbone.embed_dim) == (96, 384)
    assert "ignored, since another target was chosen: targets.ema.momentum=0.5" in caplog.text


def test_interpolations_resolve(recipe):
    assert load_config(recipe, ["seed=${trainer.batch_size}"]).seed == 2048


@pytest.mark.parametrize(
    "override, parts",
    {
        "method.predicter.depth=4": ["method.predicter.depth", "did you mean method.predictor_depth?", "predictor_dim"],
        "trainr.epochs=3": ["did you mean trainer.epochs?", "Sections: ", "probe"],
        "optim.wd=3": ["did you mean optim.weight_decay?", "warmup_epochs"],
        "predictor_depth=3": ["did you mean method.predictor_depth?"],
        "targets.normalize=true": ["targets.normalize belongs to targets=pixels"],
        "zzzzqqqq=1": ["no key has a similar name"],
        "probe.every=0": [
            "did you mean probe.every_steps? Keys of probe: every_steps, ",
            ", knn.*, label_propagation.*, linear.*, ",
        ],
        "masks.target_scale=abc": ["masks.target_scale=abc", "list of numbers", "[0.15,0.2]", "target block area"],
        "masks.target_scale=[1,a]": ["masks.target_scale=[1,a]", "list of numbers"],
        "seed=x": ["seed=x", "expected integer"],
        "seed=null": ["seed=null", "expected integer"],
        "trainer.num_steps=1.5": ["integer or null"],
        "method.distance=l3": ["one of smooth_l1, l2"],
        "targets.ema=3": ["targets.ema is a section", "final_momentum"],
        "trainer=big": ["trainer is a section", "epochs, "],
        "backbone=vit_lrage": ["Did you mean backbone=vit_large?", "vit_base, vit_giant"],
        "method=ijeap": ["Did you mean method=ijepa?"],
        "seed=${sed}": ["seed=${sed}", "'sed' not found"],
        "seed=???": ["seed has no value", "as seed=..."],
        "masks.target_scale=[0.2,0.1]": ["masks.target_scale=[0.2, 0.1] must be [low, high]"],
        "+seed=1": ["can't be added or deleted"],
        "++seed=1": ["can't be added or deleted"],
        "~seed": ["can't be added or deleted"],
        "seed": ["key=value"],
        "seed=1,2": ["give one value", "[a,b]"],
        "data.root=a=b": ["quotes"],
        "backbone@x=vit_base": ["without a package"],
        "hydra.run.dir=x": ["there is no key hydra.run.dir"],
    }.items(),
)
def test_a_wrong_override_is_one_message_with_the_remedy(recipe, override, parts):
    text = message(recipe, override)
    assert [part for part in parts if part not in text] == []
    assert not any(leak in text for leak in ("use +", "full_key", "object_type", "ssl_zoo_run", "struct"))


def test_a_key_of_a_section_without_option_asks_for_the_option(recipe):
    assert "choose one first, as masks=OPTION" in message(recipe, "masks=null", "masks.num_targets=2")


@pytest.mark.parametrize(
    "content, parts",
    {
        "trainer:\n  epoch: 3\n": ["tiny.yaml:4: ", "no key trainer.epoch;", "did you mean trainer.epochs?"],
        "trainer:\n  epochs: soon\n": ["tiny.yaml:4: trainer.epochs=soon: expected number"],
        "trainer: {epochs: [}\n": ["tiny.yaml:3: no valid YAML"],
        "trainer: {epochs: 1}\ntrainer: {epochs: 2}\n": ["tiny.yaml:4: no valid YAML", "duplicate key trainer"],
        "method: mae\n": ["method is chosen in the defaults list", "`- method: mae`"],
        "method: {_target_: os.system, command: ls}\n": ["no key method._target_"],
        "method: {loss: !!python/object/apply:os.getcwd []}\n": ["no valid YAML", "python/object"],
        "backbone:\n  depth: ${nowhere}\n": ["backbone.depth=${nowhere}"],
    }.items(),
)
def test_a_wrong_recipe_gives_file_and_line(recipe, content, parts):
    recipe.write_text("\ndefaults: [train, method: ijepa, backbone: vit_tiny, data: scenes]\n" + content)
    text = message(recipe)
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize(
    "defaults, parts",
    {
        "[train, backbone: vit_tiny]": ["no data is chosen", "scenes"],
        "[train, metod: ijepa]": ["Did you mean 'method'?"],
        "[train, method: ijepo]": ["tiny.yaml: method=ijepo", "Did you mean method=ijepa?"],
        "[nowhere]": ["there is no recipe 'nowhere'"],
        "[tiny]": ["there is no recipe 'tiny'"],
        "train": ["defaults must be a list"],
        "[train, {method: ijepa, data: scenes}]": ["an entry is the name of a recipe or `group: option`"],
    }.items(),
)
def test_a_wrong_defaults_list_is_one_message(recipe, defaults, parts):
    recipe.write_text(f"defaults: {defaults}\n")
    text = message(recipe)
    assert [part for part in parts if part not in text] == []


def test_recipes_that_inherit_from_each_other_are_refused(recipe):
    recipe.write_text("defaults: [other]\n")
    recipe.with_name("other.yaml").write_text("defaults: [tiny]\n")
    assert "inherits from itself" in message(recipe)


def test_a_recipe_that_does_not_exist_names_the_nearest_and_its_neighbours(recipe):
    text = message(recipe.with_name("tinny.yaml"))
    assert f"Did you mean {recipe}?" in text
    assert "no folder" in message(recipe.parent / "absent" / "tiny.yaml")


def test_a_mistake_in_an_option_file_of_the_user_names_the_file(recipe):
    (recipe.parent / "backbone").mkdir()
    option = recipe.parent / "backbone" / "wide.yaml"
    option.write_text("defaults: [vit, _self_]\nembed_dim: 256\nnum_heads: 4\n")
    assert load_config(recipe, ["backbone=wide"]).backbone.embed_dim == 256
    option.write_text("defaults: [vit, _self_]\nembed_dmi: 256\n")
    text = message(recipe, "backbone=wide")
    assert "backbone/wide" in text and "embed_dmi" in text


@dataclass
class DecayConfig(Settings):
    momentum: float = setting(0.9, "weight of the past", at_least=0, at_most=1)


@dataclass
class TwoDecaysConfig(MasksConfig):
    """Two sections of one dataclass type."""

    fast: DecayConfig = setting(DecayConfig(), "fast decay")
    slow: DecayConfig = setting(DecayConfig(), "slow decay")
    sizes: list[int] | None = setting(None, "sizes", length=2, at_least=1)


@pytest.fixture
def late_generator(recipe, monkeypatch):
    """A mask generator that is registered after a first composition."""
    compose(recipe)
    monkeypatch.setattr(MASKS, "_obj_map", dict(MASKS._obj_map))
    monkeypatch.setattr(MASKS, "_configs", dict(MASKS._configs))
    MASKS.register("two_decays", TwoDecaysConfig)(type("TwoDecays", (MaskGenerator,), {}))


def test_a_part_that_is_registered_after_a_composition_is_an_option_of_the_next(recipe, late_generator):
    assert load_config(recipe, ["masks=two_decays", "masks.slow.momentum=1"]).masks.slow.momentum == 1.0


@pytest.mark.parametrize(
    "override, expected",
    [
        ("masks.fast.momentum=2", "masks.fast.momentum=2.0 must be at least 0 and at most 1"),
        ("masks.slow.momentum=nan", "masks.slow.momentum=nan must be at least 0 and at most 1"),
        ("masks.slow.momentum=${trainer.batch_size}", "masks.slow.momentum=2048.0 must be at least 0 and at most 1"),
        ("masks.sizes=[1,0]", "masks.sizes=[1, 0] must be 2 values, each at least 1"),
    ],
)
def test_a_value_out_of_bounds_is_named_by_its_full_key(recipe, late_generator, override, expected):
    assert message(recipe, "masks=two_decays", override) == expected


def test_bounds_of_one_section_are_checked_without_the_others():
    values = OmegaConf.structured(TwoDecaysConfig)
    values.slow.momentum = 2.0
    check_bounds(values, "fast.")
    with pytest.raises(ConfigError, match=r"slow\.momentum=2\.0"):
        check_bounds(values, "slow.")


def test_a_wrong_type_is_answered_with_type_and_bounds(recipe, late_generator):
    assert "expected number, at least 0 and at most 1" in message(recipe, "masks=two_decays", "masks.fast.momentum=x")


def test_a_mapping_takes_new_names_from_recipes_and_overrides(recipe) -> None:
    recipe.write_text(f"{RECIPE}monitor: {{alarm: {{limits: {{target_std: 0.5}}}}}}\n")
    assert load_config(recipe, []).monitor.alarm.limits == {"target_std": 0.5}
    assert load_config(recipe, ["monitor.alarm.limits={target_cosine: 0}"]).monitor.alarm.limits == {"target_cosine": 0}
    assert "names, each with a number" in message(recipe, "monitor.alarm.limits={target_cosine: high}")


def test_a_configuration_can_be_sent_to_another_process(recipe):
    config = load_config(recipe, ["probe.knn.k=[7]"])
    copied = pickle.loads(pickle.dumps(config))
    assert copied == config and copied.probe.knn.k == [7]


@pytest.mark.parametrize("path", ["/home/müller/写真/ä.1", "./caf\udce9", "data/ü~b+c@d"])
def test_a_path_with_characters_beyond_ascii_needs_no_quotes(recipe, path):
    assert load_config(recipe, [f"output_dir={path}"]).output_dir == path
