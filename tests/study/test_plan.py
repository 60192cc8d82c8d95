"""Planned runs: their identity and cost."""

import pytest
from tiny_studies import tiny_study

from ssl_zoo.config import ConfigError, compose, recipe_text
from ssl_zoo.study.plan import identity, plan_runs


def test_runs_are_planned_seed_by_seed_with_everything_on_their_command_line(tmp_path):
    study = tiny_study(tmp_path)
    study.seeds = [0, 7]
    runs = plan_runs(study, ["trainer.num_steps=5"])
    assert [(run.entry, run.seed) for run in runs] == [("features", 0), ("pixels", 0), ("features", 7), ("pixels", 7)]
    assert len({run.identity for run in runs}) == 4
    assert all(run.composed.config.trainer.num_steps == 5 == run.cost.num_steps for run in runs)
    again = compose(runs[3].recipe, [*runs[3].overrides, "output_dir=elsewhere"])
    assert identity(again) == runs[3].identity
    assert runs[3].directory == f"pixels-seed7-{runs[3].identity}"


def test_identity_depends_on_the_configuration_and_not_on_how_it_was_written(tmp_path):
    run = plan_runs(tiny_study(tmp_path))[0]
    written = tmp_path / "config.yaml"
    written.write_text(recipe_text(run.composed))
    assert identity(compose(written)) == run.identity
    assert identity(compose(written, ["optim.lr=0.1"])) != run.identity
    assert identity(compose(written, ["seed=1"])) != run.identity
    assert identity(compose(written, ["seed=1"]), with_seed=False) == identity(run.composed, with_seed=False)
    assert identity(compose(written, ["optim=adamw"])) != identity(compose(written, ["optim=muon"]))


def test_cost_counts_images_and_is_lower_without_a_teacher(tmp_path):
    features, pixels = plan_runs(tiny_study(tmp_path))
    assert features.cost.images == pixels.cost.images == 3 * 8
    assert features.cost.flops_per_image > pixels.cost.flops_per_image > 0


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["optim.wegiht_decay=1"], ["entry features", "did you mean optim.weight_decay?"]),
        (["masks.min_patches=50"], ["entry features", "masks.min_patches=50"]),
        (["probe.evaluators=[logistic]"], ["probe.evaluators=[logistic] computes no score knn5"]),
        (["probe.at_end=false"], ["probe.at_end=false", "after the last step"]),
        (["seed=3"], ["sets seed from seeds"]),
    ],
)
def test_an_invalid_entry_is_reported_before_any_training(tmp_path, overrides, parts):
    with pytest.raises(ConfigError) as caught:
        plan_runs(tiny_study(tmp_path), overrides)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{evaluators: [nearest], columns: [nearest]}", "evaluations.other: no evaluator is named 'nearest'"),
        ("{evaluators: [knn], columns: [knn5], overrides: [data=seens]}", "evaluations.other: data=seens"),
    ],
)
def test_an_invalid_evaluation_is_reported_before_any_training(tmp_path, settings, message):
    study = tiny_study(tmp_path, f"evaluations:\n  other: {settings}\n")
    with pytest.raises(ConfigError, match="entry features: " + message):
        plan_runs(study)


def test_a_study_whose_runs_would_write_no_metrics_jsonl_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"write monitor.loggers=\[csv,jsonl\]"):
        plan_runs(tiny_study(tmp_path), ["monitor.loggers=[csv]"])
