"""Trainings of a study as Slurm jobs."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ssl_zoo.engine.cluster import TIMEOUT_MINUTES, Submitter, TrainingJob, job_submitter, parameters_of
from ssl_zoo.engine.slurm import JobWatcher, OptionNames, pending_forever
from ssl_zoo.study.training import Start

logger = logging.getLogger(__name__)

OPTIONS = OptionNames("--slurm", other="--slurm-option")
_SETTLED_SECONDS = 15  # more than one period of a JobWatcher
_RESULT_SECONDS = 15  # until a file written on another node is visible on a shared file system


def slurm_start(folder: Path, options: Sequence[str], cluster: str = "slurm") -> Start:
    """Return a function that submits trainings.

    Args:
        folder: folder for submitit's files, on a file system that all nodes share.
        options: ``key=value`` of submitit's ``update_parameters``, e.g. ``slurm_partition=gpu``, ``timeout_min=720``.
        cluster: submitit's name of the cluster; ``local`` runs jobs on this machine.

    Raises:
        ValueError: submitit or Slurm is missing, or submitit does not know an option.
    """
    defaults = {"name": "ssl-zoo-study", "timeout_min": TIMEOUT_MINUTES}
    parameters = {**defaults, **parameters_of(options, OPTIONS.other)}
    submitter = job_submitter(folder, parameters, cluster=cluster, options=OPTIONS)
    watcher = JobWatcher() if cluster == "slurm" else None
    return lambda command, log, lock: SlurmTraining(submitter, watcher, command, log, lock)


class SlurmTraining:
    """A submitted training; it is requeued when it reaches its time limit.

    Args:
        watcher: shared by all trainings of a study; None asks submitit, for jobs on this machine.
        log: file in the run directory for the training's output.
    """

    def __init__(
        self, submitter: Submitter, watcher: JobWatcher | None, command: Sequence[str], log: Path, lock: IO[bytes]
    ) -> None:
        self._log = log.absolute()
        self._log.touch()  # a job that is cancelled before it starts writes none
        self._submitter, self._watcher = submitter, watcher
        self._job = submitter.submit(TrainingJob(command, log=self._log, run=self._log.parent))
        self._lock = os.dup(lock.fileno())  # held by this process, since the job runs on another node
        self._ended_at: float | None = None
        self._reason, self._reason_since, self._has_warned = "", 0.0, False
        if watcher is not None:
            watcher.add(self._job.job_id)

    def poll(self) -> int | None:
        if not self._has_ended():
            return None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._job.paths.result_pickle.exists():
            return 0 if self._job.exception() is None else 1
        status = None if self._watcher is None else self._watcher.status(self._job.job_id)
        end = "without a result" if status is None else f"as {status.state} ({status.reason})"
        with open(self._log, "a") as log:
            log.write(f"error: job {self._job.job_id} ended {end}; see {self._job.paths.stderr}\n")
        return 1

    def _has_ended(self) -> bool:
        if self._watcher is None:
            return self._job.done()
        if self._job.paths.result_pickle.exists():
            return True
        status = self._watcher.status(self._job.job_id)
        if status is not None and not status.has_ended:
            self._ended_at = None
            self._warn(status.reason if status.state == "PENDING" else "")
            return False
        self._ended_at = self._ended_at or time.monotonic()
        return time.monotonic() - self._ended_at > _RESULT_SECONDS

    def _warn(self, reason: str) -> None:
        if reason != self._reason:
            self._reason, self._reason_since = reason, time.monotonic()
        # The reason at the submission is often another than that of Slurm's first attempt to start the job.
        if self._has_warned or time.monotonic() - self._reason_since < _SETTLED_SECONDS:
            return
        warning = pending_forever(self._job.job_id, reason, self._submitter.parameters, OPTIONS)
        if warning is not None:
            logger.warning("warning: %s", warning)
            self._has_warned = True

    def terminate(self) -> None:
        self._job.cancel(check=False)  # Slurm sends SIGTERM first

    kill = terminate
