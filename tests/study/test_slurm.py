"""Jobs of a study by what Slurm's commands print; tests/system/test_slurm.py has a real Slurm."""

import pickle
from pathlib import Path

import pytest
from tiny_studies import write_study

from ssl_zoo.study import slurm
from ssl_zoo.study.slurm import slurm_start
from ssl_zoo.tools.compare import main

pytest.importorskip("submitit")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch):
    """Replace Slurm's commands by scripts; return a function that sets what squeue and sbatch do."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(slurm, "_RESULT_SECONDS", 0)
    monkeypatch.setattr(slurm, "_SETTLED_SECONDS", 0)

    def prints(squeue: str, sbatch: str = "echo Submitted batch job 7") -> None:
        for name, text in {"srun": "", "sbatch": sbatch, "squeue": f"echo '{squeue}'"}.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)

    return prints


def start(tmp_path: Path, *options: str):
    run = tmp_path / "run"
    run.mkdir()
    with open(tmp_path / "lock", "wb") as lock:
        return slurm_start(tmp_path / "slurm", options)(["true"], run / "log.txt", lock)


def test_a_job_that_was_cancelled_before_its_start_has_failed_with_the_reason_in_its_log(cluster, tmp_path) -> None:
    cluster("7|CANCELLED|None")
    training = start(tmp_path)
    training.poll()
    assert training.poll() == 1
    assert "error: job 7 ended as CANCELLED (None); see " in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("state", ["PENDING|BeginTime", "COMPLETING|None", "RUNNING|None"])
def test_a_requeued_job_goes_on(cluster, tmp_path, state) -> None:
    cluster(f"7|{state}")
    training = start(tmp_path)
    assert [training.poll(), training.poll()] == [None, None]


@pytest.mark.parametrize(("outcome", "status"), [("success", 0), ("error", 1)])
def test_the_result_of_a_job_decides_also_after_slurm_has_forgotten_it(cluster, tmp_path, outcome, status) -> None:
    cluster("")
    training = start(tmp_path)
    (tmp_path / "slurm" / "7_0_result.pkl").write_bytes(pickle.dumps((outcome, "")))
    assert training.poll() == status


def test_a_job_that_can_not_start_is_one_warning(cluster, tmp_path, caplog) -> None:
    cluster("7|PENDING|PartitionTimeLimit")
    training = start(tmp_path, "timeout_min=9000")
    assert [training.poll() for _ in range(3)] == [None, None, None]
    [record] = caplog.records
    assert "job 7 does not start (PartitionTimeLimit): see --slurm-option timeout_min=9000" in record.message


def test_a_refused_study_names_its_own_option(cluster, tmp_path) -> None:
    cluster("", 'echo "sbatch: error: Invalid generic resource (gres) specification" >&2; exit 1')
    with pytest.raises(ValueError, match=r"--slurm: Slurm refuses --slurm-option gpus_per_node=8 \(Invalid generic"):
        start(tmp_path, "gpus_per_node=8")


def test_a_refused_job_cancels_those_that_the_study_has_submitted(cluster, tmp_path, capfd) -> None:
    cluster(
        "7|PENDING|Priority",
        f"[ -e {tmp_path}/first ] && {{ echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }}\n"
        f"touch {tmp_path}/first; echo Submitted batch job 7",
    )
    (tmp_path / "bin" / "scancel").write_text(f"#!/bin/sh\necho $1 > {tmp_path}/cancelled\n")
    (tmp_path / "bin" / "scancel").chmod(0o755)
    study = write_study(tmp_path / "two_runs.yaml")
    assert main(["--study", str(study), "--out", str(tmp_path / "out"), "--slurm"]) == 1
    refusal = "error: --slurm: Slurm refuses --slurm-option timeout_min=720 (QOSMaxSubmitJobPerUserLimit)"
    assert refusal in capfd.readouterr().err
    assert (tmp_path / "cancelled").read_text() == "7\n"
