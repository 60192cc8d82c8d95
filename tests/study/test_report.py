"""Reports of real, tiny runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_studies import last_score, tiny_study

from ssl_zoo.study.comparison import compare_runs, compare_study
from ssl_zoo.study.evaluation import plan_evaluations, scores_of
from ssl_zoo.study.plan import plan_runs
from ssl_zoo.study.record import RunFolder, RunRecord
from ssl_zoo.study.report import duration, quantity, report
from ssl_zoo.tools.eval_net import main as evaluate
from ssl_zoo.tools.train_net import main as train


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tiny_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, study) -> tuple[Path, list]:
    """A folder with the runs of the study's two entries, and the planned runs."""
    folder, runs = tmp_path_factory.mktemp("runs"), plan_runs(study)
    for run in runs:
        assert train(["--config", run.recipe, *run.overrides, f"output_dir={folder / run.directory}"]) == 0
    return folder, runs


def markdown(comparison, folder: Path) -> str:
    return report(comparison, folder).markdown()


def test_the_report_has_the_scores_of_the_runs_the_papers_values_and_the_difference(study, trained, tmp_path):
    folder, runs = trained
    text = markdown(compare_study(study, runs, RunFolder(folder), {}, "the command"), tmp_path)
    scores = [f"{100 * last_score(folder / run.directory, 'knn5'):.1f}" for run in runs]
    initial = f"{100 * last_score(folder / runs[0].directory, 'knn5_random_init'):.1f}"
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["random init", initial, "\N{EN DASH}", "0", "0", "\N{EN DASH}"] in lines
    assert [line[:4] for line in lines if line[0] in ("teacher features", "pixels")] == [
        ["teacher features", scores[0], "66.9", "24"],
        ["pixels", scores[1], "40.7", "24"],
    ]
    assert ["`targets`", "teacher", "pixels"] in lines
    assert not [line for line in lines if line[0] == "`targets.ema.momentum`" and line[1] == line[2]]
    assert "2 of 2 runs finished" in text and "the command" in text
    commit = json.loads((folder / runs[0].directory / "environment.json").read_text())["commit"]
    assert commit is None or commit[:10] in text
    assert f"{runs[0].directory}/)" in text


def test_a_part_that_some_configurations_lack_is_one_difference(tmp_path):
    study = tiny_study(tmp_path, "  regularized: {overrides: [regularizer=vicreg]}")
    text = markdown(compare_study(study, plan_runs(study), RunFolder(tmp_path), {}, "the command"), tmp_path)
    assert [line.split("|")[2:5] for line in text.splitlines() if line.startswith("| `regularizer` ")] == [
        [" null ", " null ", " vicreg "]
    ]


def test_monitored_values_stand_in_a_table_with_the_step_of_the_alarm(study, trained, tmp_path):
    folder, runs = trained
    for run in runs:
        shutil.copytree(folder / run.directory, tmp_path / run.directory)
    metrics = tmp_path / runs[0].directory / "metrics.jsonl"
    collapsed = [
        {"step": step, "target_cosine": 0.5 + step / 100, "collapse": value} for step, value in ((41, 1), (42, 0))
    ]
    metrics.write_text(metrics.read_text() + "".join(f"{json.dumps(line)}\n" for line in collapsed))
    watching = replace(study, metrics=["target_cosine", "unknown"])
    text = markdown(compare_study(watching, runs, RunFolder(tmp_path), {}, "the command"), tmp_path)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["", "target_cosine", "unknown", "alarm"] in lines
    assert ["teacher features", "0.92", "\N{EN DASH}", "1 of 1, step 41"] in lines
    [pixels] = [line for line in lines if line[0] == "pixels" and len(line) == 4 and line[2] == "\N{EN DASH}"]
    assert pixels[3] == "\N{EN DASH}"
    assert "Monitored values" not in markdown(compare_study(study, runs, RunFolder(folder), {}, "c"), tmp_path)


EVALUATION = """evaluations:
  scenes:
    title: How near, how many
    evaluators: [knn]
    labels: [distance, count]
    columns: [knn5]
    overrides: [data.num_train=48, probe.train_samples=40]
"""


