"""Trainings as jobs of a Slurm cluster, through submitit (extra ``slurm`` of the package)."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ssl_zoo.study.training import Start, import_path

if TYPE_CHECKING:
    import submitit


def slurm_start(folder: Path, options: Sequence[str], cluster: str = "slurm") -> Start:
    """What submits a training.

    Args:
        folder: of submitit's own files, on a file system that all nodes see.
        options: ``key=value`` of submitit's ``update_parameters``, e.g. ``slurm_partition=gpu``, ``timeout_min=720``.
        cluster: of submitit; ``local`` runs jobs on this machine.

    Raises:
        ValueError: no submitit, no Slurm, or an option that submitit does not know.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--slurm needs submitit: pip install 'ssl-zoo[slurm]'") from error
    os.environ |= import_path()  # Slurm hands it to the jobs, which import this module
    given = dict(option.partition("=")[::2] for option in options)
    parameters = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(name="ssl-zoo-study", **parameters)
    except (RuntimeError, ValueError, NameError, AssertionError, TypeError) as error:
        raise ValueError(f"--slurm {' '.join(options)}: {error}") from error
    return lambda command, log, lock: SlurmTraining(executor, command, log, lock)


class SlurmTraining:
    """A submitted training; it is queued again when its time is over before it is."""

    def __init__(self, executor: "submitit.Executor", command: Sequence[str], log: Path, lock: IO[bytes]) -> None:
        self._lock = os.dup(lock.fileno())  # held here, since the job runs elsewhere
        self._job = executor.submit(_Job(list(command), log.absolute()))

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        return 0 if self._job.state in ("COMPLETED", "FINISHED") and self._job.exception() is None else 1

    def stop(self) -> None:
        self._job.cancel(check=False)  # Slurm sends SIGTERM first

    def kill(self) -> None:
        self.stop()


class _Job:
    """What runs on a node; submitit calls ``checkpoint`` when the time is over and queues what it returns."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log

    def __call__(self) -> None:
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **import_path()},
                # Slurm warns all processes of a job with SIGUSR2, which is submitit's to answer.
                preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
            )
        if self.process.wait():
            raise RuntimeError(f"the training ended with status {self.process.returncode}; see {self.log}")

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        import submitit

        self.process.terminate()
        self.process.wait()
        return submitit.helpers.DelayedSubmission(_Job(self.command, self.log))
