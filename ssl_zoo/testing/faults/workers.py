"""Faults of data workers: SIGKILL, and SIGSTOP as a hang."""

import os
import random
import signal
import time
from pathlib import Path

from ssl_zoo.testing.faults.scenario import Bench, Report, expect_valid_checkpoints, scenario
from ssl_zoo.testing.faults.training import NUM_STEPS

_NUM_KILLS = 4
_TIMEOUT_S = 5
_SLACK_S = 30.0
_LOADER = ("loader.num_workers=2", f"loader.timeout_s={_TIMEOUT_S}")
_STEPS_S = 0.03  # interval in which a random moment is sampled: a few steps, far from the end of the run


@scenario(
    "SIGKILL of a data worker at a random moment", "one error, status 1; the same command resumes", bound_s=_SLACK_S
)
def kill_worker(bench: Bench, report: Report) -> None:
    moments, run = random.Random("workers"), bench.folder / "worker-killed"
    for number in range(_NUM_KILLS):
        with report.fault(f"kill {number + 1}"):
            _strike(bench, report, run, 2 * number + 1, signal.SIGKILL, moments, "a data worker process died")
    bench.finish_equal(run, *_LOADER)


@scenario(
    f"SIGSTOP of all data workers, loader.timeout_s={_TIMEOUT_S}",
    "one error that names the setting, status 1; no process remains; the same command resumes",
    bound_s=_TIMEOUT_S + _SLACK_S,
)
def hang_worker(bench: Bench, report: Report) -> None:
    moments, run = random.Random("hanging workers"), bench.folder / "worker-halted"
    with report.fault("SIGSTOP"):
        _strike(bench, report, run, 3, signal.SIGSTOP, moments, "loader.timeout_s")
        bench.finish_equal(run, *_LOADER)


def _strike(
    bench: Bench,
    report: Report,
    run: Path,
    step: int,
    number: signal.Signals,
    moments: random.Random,
    message: str,
) -> None:
    """Send a signal to a training's workers at a random moment after a step; expect it to end with one error."""
    training = bench.start(run, *_LOADER)
    training.wait_for_step(min(step, NUM_STEPS))
    workers = training.pids()[1:]
    time.sleep(moments.uniform(0.0, _STEPS_S))
    for pid in workers if number is signal.SIGSTOP else workers[:1]:
        os.kill(pid, number)
    report.expect_error(training, message)
    expect_valid_checkpoints(run)