def test_an_evaluation_of_the_runs_has_its_own_table(trained, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(trained[0], folder)
    study = tiny_study(tmp_path, EVALUATION)
    runs, [evaluation] = plan_runs(study), plan_evaluations(study.evaluations)
    one, other = (folder / run.directory for run in runs)
    _, module, name, *words = evaluation.command(one)
    assert (module, name) == ("-m", "ssl_zoo.tools.eval_net")
    assert not evaluation.is_done(one) and evaluate(words) == 0 and evaluation.is_done(one)
    assert not evaluation.is_done(other)
    comparison = compare_study(study, runs, RunFolder(folder), {}, "")
    assert [row.is_finished for row in comparison.rows] == [True, False]
    text = markdown(comparison, tmp_path)
    assert "pixels, seed 0: missing evaluation: How near, how many" in text
    assert "evaluation of the same frozen networks, with `data.num_train=48` `probe.train_samples=40`." in text
    scores = [scores_of(one)[column] for column in evaluation.columns]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    start = lines.index(["", "distance: 5-NN, %", "count: 5-NN, %"])
    assert lines[start + 2 : start + 5] == [
        ["random init", *(f"{100 * score.random_init:.1f}" for score in scores)],
        ["teacher features", *(f"{100 * score.value:.1f}" for score in scores)],
        ["pixels", "\N{EN DASH}", "\N{EN DASH}"],
    ]


def test_evaluations_with_equal_settings_share_a_folder(tmp_path):
    def folder(change: tuple[str, str]) -> str:
        [evaluation] = plan_evaluations(tiny_study(tmp_path, EVALUATION.replace(*change)).evaluations)
        return evaluation.folder

    assert folder(("near", "far")) == folder(("", ""))  # the title
    changes = [("", ""), ("[distance, count]", "[count]"), ("=48", "=40"), ("  scenes", "  rendered")]
    assert len({folder(change) for change in changes}) == len(changes)


def test_run_directories_can_be_compared_without_a_study(trained, tmp_path):
    folder, runs = trained
    cut = tmp_path / "cut"
    shutil.copytree(folder / runs[1].directory, cut)
    shutil.rmtree(cut / "checkpoints" / "step_00000003")
    text = markdown(compare_runs([folder / runs[0].directory, cut], "again"), tmp_path)
    assert "1 of 2 runs finished" in text and "at step 2 of 3" in text
    with pytest.raises(ValueError, match="is no run directory"):
        compare_runs([tmp_path], "again")
    with pytest.raises(ValueError, match="given twice"):
        compare_runs([cut, cut], "again")


def test_a_run_is_found_by_its_configuration_if_its_name_lacks_the_identity(trained, tmp_path):
    folder, runs = trained
    assert RunFolder(folder).find(runs[0].identity).path.name == runs[0].directory
    shutil.copytree(folder / runs[0].directory, tmp_path / "named" / "by-hand")
    assert RunFolder(tmp_path / "named").find(runs[0].identity).path.name == "by-hand"
    assert RunFolder(tmp_path / "named").find(runs[1].identity) is None


def test_a_truncated_line_ends_the_record(trained, tmp_path):
    folder, runs = trained
    shutil.copytree(folder / runs[0].directory, tmp_path / "run")
    complete = RunRecord.read(tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    cut = RunRecord.read(tmp_path / "run")
    assert cut.lines == complete.lines and cut.curve("loss").images == [8, 16, 24]
    assert cut.score_names == ["knn5"] and cut.seconds > 0 and cut.is_finished()


def test_quantities_have_readable_units():
    assert [quantity(count) for count in (None, 0, 2.5e6, 9.448e9, 3.15e14, 1.2e18)] == [
        *("unknown", "0", "2.5 MFLOP", "9.45 GFLOP", "315 TFLOP", "1.2 EFLOP")
    ]
    assert [duration(seconds) for seconds in (None, 61, 600, 7500)] == ["\N{EN DASH}", "61 s", "10 min", "2 h 5 min"]
