"""Training jobs on a cluster, submitted through submitit (extra ``slurm`` of the package).

Every task of a job imports this module and stays beside its training, so it must not import torch: that would cost
each rank seconds at the start and some hundred megabytes.
"""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import ssl_zoo
from ssl_zoo.engine.checkpoint.folders import list_checkpoints, step_of
from ssl_zoo.engine.slurm import OptionNames, job_statuses, refusal

if TYPE_CHECKING:
    import submitit

LOST_RANK_STATUS = 75  # a training's exit status if another rank ended: EX_TEMPFAIL of sysexits.h
TIMEOUT_MINUTES = 720  # default time limit of a job
_GRACE_SECONDS = 120  # between Slurm's SIGTERM, on which a training saves, and the signal on which submitit requeues
_POLL_SECONDS = 0.2
_STATUS_SECONDS = 2.0  # between two questions whether Slurm is ending the job
_NODE_FAILURE_SECONDS = 600  # above SlurmdTimeout, 300 by default, after which Slurm requeues the jobs of a dead node
_SBATCH_SECONDS = 180  # sbatch itself gives up after a few of Slurm's MessageTimeout, each usually 10 s
_SIGNAL_DELAY_SECONDS = 90  # default of submitit's signal_delay_s
_SIGNAL_RESOLUTION_SECONDS = 60  # Slurm may send a signal that much earlier (sbatch --signal)
_START_SECONDS = 60  # imports and the first steps
_MAX_TIMEOUTS = 1000  # how often a job that reaches its time limit is queued again; submitit's own limit is 3


def import_path() -> dict[str, str]:
    """Environment variables with which another process imports this copy of the package."""
    here = str(Path(ssl_zoo.__file__).parent.parent)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


def parameters_of(options: Sequence[str], option: str) -> dict[str, str | int]:
    """Parse ``KEY=VALUE`` words into submitit's parameters; digits become integers.

    Args:
        option: the command-line option that error messages name.

    Raises:
        ValueError: a word has no ``=``.
    """
    for word in options:
        if not re.fullmatch(r"\w+=.+", word):
            raise ValueError(f"{option} {word}: needs KEY=VALUE, e.g. {option} slurm_qos=high")
    given = dict(word.split("=", 1) for word in options)
    return {key: int(value) if value.isdecimal() else value for key, value in given.items()}


@dataclass(frozen=True)
class Submitter:
    """Submits trainings with equal parameters.

    Attributes:
        parameters: arguments of submitit's ``update_parameters``.
        options: the user's names of the parameters, for error messages.
    """

    executor: "submitit.AutoExecutor"
    parameters: Mapping[str, object]
    options: OptionNames

    def submit(self, job: "TrainingJob") -> "submitit.Job":
        """Submit a job.

        Raises:
            ValueError: Slurm refuses the job or does not answer; the message names the option to change.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            # submitit prints sbatch's messages as well as raising them.
            with _time_limit(_SBATCH_SECONDS), redirect_stderr(io.StringIO()):
                return self.executor.submit(job)
        except (FailedJobError, FailedSubmissionError) as error:
            if isinstance(error.__cause__, TimeoutError):
                raise ValueError(
                    f"{self.options.tool}: sbatch did not answer within {_SBATCH_SECONDS} s; see `scontrol ping`, and "
                    "`squeue --me` for a job that was accepted nevertheless, then submit again"
                ) from error
            raise ValueError(refusal(str(error), self.parameters, self.options)) from error


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after ``seconds``; submitit kills sbatch on it. Needs the main thread."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, expire)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
        signal.signal(signal.SIGALRM, previous)


def job_submitter(folder: Path, parameters: Mapping[str, object], *, cluster: str, options: OptionNames) -> Submitter:
    """Check the parameters of jobs and create what submits them.

    Args:
        folder: submitit's own files, on a file system that all nodes share.
        parameters: arguments of submitit's ``update_parameters``, e.g. ``slurm_partition``, ``timeout_min``.
        cluster: ``slurm``, or ``local`` for jobs on this machine.
        options: the user's names of the parameters, for error messages.

    Raises:
        ValueError: submitit or Slurm is missing, submitit does not know a parameter, or the time limit is too short.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError(f"{options.tool} needs submitit: pip install 'ssl-zoo[slurm]'") from error
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ValueError(f"{options.tool}: this machine has no sbatch; submit from a machine of the Slurm cluster")
    if cluster == "slurm":
        _check_time_limit(parameters, options)
    os.environ |= import_path()  # Slurm passes it to the jobs, which import this module
    try:
        executor = submitit.AutoExecutor(folder, cluster, **{f"{cluster}_max_num_timeout": _MAX_TIMEOUTS})
        executor.update_parameters(**_slurm_flags(parameters), **parameters)
    except (RuntimeError, ValueError, NameError, AssertionError, TypeError) as error:
        given = " ".join(f"{key}={value}" for key, value in parameters.items())
        raise ValueError(f"{options.tool} ({given}): {error}") from error
    return Submitter(executor, parameters, options)


