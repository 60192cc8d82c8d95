"""A data worker that is killed, or that hangs."""

import os
import random
import signal
import time
from pathlib import Path

from ssl_zoo.testing.faults.processes import expect
from ssl_zoo.testing.faults.scenario import Laboratory, Report, Scenario, expect_whole_checkpoints
from ssl_zoo.testing.faults.training import NUM_STEPS

_NUM_KILLS = 4
_TIMEOUT_S = 5
_SLACK_S = 30.0
_LOADER = ("loader.num_workers=2", f"loader.timeout_s={_TIMEOUT_S}")
_STEPS_S = 0.03  # within which a random moment is drawn: a few steps, far from the end of the run


def killed(laboratory: Laboratory, report: Report) -> None:
    moments, run = random.Random("workers"), laboratory.folder / "worker-killed"
    for number in range(_NUM_KILLS):
        with report.fault(f"kill {number + 1}"):
            _strike(laboratory, report, run, 2 * number + 1, signal.SIGKILL, moments, "a data worker process died")
    laboratory.finish_equal(run, *_LOADER)


def halted(laboratory: Laboratory, report: Report) -> None:
    moments, run = random.Random("hanging workers"), laboratory.folder / "worker-halted"
    with report.fault("SIGSTOP"):
        _strike(laboratory, report, run, 3, signal.SIGSTOP, moments, "loader.timeout_s")
        laboratory.finish_equal(run, *_LOADER)


def _strike(
    laboratory: Laboratory,
    report: Report,
    run: Path,
    step: int,
    number: signal.Signals,
    moments: random.Random,
    told: str,
) -> None:
    """Send a signal to the workers of a training at a random moment after a step; it must say what happened and end."""
    training = laboratory.start(run, *_LOADER)
    training.wait_for_step(min(step, NUM_STEPS))
    workers = training.pids()[1:]
    time.sleep(moments.uniform(0.0, _STEPS_S))
    for pid in workers if number is signal.SIGSTOP else workers[:1]:
        os.kill(pid, number)
    status, words = report.end(training), training.last_words()
    expect(status == 1 and words.startswith("error: ") and told in words, f"status {status}, not told: {words}")
    expect_whole_checkpoints(run)


SCENARIOS = (
    Scenario(
        "kill_worker",
        "SIGKILL of a data worker at a random moment",
        "one error, status 1; the same command goes on",
        _SLACK_S,
        killed,
    ),
    Scenario(
        "hang_worker",
        f"SIGSTOP of all data workers, loader.timeout_s={_TIMEOUT_S}",
        "one error that names the setting, status 1; no process is left; the same command goes on",
        _TIMEOUT_S + _SLACK_S,
        halted,
    ),
)
