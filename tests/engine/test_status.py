"""The state of runs as ``tools/status.py`` shows it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_commands import ROOT
from tiny_runs import StopAfter, tiny_trainer

from ssl_zoo.engine.metrics import Metrics
from ssl_zoo.engine.status import RunStatus, ScoreHistory, State, find_runs, this_process
from ssl_zoo.engine.status_file import StatusFile
from ssl_zoo.tools.status import main

NOW = 1_000_000.0


def write_run(run: Path, *, step: int = 50, saved: int | None = None, age: float = 5.0, **status: object) -> Path:
    """Write the files of a run of 100 steps of 8 images, which logs every 10 steps at 16 images per second."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("# Every value of a run of ijepa/demo.yaml, by ssl_zoo 0.1.0.\n")
    (run / "environment.json").write_text(json.dumps({"num_steps": 100, "batch_size": 8}))
    probes = [{"step": s, "epoch": 0, "knn5": v, "knn5_random_init": 0.2} for s, v in ((0, 0.2), (20, 0.6), (40, 0.5))]
    steps = [{"step": s, "loss": 1.0, "images_per_second": 16.0} for s in range(10, step + 1, 10)]
    lines = sorted([*probes, *steps], key=lambda record: record["step"])
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in lines) + '{"step": 6')
    os.utime(run / "metrics.jsonl", (NOW - age, NOW - age))
    if saved is not None:
        (run / "checkpoints" / f"step_{saved:08d}").mkdir(parents=True)
    if status:
        (run / "status.json").write_text(json.dumps(status))
    return run


HERE = {**this_process(), "started": NOW - 105.0, "first_step": 0}
GONE = {**HERE, "process_start": "1"}
ELSEWHERE = {**HERE, "host": "another"}


@pytest.mark.parametrize(
    ("facts", "state", "reason"),
    [
        ({"state": "running", **HERE}, State.running, None),
        ({"state": "running", "age": 7200.0, **HERE}, State.running, None),  # a long evaluation
        ({"state": "running", **GONE}, State.failed, "its process was killed"),
        ({"state": "running", **ELSEWHERE}, State.running, None),
        ({"state": "running", "age": 7200.0, **ELSEWHERE}, State.stale, "no new record; it trained on another"),
        ({"state": "stopped", **GONE}, State.stopped, None),
        ({"state": "failed", "error": "the loss is not finite", **GONE}, State.failed, "the loss is not finite"),
        ({"state": "running", "saved": 100, **GONE}, State.finished, None),
        ({}, State.running, None),  # of a version that kept no state
        ({"age": 7200.0}, State.stale, "no new record; it trained on an unknown machine"),
    ],
)
def test_the_state_follows_from_process_checkpoints_and_age(tmp_path, facts, state, reason):
    status = RunStatus.read(write_run(tmp_path / "run", **facts), NOW)
    assert (status.state, status.reason) == (state, reason)


def test_time_left_is_that_of_the_steps_since_the_start_with_probes(tmp_path):
    status = RunStatus.read(write_run(tmp_path / "run", state="running", **HERE), NOW)
    assert (status.step, status.num_steps, status.images_per_second) == (50, 100, 16.0)
    assert status.seconds_left == pytest.approx(100.0)  # 50 steps took 100 s until the last record
    assert status.age_seconds == pytest.approx(5.0)


def test_last_and_best_scores_are_those_of_the_trained_network(tmp_path):
    scores = RunStatus.read(write_run(tmp_path / "run"), NOW).scores
    assert (scores.last, scores.best, scores.baseline) == ({"knn5": 0.5}, {"knn5": 0.6}, {"knn5": 0.2})
    assert scores.text("knn5", with_baseline=True) == "knn5 50.0% (best 60.0%, random init 20.0%)"


def test_runs_of_studies_and_submitted_ones_are_found_before_they_start(tmp_path):
    write_run(tmp_path / "ijepa" / "demo")
    (tmp_path / "ijepa" / "demo" / "figures" / "slurm").mkdir(parents=True)  # nothing within a run is one
    (tmp_path / "study" / "runs" / "pixels-seed0-0123456789").mkdir(parents=True)
    (tmp_path / "study" / "runs" / "pixels-seed0-0123456789" / "log.txt").write_text("error: no such data\n")
    (tmp_path / "submitted" / "slurm").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "log.txt").write_text("not a run")
    found = {run.name: RunStatus.read(run, NOW) for run in find_runs(tmp_path)}
    assert {name: status.state for name, status in found.items()} == {
        "demo": State.running,
        "pixels-seed0-0123456789": State.failed,
        "submitted": State.waiting,
    }
    assert found["pixels-seed0-0123456789"].reason == "no such data"


class Fail(StopAfter):
    """Fails as a step would."""

    def after_step(self, trainer, result):
        raise ValueError("out of luck\nmore")


@pytest.mark.parametrize(
    ("hooks", "state", "error"),
    [([], "finished", None), ([StopAfter(2)], "stopped", None), ([Fail(1)], "failed", "out of luck")],
)
def test_a_run_records_how_it_ended(tmp_path, hooks, state, error):
    status = StatusFile(tmp_path, ScoreHistory())
    trainer = tiny_trainer(tmp_path, num_steps=3, writers=[status], hooks=hooks)
    trainer.hooks.append(status)
    if error:
        with pytest.raises(ValueError, match="out of luck"):
            trainer.train()
    else:
        trainer.train()
    recorded = json.loads((tmp_path / "status.json").read_text())
    assert (recorded["state"], recorded["error"]) == (state, error)
    assert isinstance(trainer.hooks[0], Metrics)  # which opens the file


def test_the_tool_prints_a_table_or_json(tmp_path, capsys):
    write_run(tmp_path / "a", state="running", **HERE)
    write_run(tmp_path / "b", state="failed", error="no space left", **GONE)
    assert main([str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "ijepa/demo.yaml" in table and "50 of 100" in table and "knn5 50.0%" in table and "60.0%" in table
    assert "1 running, 1 failed" in table and "no space left" in table
    assert main([str(tmp_path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["state"] == "running" and first["scores"]["best"] == {"knn5": 0.6}
    assert second["reason"] == "no space left"


def test_folders_without_runs_are_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1 and "holds no run" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 1 and "is no folder" in capsys.readouterr().err


def test_the_tool_imports_no_torch():
    code = "import sys, ssl_zoo.tools.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
