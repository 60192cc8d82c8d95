"""Trainings of a study as Slurm jobs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ssl_zoo.engine.cluster import TrainingJob, cluster_executor, parameters_of
from ssl_zoo.study.training import Start

if TYPE_CHECKING:
    import submitit


def slurm_start(folder: Path, options: Sequence[str], cluster: str = "slurm") -> Start:
    """Return a function that submits trainings.

    Args:
        folder: folder for submitit's files, on a file system that all nodes share.
        options: ``key=value`` of submitit's ``update_parameters``, e.g. ``slurm_partition=gpu``, ``timeout_min=720``.
        cluster: submitit's name of the cluster; ``local`` runs jobs on this machine.

    Raises:
        ValueError: submitit or Slurm is missing, or submitit does not know an option.
    """
    parameters = {"name": "ssl-zoo-study", **parameters_of(options)}
    executor = cluster_executor(folder, parameters, cluster=cluster, option="--slurm")
    return lambda command, log, lock: SlurmTraining(executor, command, log, lock)


class SlurmTraining:
    """A submitted training; it is requeued when it reaches its time limit."""

    def __init__(self, executor: "submitit.Executor", command: Sequence[str], log: Path, lock: IO[bytes]) -> None:
        self._lock = os.dup(lock.fileno())  # held by this process, since the job runs on another node
        self._job = executor.submit(TrainingJob(command, log=log.absolute()))

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        return 0 if self._job.state in ("COMPLETED", "FINISHED") and self._job.exception() is None else 1

    def terminate(self) -> None:
        self._job.cancel(check=False)  # Slurm sends SIGTERM first

    kill = terminate
