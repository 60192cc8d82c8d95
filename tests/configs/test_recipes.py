"""Every recipe and every option in configs/."""

import importlib.resources
import re
from pathlib import Path

import pytest

from ssl_zoo.config import compose, load_config
from ssl_zoo.config.schema import sections
from ssl_zoo.method import build_method
from ssl_zoo.registry import REGISTRIES

ROOT = Path(str(importlib.resources.files("ssl_zoo.configs")))
RECIPES = sorted(path for path in ROOT.glob("*/*.yaml") if path.parent.name not in sections())
OPTIONS = [
    f"{group}={option}"
    for group, options in compose(ROOT / "ijepa" / "demo.yaml").options.items()
    for option in options
    if group in REGISTRIES
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_builds_the_encoder_that_its_header_counts(recipe):
    config = load_config(recipe)
    method = build_method(config.method, config.backbone, config.targets, seed=0, device="meta")
    header = " ".join(line.lstrip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    counted = re.search(r"Encoder: ([\d,]+) trainable parameters", header)
    trainable = sum(p.numel() for p in method.encoder.parameters() if p.requires_grad)
    assert counted and int(counted[1].replace(",", "")) == trainable


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_makes_a_config(option):
    group, name = option.split("=")
    section = getattr(load_config(ROOT / "ijepa" / "vitb16.yaml", [option]), group)
    assert isinstance(section, sections()[group])
    if name in REGISTRIES[group].names():
        assert type(section) is REGISTRIES[group].config_of(name)


def test_the_reference_recipe_has_the_reference_values():
    config = load_config(ROOT / "ijepa" / "vith14.yaml")
    optim, masks = config.optim, config.masks
    assert (config.backbone.patch_size, config.backbone.embed_dim, config.backbone.depth) == (14, 1280, 32)
    assert (config.method.predictor_dim, config.method.predictor_depth) == (384, 12)
    assert config.method.view.crop_scale == [0.3, 1.0]
    assert (masks.target_scale, masks.target_aspect, masks.context_scale) == ([0.15, 0.2], [0.75, 1.5], [0.85, 1.0])
    assert (masks.num_targets, masks.num_contexts, masks.min_patches) == (4, 1, 10)
    assert (optim.initial_learning_rate, optim.learning_rate, optim.final_learning_rate) == (2e-4, 1e-3, 1e-6)
    assert (optim.warmup_epochs, optim.weight_decay, optim.final_weight_decay) == (40, 0.04, 0.4)
    assert (config.targets.momentum, config.targets.final_momentum) == (0.996, 1.0)
    assert (config.trainer.images_per_step, config.trainer.epochs) == (2048, 300)
