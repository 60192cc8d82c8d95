"""tools/compare.py as users run it: real trainings, a failure, an interruption, a second start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_studies import last_score, write_study
from tiny_weights import exported

from ssl_zoo.config import ConfigError
from ssl_zoo.engine.build import build_run_method
from ssl_zoo.engine.checkpoint.state import list_checkpoints
from ssl_zoo.study.file import read_study
from ssl_zoo.study.plan import plan_runs
from ssl_zoo.study.work import StudyWork
from ssl_zoo.tools.compare import main

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare.py"
BROKEN = "  broken:\n    overrides: [optim.lr=1e30, optim.warmup_lr=1e30]"


def start(study: Path, out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(TOOL), "--study", str(study), "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen, status: int) -> str:
    output, _ = process.communicate(timeout=550)
    assert process.returncode == status, output
    return output


def runs_of(out: Path, entry: str) -> list[Path]:
    return sorted((out / "runs").glob(f"{entry}-*"))


@pytest.mark.slow
def test_a_failure_is_shown_the_others_are_trained_and_equal_runs_are_reused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = finish(start(write_study(tmp_path / "first.yaml", BROKEN), out, "--jobs", "2"), 1)
    assert "broken, seed 0 failed: the loss or a gradient of step" in output
    page = (out / "first" / "report.html").read_text()
    assert "2 of 3 runs finished, 1 failed" in page and "is not finite" in page and "failed, at step" in page
    for entry in ("features", "pixels"):
        [run] = runs_of(out, entry)
        assert f">{100 * last_score(run, 'knn5'):.1f}</td>" in page
    # Another study with the same two entries trains neither of them again.
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl")}
    output = finish(start(write_study(tmp_path / "second.yaml"), out), 0)
    assert "nothing to compute: all 2 runs are finished" in output
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl")} == before
    assert "2 of 2 runs finished." in (out / "second" / "report.md").read_text()


@pytest.mark.slow
def test_finished_runs_are_evaluated_and_lost_scores_are_recomputed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = "{evaluators: [knn], labels: [count], columns: [knn5], overrides: [data.num_test=16]}"
    study = write_study(tmp_path / "asked.yaml", f"evaluations:\n  scenes: {settings}\n")
    output = finish(start(study, out), 0)
    assert "2 of 2 runs to train, 2 to evaluate" in output
    assert output.count("is evaluated: scenes") == output.count("finished after") == 2
    assert "<th>count: 5-NN, %</th>" in (out / "asked" / "report.html").read_text()
    [lost] = (out / "runs").glob("pixels-*/eval/scenes-*/*.json")
    lost.unlink()
    assert main(["--study", str(study), "--out", str(out), "--dry-run"]) == 0
    output = finish(start(study, out), 0)
    assert "0 of 2 runs to train, 1 to evaluate" in output and "pixels, seed 0 is evaluated" in output
    assert "nothing to compute" in finish(start(study, out), 0)


@pytest.mark.slow
def test_a_failed_evaluation_is_reported_and_costs_no_training(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for settings, message in [
        ("{evaluators: [knn], labels: [colour], columns: [knn5]}", "colour"),
        ("{evaluators: [knn], labels: [count], columns: [knn5, knn6]}", "evaluation scenes computed no count knn6"),
    ]:
        study = write_study(tmp_path / "asked.yaml", f"evaluations:\n  scenes: {settings}\n")
        output = finish(start(study, out), 1)
        assert "features, seed 0 failed: " in output and message in output
        assert "2 of 2 runs finished, 2 failed" in (out / "asked" / "report.md").read_text()
        assert output.count(" starts: ") == (2 if "colour" in settings else 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_study_resumes(tmp_path: Path, number: signal.Signals) -> None:
    study, out = write_study(tmp_path / "long.yaml"), tmp_path / "out"
    long = ["trainer.num_steps=120", "trainer.checkpoint_every=120", "probe.every_steps=0"]
    process = start(study, out, *long)
    deadline = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < deadline:
        if any('"step": 3,' in path.read_text() for path in out.glob("runs/*/metrics.jsonl")):
            break
        time.sleep(0.05)
    process.send_signal(number)
    output = finish(process, 130)
    assert "Traceback" not in output and "the same command resumes" in output
    [run] = out.glob("runs/*-seed0-*")
    [checkpoint] = list_checkpoints(run)
    step = int(checkpoint.name.removeprefix("step_"))
    assert 3 <= step < 120
    assert f"at step {step} of 120" in (out / "long" / "report.md").read_text()
    output = finish(start(study, out, *long), 0)
    assert f"resumes from step {step}" in output
    assert "2 of 2 runs finished." in (out / "long" / "report.md").read_text()


def test_the_plan_of_a_study_reports_and_checks_what_its_runs_start_from(tmp_path: Path) -> None:
    study = write_study(tmp_path / "tiny.yaml")
    config = plan_runs(read_study(study))[0].composed.config
    source = exported(build_run_method(config), tmp_path / "source")
    work = StudyWork.of(study, tmp_path / "out", [f"backbone.init_from={source}"], None, "")
    features, pixels = work.starts()
    loaded = f"from {source} (export of ijepa)"
    assert features == f"features: backbone.init_from: encoder, target_encoder, predictor {loaded}"
    assert pixels == f"pixels: backbone.init_from: encoder (its target_encoder), predictor {loaded}"
    work = StudyWork.of(study, tmp_path / "out", ["backbone.init_from=nowhere"], None, "")
    with pytest.raises(ConfigError, match=r"entry features: backbone\.init_from=nowhere: there is no such file"):
        work.starts()


def test_a_dry_run_lists_the_runs_with_their_cost_without_training(tmp_path: Path, capsys) -> None:
    study = write_study(tmp_path / "tiny.yaml")
    assert main(["--study", str(study), "--out", str(tmp_path / "out"), "--dry-run", "--seeds", "3,4"]) == 0
    output = capsys.readouterr().out
    assert "pixels, seed 4" in output and "4 to train" in output and "MFLOP" in output and "96" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.wegiht_decay=1"], "did you mean optim.weight_decay?"),
        (["--seeds", "0,0"], "without duplicates"),
        (["--seeds", "all"], "--seeds all: expected integers"),
        (["output_dir=x"], "sets output_dir from --out"),
        (["--plugin", "no_such_plugin.py"], "no_such_plugin.py"),
    ],
)
def test_bad_input_gives_one_clear_error(tmp_path: Path, capsys, arguments: list[str], message: str) -> None:
    study = write_study(tmp_path / "tiny.yaml")
    assert main(["--study", str(study), "--out", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_slurm_without_submitit_is_refused_with_the_fix(tmp_path: Path, capsys) -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        assert main(["--study", str(write_study(tmp_path / "a.yaml")), "--out", str(tmp_path), "--slurm"]) == 1
        assert "pip install 'ssl-zoo[slurm]'" in capsys.readouterr().err
    else:
        pytest.skip("submitit is installed")


def test_a_path_that_is_not_a_run_directory_is_named(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert f"{tmp_path} is no run directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path)])
