"""Trainings and evaluations as processes: at most N at once, no run twice, and resumable after a stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from ssl_zoo.engine.cluster import import_path
from ssl_zoo.io import try_lock
from ssl_zoo.machine import available_cpus
from ssl_zoo.plugins import plugin_words
from ssl_zoo.study.evaluation import PlannedEvaluation
from ssl_zoo.study.plan import PlannedRun
from ssl_zoo.study.record import RunFolder

_POLL_SECONDS = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOG = "log.txt"  # in a run directory: the output of its trainings


class Training(Protocol):
    """A training that has been started; a ``subprocess.Popen`` is one."""

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""

    def terminate(self) -> None:
        """Ask it to save and exit."""

    def kill(self) -> None:
        """Kill it."""


Start = Callable[[Sequence[str], Path, IO[bytes]], Training]  # command, log file, lock that the training must hold


def start_local(command: Sequence[str], log: Path, lock: IO[bytes], num_threads: int | None) -> Training:
    """Start a training process on this machine.

    Args:
        num_threads: CPU threads; None leaves the number to torch.
    """
    threads = {} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)}
    with open(log, "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **import_path(), **threads},
            start_new_session=True,  # Ctrl-C must reach it only through terminate()
            pass_fds=[lock.fileno()],  # held while the training lives, even if this process is killed
        )


def threads_per_job(jobs: int) -> int | None:
    """Return the CPU threads per training; None, torch's default, for a single job."""
    if jobs == 1:
        return None
    return max(1, int(os.environ.get("OMP_NUM_THREADS") or available_cpus()) // jobs)


def training_command(run: PlannedRun, directory: Path, plugins: Sequence[str] = ()) -> list[str]:
    """Return the command that starts or resumes the training of a run."""
    settings = [*run.overrides, f"output_dir={directory}"]
    return [sys.executable, "-m", "ssl_zoo.tools.train_net", "--config", run.recipe, *plugin_words(plugins), *settings]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a training."""

    run: PlannedRun
    directory: Path
    failure: str | None  # the last error in its log; None if it finished, or was stopped and can resume
    seconds: float


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect the stop signals that arrive while the block runs."""
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: arrived.append(number)) for number in _SIGNALS}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Job:
    """The next job of a run.

    Attributes:
        command: None if the run is finished.
        action: description for the log.
        evaluation: the evaluation that the command runs; None if it trains.
    """

    directory: Path
    command: Sequence[str] | None
    action: str
    evaluation: PlannedEvaluation | None = None


@dataclass
class _Active:
    run: PlannedRun
    job: _Job
    training: Training
    log_start: int  # size of the log in bytes before this start
    started: float


@dataclass(kw_only=True)
class Queue:
    """Trains and evaluates the ``waiting`` runs until each has finished or failed once.

    Runs that another process trains are waited for. On a signal all trainings save and exit, on a second signal they
    are killed. The next start resumes from the saved checkpoints.
    """

    folder: RunFolder
    start: Start
    jobs: int
    evaluations: Sequence[PlannedEvaluation]
    plugins: Sequence[str]
    log: Callable[[str], None]
    after_each: Callable[[Outcome], None]
    waiting: list[PlannedRun]
    active: list[_Active] = field(default_factory=list)
    is_stopping: bool = False
    has_logged_waiting: bool = False

    def work(self) -> bool:
        """Train until the queue is empty (True) or a signal stops it (False)."""
        with _stop_signals() as arrived:
            while (self.waiting or self.active) and not arrived:
                try:
                    self._fill()
                except ValueError:  # a cluster refuses a job; those submitted before must not outlive their locks
                    for active in self.active:
                        active.training.terminate()
                    raise
                time.sleep(_POLL_SECONDS)
                self._collect()
            if not arrived:
                return True
            self.is_stopping = True
            self.log(f"stopping: {len(self.active)} trainings save and exit (repeat to kill them)")
            for active in self.active:
                active.training.terminate()
            while self.active:
                if len(arrived) > 1:
                    for active in self.active:
                        active.training.kill()
                time.sleep(_POLL_SECONDS)
                self._collect()
            return False

    def _fill(self) -> None:
        for run in list(self.waiting):
            if len(self.active) >= self.jobs:
                return
            lock = _lock(self.folder.path / ".locks" / run.identity)
            if lock is None:
                continue  # trained by another process, or by an entry of equal configuration
            with lock:
                self.waiting.remove(run)
                self._begin(run, lock)
        if not self.active and self.waiting and not self.has_logged_waiting:
            self.has_logged_waiting = True
            self.log(f"waiting for another process that trains {', '.join(run.title for run in self.waiting)}")

    def _begin(self, run: PlannedRun, lock: IO[bytes]) -> None:
        job = self._next(run)
        if job.command is None:
            self.after_each(Outcome(run, job.directory, None, 0.0))
            return
        job.directory.mkdir(parents=True, exist_ok=True)
        log = job.directory / LOG
        length = log.stat().st_size if log.is_file() else 0
        self.log(f"{run.title} {job.action}: {log}")
        self.active.append(_Active(run, job, self.start(job.command, log, lock), length, time.monotonic()))

    def _next(self, run: PlannedRun) -> _Job:
        found = self.folder.find(run.identity)
        directory = self.folder.path / run.directory if found is None else found.path
        if found is None or not found.is_finished(run.cost.num_steps):
            action = "starts" if found is None or not found.step else f"resumes from step {found.step:,}"
            return _Job(directory, training_command(run, directory, self.plugins), action)
        for evaluation in self.evaluations:
            if not evaluation.is_done(directory):
                command = evaluation.command(directory, self.plugins)
                return _Job(directory, command, f"is evaluated: {evaluation.name}", evaluation)
        return _Job(directory, None, "is finished")

    def _collect(self) -> None:
        for active in list(self.active):
            status = active.training.poll()
            if status is None:
                continue
            self.active.remove(active)
            following = self._next(active.run)
            if status == 0 and not self.is_stopping and following.command not in (None, active.job.command):
                self.waiting.insert(0, active.run)
                continue
            failure = None if self.is_stopping else _failure(active, status, following)
            self.after_each(Outcome(active.run, active.job.directory, failure, time.monotonic() - active.started))


def _failure(active: _Active, status: int, following: _Job) -> str | None:
    job = active.job
    if status != 0:
        return _last_error(job.directory / LOG, active.log_start, status)
    if job.evaluation is None or following.command is None:
        return None
    return f"evaluation {job.evaluation.name} computed no {', '.join(job.evaluation.missing(job.directory))}"


def _lock(path: Path) -> IO[bytes] | None:
    """Lock a file until this process and all that inherit it close it; None if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "wb")  # noqa: SIM115 (the caller closes it)
    if try_lock(file):
        return file
    file.close()
    return None


def _last_error(log: Path, start: int, status: int) -> str:
    """Return the end of a training's output: everything from its last ``error:`` on, else the last line."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    last = next((number for number in reversed(range(len(lines))) if lines[number].startswith("error: ")), -1)
    error = " ".join(line.strip() for line in lines[last:]).removeprefix("error: ")
    end = f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
    return error if error and status > 0 else f"{end}; last output: {error or 'none'}"
