"""Training jobs on a cluster, submitted through submitit (extra ``slurm`` of the package)."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import ssl_zoo
from ssl_zoo.engine.checkpoint.state import list_checkpoints, step_of

if TYPE_CHECKING:
    import submitit

_GRACE_SECONDS = 120  # between Slurm's SIGTERM, on which a training saves, and the signal on which submitit requeues
_POLL_SECONDS = 0.2
_MAX_TIMEOUTS = 1000  # how often a job that reaches its time limit is queued again; submitit's own limit is 3


def import_path() -> dict[str, str]:
    """Environment variables with which another process imports this copy of the package."""
    here = str(Path(ssl_zoo.__file__).parent.parent)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


def parameters_of(options: Sequence[str]) -> dict[str, str | int]:
    """Parse ``KEY=VALUE`` options into submitit's parameters; digits become integers."""
    given = dict(option.partition("=")[::2] for option in options)
    return {key: int(value) if value.isdecimal() else value for key, value in given.items()}


def cluster_executor(
    folder: Path, parameters: Mapping[str, object], *, cluster: str, option: str
) -> "submitit.AutoExecutor":
    """Create the executor that submits jobs.

    Args:
        folder: submitit's own files, on a file system that all nodes share.
        parameters: arguments of submitit's ``update_parameters``, e.g. ``slurm_partition``, ``timeout_min``.
        cluster: ``slurm``, or ``local`` for jobs on this machine.
        option: the command-line option that error messages name.

    Raises:
        ValueError: submitit or Slurm is missing, or submitit does not know a parameter.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError(f"{option} needs submitit: pip install 'ssl-zoo[slurm]'") from error
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ValueError(f"{option}: this machine has no sbatch; submit from a machine of the Slurm cluster")
    os.environ |= import_path()  # Slurm passes it to the jobs, which import this module
    try:
        executor = submitit.AutoExecutor(folder, cluster, **{f"{cluster}_max_num_timeout": _MAX_TIMEOUTS})
        executor.update_parameters(**parameters)
    except (RuntimeError, ValueError, NameError, AssertionError, TypeError) as error:
        given = " ".join(f"{key}={value}" for key, value in parameters.items())
        raise ValueError(f"{option} ({given}): {error}") from error
    return executor


class TrainingJob:
    """Runs the training tool in each task of a job, one rank per task.

    submitit calls ``checkpoint`` in the first task when the job is preempted or its time is over, and queues the job
    that it returns: the same command, which resumes from its last checkpoint.

    Args:
        log: file for the training's output; None leaves it to submitit's files.
        run: directory of the run, which shows whether the training finished or was stopped; None does not check.
    """

    def __init__(self, command: Sequence[str], *, log: Path | None = None, run: Path | None = None) -> None:
        self.command, self.log, self.run = list(command), log, run

    def __call__(self) -> None:
        import submitit

        task = submitit.JobEnvironment()
        if task.num_tasks > 1:  # MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        self._run()
        if task.global_rank == 0 and self.run is not None and not is_finished(self.run):
            # Slurm's SIGTERM reached the training itself, which has saved; the signal to requeue is still to come.
            time.sleep(_GRACE_SECONDS)
            raise RuntimeError(
                f"{self.run} was stopped before its last step and not requeued; submit it again to resume it"
            )

    def _run(self) -> None:
        output = None if self.log is None else open(self.log, "ab")  # noqa: SIM115 (None leaves the file as it is)
        self.process = subprocess.Popen(
            self.command,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            env={**os.environ, **import_path()},
            # Slurm sends SIGUSR2 to all processes of a job; submitit alone handles it.
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )
        if output is not None:
            output.close()
        self._wait()
        if self.process.wait():
            where = "" if self.log is None else f"; see {self.log}"
            raise RuntimeError(f"the training ended with status {self.process.returncode}{where}")

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        import submitit

        self.process.terminate()  # all ranks save and end after the same step
        self._wait()
        return submitit.helpers.DelayedSubmission(TrainingJob(self.command, log=self.log, run=self.run))

    def _wait(self) -> None:
        # Not Popen.wait: it holds a lock, on which a signal handler in the same thread would deadlock.
        with suppress(ChildProcessError):  # already reaped
            while os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(_POLL_SECONDS)


def is_finished(run: Path) -> bool:
    """Whether the last step of a run is saved."""
    saved = list_checkpoints(run)
    num_steps = json.loads((run / "environment.json").read_text())["num_steps"]
    return bool(saved) and step_of(saved[-1]) >= num_steps