def _check_time_limit(parameters: Mapping[str, object], options: OptionNames) -> None:
    early = int(parameters.get("slurm_signal_delay_s", _SIGNAL_DELAY_SECONDS)) + _SIGNAL_RESOLUTION_SECONDS
    timeout, needed = int(parameters["timeout_min"]), math.ceil((early + _START_SECONDS) / 60)
    if timeout < needed:
        raise ValueError(
            f"{options.tool}: {options.spell('timeout_min', timeout)} (minutes) leaves no time to train, since a job "
            f"takes up to {_START_SECONDS} s to start and is stopped up to {early} s before its limit; use at least "
            f"{needed} minutes"
        )


def _slurm_flags(parameters: Mapping[str, object]) -> dict[str, object]:
    srun = ["--kill-on-bad-exit=1"]  # a rank that dies ends the others, which might wait for it
    if "cpus_per_task" in parameters:
        srun.append(f"--cpus-per-task={parameters['cpus_per_task']}")  # since Slurm 22.05 srun does not inherit it
    # Without --requeue a cluster with JobRequeue=0 refuses to requeue the job.
    return {"slurm_additional_parameters": {"requeue": True}, "slurm_srun_args": srun}


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
        self.process: subprocess.Popen | None = None  # none before the training starts, when a signal can already come
        self.is_terminated = False

    def __call__(self) -> None:
        import submitit

        task = submitit.JobEnvironment()
        signal.signal(signal.SIGTERM, self._remember_termination)  # the training gets a SIGTERM of its own
        if task.num_tasks > 1:  # MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        status = self._run()
        if status == LOST_RANK_STATUS:
            # If the other rank failed, Slurm ends this task now. If its node died, Slurm notices that after a while
            # and requeues the job, unless all other tasks have ended before.
            self._wait_for(_NODE_FAILURE_SECONDS, lambda: self.is_terminated)
        is_ended_by_slurm = partial(_is_ended_by_slurm, task)
        if status:
            if self.is_terminated and is_ended_by_slurm():
                raise SystemExit("the training was stopped by Slurm")  # no result, since the job may be requeued
            raise RuntimeError(self._failure(status, task.global_rank))
        if task.global_rank == 0 and self.run is not None and not is_finished(self.run):
            # Slurm's SIGTERM reached the training itself, which has saved; the signal to requeue is still to come.
            if self._wait_for(_GRACE_SECONDS, is_ended_by_slurm):
                raise SystemExit(f"{self.run} was stopped by Slurm and has saved")
            raise RuntimeError(
                f"{self.run} was stopped before its last step and not requeued; submit it again to resume it"
            )
        # A signal that comes while Python exits, without submitit's handler, would make a finished job a failed one.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def _failure(self, status: int, rank: int) -> str:
        if status > 0:
            return f"the training of rank {rank} ended with status {status}" + (f"; see {self.log}" if self.log else "")
        failure = f"the training of rank {rank} was killed by {signal.Signals(-status).name}"
        if self.log is not None:
            with open(self.log, "a") as log:
                log.write(f"error: {failure}\n")
        return failure

    def _remember_termination(self, number: int, frame: FrameType | None) -> None:
        self.is_terminated = True

    def _wait_for(self, seconds: float, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + seconds
        while not (holds := condition()) and time.monotonic() < deadline:
            time.sleep(_STATUS_SECONDS)
        return holds

    def _run(self) -> int:
        """Run the training and return its exit status, which is negative for a signal."""
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
        return self.process.wait()

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        import submitit

        if self.process is not None:
            self.process.terminate()  # all ranks save and end after the same step
            self._wait()
        return submitit.helpers.DelayedSubmission(TrainingJob(self.command, log=self.log, run=self.run))

    def _wait(self) -> None:
        # Not Popen.wait: it holds a lock, on which a signal handler in the same thread would deadlock.
        with suppress(ChildProcessError):  # already reaped
            while os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(_POLL_SECONDS)


def _is_ended_by_slurm(task: "submitit.JobEnvironment") -> bool:
    """Whether Slurm is cancelling or requeueing the job of a task; False as well if Slurm does not answer."""
    statuses = job_statuses([task.job_id]) if task.cluster == "slurm" else None
    return statuses is not None and getattr(statuses.get(task.job_id), "state", None) not in ("RUNNING", "SUSPENDED")


def is_finished(run: Path) -> bool:
    """Whether the last step of a run is saved."""
    saved = list_checkpoints(run)
    num_steps = json.loads((run / "environment.json").read_text())["num_steps"]
    return bool(saved) and step_of(saved[-1]) >= num_steps
