"""Every study in configs/studies, and the recipe that restates the reference."""

import functools
import importlib.resources
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssl_zoo.config import compose, load_config
from ssl_zoo.masks import MASKS
from ssl_zoo.masks.multiblock import ContextLength
from ssl_zoo.method import METHODS
from ssl_zoo.regularizers import REGULARIZERS
from ssl_zoo.study.file import read_study
from ssl_zoo.study.plan import identity, plan_runs

ROOT = Path(str(importlib.resources.files("ssl_zoo.configs")))
STUDIES = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))


@functools.cache
def planned(name: str):
    """The study and its runs of one seed; planning builds masks and networks of every entry."""
    study = replace(read_study(ROOT / "studies" / f"{name}.yaml"), seeds=[0])
    return study, {run.entry: run for run in plan_runs(study)}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_plans_different_runs_of_one_backbone_and_data(name):
    study, runs = planned(name)
    assert len({run.identity for run in runs.values()}) == len(study.entries) >= 2
    configs = [run.composed.config for run in runs.values()]
    assert {type(config.backbone) for config in configs} == {type(configs[0].backbone)}
    assert {(config.backbone.embed_dim, config.backbone.depth, config.backbone.grid) for config in configs} == {
        (128, 4, (6, 6)) if name == "dense" else (192, 6, (8, 8))  # on rendered scenes
    }
    assert all(
        config.data == configs[0].data and config.probe.evaluators[:2] == ["knn", "logistic"] for config in configs
    )
    assert study.source.count("2301.08243") == bool(study.published_columns)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("table6_masking", [54.2, 15.5, 20.2, 17.6]),
        ("table7_targets", [66.9, 40.7]),
        ("table8_target_scale", [19.2, 39.2, 42.4, 54.2, 38.9, 33.6]),
        ("table9_context_scale", [31.2, 47.1, 49.3, 54.2]),
        ("table10_num_targets", [9.0, 22.0, 48.5, 54.2]),
        ("table11_where_masked", [67.3, 56.1]),
        ("table12_predictor_depth", [64.0, 66.9]),
        ("table13_weight_decay", [69.4, 77.8, 70.7, 76.4]),
        ("table14_predictor_width", [70.7, 68.4]),
    ],
)
def test_published_values_are_those_of_the_paper(name, values):
    entries = read_study(ROOT / "studies" / f"{name}.yaml").entries.values()
    assert [value for entry in entries for value in entry.published.values()] == values


def test_mask_tables_share_the_run_with_the_papers_setting():
    shared = set()
    for name, entry in (
        ("8_target_scale", "from_15_to_20"),
        ("9_context_scale", "from_85"),
        ("10_num_targets", "four"),
    ):
        study = read_study(ROOT / "studies" / f"table{name}.yaml")
        shared.add(identity(compose(study.recipe, [*study.overrides, *study.entries[entry].overrides])))
    assert len(shared) == 1


def test_the_reference_recipe_has_the_values_of_the_reference_except_sizes():
    config, full = load_config(ROOT / "ijepa" / "cifar10_reference.yaml"), load_config(ROOT / "ijepa" / "vith14.yaml")
    assert config.masks == replace(full.masks, min_patches=4, context_length=ContextLength.compat)
    assert config.targets == full.targets and config.views == full.views
    assert config.method.distance == full.method.distance
    assert config.backbone.initialization == full.backbone.initialization
    warmup = config.optim.warmup_epochs / config.trainer.epochs
    assert warmup == pytest.approx(full.optim.warmup_epochs / full.trainer.epochs, rel=1e-3)
    assert config.optim == replace(full.optim, warmup_epochs=config.optim.warmup_epochs)
    assert config.trainer.batch_size == 256
    short = load_config(ROOT / "ijepa" / "cifar10_vitt4.yaml")
    assert config.trainer.epochs == short.trainer.epochs and config.data == short.data
    assert replace(config.backbone, initialization=short.backbone.initialization) == short.backbone
    masks = MASKS.build(config.masks, config.backbone.grid)
    for seed in range(2):
        masks(256, torch.Generator().manual_seed(seed))
    assert masks.num_relaxed == 0


def test_the_study_of_equal_compute_has_every_method_at_equal_compute():
    _, runs = planned("methods_equal_compute")
    assert {run.composed.choices["method"] for run in runs.values()} == set(METHODS.names())
    flops = [run.cost.num_steps * run.cost.batch_size * run.cost.flops_per_image for run in runs.values()]
    assert max(flops) <= 1.02 * min(flops)


def test_the_study_of_collapse_crosses_targets_with_every_regularizer():
    _, runs = planned("collapse")
    chosen = set()
    for run in runs.values():
        config, choices = run.composed.config, run.composed.choices
        chosen.add((choices["targets"], getattr(config.targets, "stop_gradient", None), choices.get("regularizer")))
    kinds = [("teacher", None), ("online", True), ("online", False)]
    assert chosen == {(*kind, name) for kind in kinds for name in (None, *REGULARIZERS.names())}
