"""Training jobs through submitit's local executor, with real processes and real signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_commands import DEMO, ROOT, TINY, children_of, records, wait_for_step

from ssl_zoo.engine import cluster
from ssl_zoo.engine.cluster import TrainingJob
from ssl_zoo.tools.submit import main, minutes

TOOL = ROOT / "tools" / "submit.py"


def submit(output: Path, *arguments: str) -> subprocess.Popen:
    settings = [*TINY, "trainer.num_steps=10", "probe.evaluators=[]", f"output_dir={output}"]
    command = [sys.executable, str(TOOL), "--config", str(DEMO), "--local", *settings, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen, run: Path) -> str:
    output, _ = process.communicate(timeout=500)
    # Errors last, since a long report shows its end.
    logs = [path for kind in ("out", "err") for path in sorted((run / "slurm").glob(f"*_log.{kind}"))]
    assert process.returncode == 0, output + "".join(path.read_text() for path in logs)
    return output


@pytest.mark.slow
def test_a_preempted_job_of_two_ranks_is_requeued_and_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    output = finish(submit(tmp_path / "uninterrupted", "--gpus-per-node", "2"), tmp_path / "uninterrupted")
    assert f"2 ranks, run directory {tmp_path / 'uninterrupted'}" in output and "logs: " in output
    assert json.loads((tmp_path / "uninterrupted" / "environment.json").read_text())["world_size"] == 2
    process = submit(tmp_path / "preempted", "--gpus-per-node", "2", "trainer.checkpoint_every=1000")
    wait_for_step(tmp_path / "preempted", 3, process)
    (script,) = (tmp_path / "preempted" / "slurm").glob("*_0_log.out")
    for task in children_of(int(script.name.partition("_")[0])):
        os.kill(task, signal.SIGUSR2)
    finish(process, tmp_path / "preempted")
    assert "Requeued job" in "".join(p.read_text() for p in (tmp_path / "preempted" / "slurm").glob("*_0_log.*"))
    assert records(tmp_path / "preempted") == records(tmp_path / "uninterrupted")


@pytest.mark.slow
def test_a_job_that_fails_ends_with_an_error(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    process = submit(tmp_path / "run", "trainer.device=cuda", "--gpus-per-node", "0")
    process.communicate(timeout=300)
    assert process.returncode == 1


def test_configuration_errors_are_found_before_the_submission(tmp_path: Path, capsys) -> None:
    for arguments, hint in (
        (["--nodes", "3"], "trainer.batch_size=16 is no multiple of 3 ranks"),
        (["--option", "tasks_per_node=3"], "trainer.batch_size=16 is no multiple of 3 ranks"),
        (["trainer.num_stepz=3"], "trainer.num_steps"),
        (["--option", "slurm_qos"], "--option slurm_qos: needs KEY=VALUE"),
    ):
        assert main(["--config", str(DEMO), *TINY, f"output_dir={tmp_path / 'run'}", *arguments]) == 1
        assert hint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_error_without_a_cluster_has_a_remedy(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--config", str(DEMO), *TINY, f"output_dir={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert "this machine has no sbatch" in error or "pip install 'ssl-zoo[slurm]'" in error


def test_time_limits_have_slurms_formats() -> None:
    assert [minutes(text) for text in ("90", "12:30:00", "3-01:00:00")] == [90, 750, 4380]


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch):
    """Replace Slurm's commands by scripts; return a function that submits and gives status and error output."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def submit_to(script: str, *arguments: str) -> int:
        for name, text in {"srun": "", "squeue": "", "sbatch": script}.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return main(["--config", str(DEMO), *TINY, f"output_dir={tmp_path / 'run'}", *arguments])

    return submit_to


def test_a_refused_job_is_one_sentence(sbatch, capfd) -> None:
    message = "sbatch: error: Invalid generic resource (gres) specification"
    assert sbatch(f"echo '{message}' >&2; exit 1") == 1
    [error] = capfd.readouterr().err.splitlines()
    assert error.startswith("error: tools/submit.py: Slurm refuses --gpus-per-node 1 (Invalid generic resource (gres)")


def test_an_sbatch_that_does_not_answer_is_given_up(sbatch, capfd, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "_SBATCH_SECONDS", 0.5)
    before = signal.getsignal(signal.SIGALRM)
    assert sbatch("exec sleep 60") == 1
    [error] = capfd.readouterr().err.splitlines()
    assert "sbatch did not answer within 0.5 s" in error and "`squeue --me`" in error
    assert signal.getsignal(signal.SIGALRM) is before


def test_the_batch_script_can_be_requeued_and_ends_all_ranks_with_one(sbatch, tmp_path: Path) -> None:
    assert sbatch("echo Submitted batch job 7", "--cpus-per-task", "5", "--time", "30") == 0
    script = (tmp_path / "run" / "slurm" / "7_submission.sh").read_text()
    assert "#SBATCH --requeue\n" in script and "#SBATCH --cpus-per-task=5\n" in script
    [command] = [line for line in script.splitlines() if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1" in command and "--cpus-per-task=5" in command


def test_a_time_limit_without_time_to_train_is_refused(sbatch, capfd) -> None:
    assert sbatch("exit 1", "--time", "3") == 1
    error = capfd.readouterr().err
    assert "--time 3 (minutes) leaves no time to train" in error and "at least 4 minutes" in error
    assert sbatch("echo Submitted batch job 7", "--time", "3", "--option", "slurm_signal_delay_s=20") == 0


def test_a_signal_before_the_training_starts_requeues_the_job() -> None:
    pytest.importorskip("submitit")
    job = TrainingJob(["true"]).checkpoint().function
    assert job.command == ["true"] and job.process is None


def test_the_tasks_of_a_job_do_not_import_torch() -> None:
    code = "import sys; import ssl_zoo.engine.cluster; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
