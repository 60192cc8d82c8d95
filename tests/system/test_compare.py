"""The comparing tool as its users run it: real trainings, a failure, an interruption, a second start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_studies import last_score, write_study

from ssl_zoo.engine.checkpoint.state import list_checkpoints
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
    assert "2 of 3 runs are finished, 1 failed" in page and "is not finite" in page and "failed, at step" in page
    for entry in ("features", "pixels"):
        [run] = runs_of(out, entry)
        assert f">{100 * last_score(run, 'knn5'):.1f}</td>" in page
    # Another study, with the same two entries: none of them is trained again.
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl")}
    output = finish(start(write_study(tmp_path / "second.yaml"), out), 0)
    assert "nothing to compute: all 2 runs are finished" in output
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl")} == before
    assert "2 of 2 runs are finished." in (out / "second" / "report.md").read_text()


@pytest.mark.slow
def test_finished_runs_are_evaluated_and_what_was_lost_of_it_is_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = "{evaluators: [knn], labels: [count], columns: [knn5], overrides: [data.num_test=16]}"
    study = write_study(tmp_path / "asked.yaml", f"evaluations:\n  scenes: {settings}\n")
    output = finish(start(study, out), 0)
    assert "2 of 2 runs are to be trained, 2 to be evaluated" in output
    assert output.count("is evaluated: scenes") == output.count("finished after") == 2
    assert "<th>count: 5-NN, %</th>" in (out / "asked" / "report.html").read_text()
    [lost] = (out / "runs").glob("pixels-*/eval/scenes-*/*.json")
    lost.unlink()
    assert main(["--study", str(study), "--out", str(out), "--dry-run"]) == 0
    output = finish(start(study, out), 0)
    assert "0 of 2 runs are to be trained, 1 to be evaluated" in output and "pixels, seed 0 is evaluated" in output
    assert "nothing to compute" in finish(start(study, out), 0)


@pytest.mark.slow
def test_a_failed_evaluation_is_told_and_costs_no_training(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for settings, told in [
        ("{evaluators: [knn], labels: [colour], columns: [knn5]}", "colour"),
        ("{evaluators: [knn], labels: [count], columns: [knn5, knn6]}", "evaluation scenes gave no count knn6"),
    ]:
        study = write_study(tmp_path / "asked.yaml", f"evaluations:\n  scenes: {settings}\n")
        output = finish(start(study, out), 1)
        assert "features, seed 0 failed: " in output and told in output
        assert "2 of 2 runs are finished, 2 failed" in (out / "asked" / "report.md").read_text()
        assert output.count(" starts: ") == (2 if "colour" in settings else 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_study_goes_on_where_it_was(tmp_path: Path, number: signal.Signals) -> None:
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
    assert "Traceback" not in output and "the same command goes on" in output
    [run] = out.glob("runs/*-seed0-*")
    [checkpoint] = list_checkpoints(run)
    step = int(checkpoint.name.removeprefix("step_"))
    assert 3 <= step < 120
    assert f"at step {step} of 120" in (out / "long" / "report.md").read_text()
    output = finish(start(study, out, *long), 0)
    assert f"goes on from step {step}" in output
    assert "2 of 2 runs are finished." in (out / "long" / "report.md").read_text()


def test_a_dry_run_lists_the_runs_with_their_cost_and_trains_nothing(tmp_path: Path, capsys) -> None:
    study = write_study(tmp_path / "tiny.yaml")
    assert main(["--study", str(study), "--out", str(tmp_path / "out"), "--dry-run", "--seeds", "3,4"]) == 0
    output = capsys.readouterr().out
    assert "pixels, seed 4" in output and "4 to train" in output and "MFLOP" in output and "96" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["optim.leraning_rate=1"], "did you mean optim.lr?"),
        (["--seeds", "0,0"], "none twice"),
        (["--seeds", "all"], "--seeds all: expected whole numbers"),
        (["output_dir=x"], "follows from --out"),
        (["--plugin", "no_such_plugin.py"], "no_such_plugin.py"),
    ],
)
def test_bad_input_gives_one_clear_error(tmp_path: Path, capsys, arguments: list[str], told: str) -> None:
    study = write_study(tmp_path / "tiny.yaml")
    assert main(["--study", str(study), "--out", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error
    assert not (tmp_path / "out").exists()


def test_without_submitit_slurm_is_refused_with_the_remedy(tmp_path: Path, capsys) -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        assert main(["--study", str(write_study(tmp_path / "a.yaml")), "--out", str(tmp_path), "--slurm"]) == 1
        assert "pip install 'ssl-zoo[slurm]'" in capsys.readouterr().err
    else:
        pytest.skip("submitit is installed")


def test_a_directory_that_holds_no_run_is_named(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert f"{tmp_path} is no run directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path)])
