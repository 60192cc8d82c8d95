"""The trainings of a study as jobs of a Slurm cluster."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ssl_zoo.engine.cluster import TrainingJob, cluster_executor, parameters_of
from ssl_zoo.study.training import Start

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
    parameters = {"name": "ssl-zoo-study", **parameters_of(options)}
    executor = cluster_executor(folder, parameters, cluster=cluster, option="--slurm")
    return lambda command, log, lock: SlurmTraining(executor, command, log, lock)


class SlurmTraining:
    """A submitted training; it is queued again when its time is over before it is."""

    def __init__(self, executor: "submitit.Executor", command: Sequence[str], log: Path, lock: IO[bytes]) -> None:
        self._lock = os.dup(lock.fileno())  # held here, since the job runs elsewhere
        self._job = executor.submit(TrainingJob(command, log=log.absolute()))

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
