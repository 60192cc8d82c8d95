import dataclasses
import json

import pytest
from omegaconf import OmegaConf
from tiny_probes import encoder, probe

from ssl_zoo.config import ConfigError, load_config
from ssl_zoo.eval import EVALUATORS
from ssl_zoo.eval.base import plain
from ssl_zoo.eval.linear import LinearConfig
from ssl_zoo.eval.presets import PRESETS

RECIPE = "configs/ijepa/demo.yaml"
NAMES = [(evaluator, preset) for evaluator, presets in PRESETS.items() for preset in presets]


@pytest.mark.parametrize(("evaluator", "preset"), NAMES)
def test_the_values_of_every_preset_fit_its_evaluator(evaluator, preset):
    values = PRESETS[evaluator][preset].values
    section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EVALUATORS.config_of(evaluator)), values))
    assert {key: plain(getattr(section, key)) for key in values} == values


@pytest.mark.parametrize("evaluator", PRESETS)
def test_a_preset_is_one_option_away(evaluator):
    name, preset = next(iter(PRESETS[evaluator].items()))
    section = getattr(load_config(RECIPE, [f"probe.{evaluator}.preset={name}"]).probe, evaluator)
    assert section.preset == name
    assert all(plain(getattr(section, key)) == value for key, value in preset.values.items())


@pytest.mark.parametrize("reverse", [False, True])
def test_explicit_values_hold_wherever_they_stand(reverse):
    words = ["probe.linear.preset=ijepa_imagenet_v1", "probe.linear.epochs=28"]
    config = load_config(RECIPE, words[::-1] if reverse else words)
    assert config.probe.linear.epochs == 28 and config.probe.linear.lrs == [0.01, 0.05, 0.001]


def test_a_recipe_may_name_a_preset_and_change_it(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("defaults: [ijepa/demo]\nprobe:\n  linear: {preset: mae_v1, epochs: 3}\n")
    section = load_config(recipe).probe.linear
    assert (section.epochs, section.warmup_epochs, section.lrs) == (3, 10.0, [0.1])


def test_an_unknown_preset_is_named_with_the_nearest():
    message = r"probe\.linear\.preset=mae_v2: no such preset\. Did you mean 'mae_v1'\? Known: ijepa_imagenet_v1"
    with pytest.raises(ConfigError, match=message):
        load_config(RECIPE, ["probe.linear.preset=mae_v2"])
    with pytest.raises(ValueError, match=message):
        LinearConfig(preset="mae_v2")


def test_the_protocol_has_the_preset_and_what_was_changed():
    values = {**load_preset("ijepa_clevr_v1"), "epochs": 1, "batch_size": 40, "layer_counts": [1, 2]}
    [score] = probe(evaluators=["linear"], linear=LinearConfig(**values))(encoder())
    assert score.protocol["preset"] == "ijepa_clevr_v1"
    assert score.protocol["preset_changes"] == {"epochs": 1, "batch_size": 40, "layer_counts": [1, 2]}
    assert score.name == "linear_best_on_test" and score.protocol["features"] == "streamed"
    json.dumps(score.protocol)


def load_preset(name: str) -> dict[str, object]:
    """Return the settings of a linear preset as a composed configuration has them."""
    section = load_config(RECIPE, [f"probe.linear.preset={name}"]).probe.linear
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
