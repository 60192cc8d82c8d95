"""Faults of one of two ranks: SIGTERM, SIGKILL, SIGSTOP, an exception, a NaN loss."""

import os
import signal
from pathlib import Path

from ssl_zoo.testing.faults.leftovers import checkpoints, metrics, step_of
from ssl_zoo.testing.faults.processes import expect
from ssl_zoo.testing.faults.scenario import Bench, Report, scenario
from ssl_zoo.testing.faults.training import Training

_AT_STEP = 7
_TIMEOUT_MINUTES = 0.1
_GRACE_S = 30.0  # torchrun waits this long for ranks that do not end on SIGTERM, then kills them
_SLACK_S = 30.0  # for processes that share one core


@scenario(
    "SIGTERM to one of two ranks",
    "both save after the same step and end with status 0; the same command resumes",
    bound_s=_SLACK_S,
)
def sigterm_rank(bench: Bench, report: Report) -> None:
    run = bench.folder / "rank-terminated"
    with report.fault("SIGTERM"):
        training = _signalled(bench, run, signal.SIGTERM, "trainer.checkpoint_every=1000")
        status = report.end(training)
        expect(status == 0, f"status {status}: {training.last_error()}")
        saved, logged = [step_of(path) for path in checkpoints(run)], metrics(run)[-1]["step"]
        expect(saved == [logged], f"checkpoints {saved}, though step {logged} was the last")
        bench.finish_equal(run, "trainer.checkpoint_every=1000", ranks=2)


@scenario(
    "SIGKILL of one of two ranks", "the job ends with an error; the same command resumes", bound_s=_GRACE_S + _SLACK_S
)
def kill_rank(bench: Bench, report: Report) -> None:
    run = bench.folder / "rank-killed"
    with report.fault("SIGKILL"):
        training = _signalled(bench, run, signal.SIGKILL)
        expect(report.end(training) != 0, "the job ended with status 0")
        bench.finish_equal(run, ranks=2)


@scenario(
    f"SIGSTOP of one of two ranks, trainer.timeout_minutes={_TIMEOUT_MINUTES}",
    "the other rank ends with an error that names the setting; the same command resumes",
    bound_s=60 * _TIMEOUT_MINUTES + _GRACE_S + _SLACK_S,
)
def halt_rank(bench: Bench, report: Report) -> None:
    run = bench.folder / "rank-halted"
    with report.fault("SIGSTOP"):
        training = _signalled(bench, run, signal.SIGSTOP, f"trainer.timeout_minutes={_TIMEOUT_MINUTES}")
        expect(report.end(training) != 0, "the job ended with status 0")
        expect("trainer.timeout_minutes" in training.output, f"the timeout is not named: {training.last_error()}")
        bench.finish_equal(run, ranks=2)


@scenario(
    "an exception in one of two ranks",
    "the job ends with the exception; the same command resumes",
    bound_s=_GRACE_S + _SLACK_S,
)
def raise_in_rank(bench: Bench, report: Report) -> None:
    run = bench.folder / "rank-raising"
    with report.fault("raise"):
        training = bench.start(run, ranks=2, fault=f"raise 1 {_AT_STEP}")
        training.wait_for_step(_AT_STEP - 1)
        expect(report.end(training) != 0, "the job ended with status 0")
        expect("as requested" in training.output, f"the exception is not shown: {training.last_error()}")
        bench.finish_equal(run, ranks=2)


@scenario(
    f"a NaN loss in step {_AT_STEP}, on the only and on one of two ranks",
    "one error, status 1, the batch is saved; the same command resumes",
    bound_s=_GRACE_S + _SLACK_S,
)
def nan(bench: Bench, report: Report) -> None:
    for ranks in (1, 2):
        run = bench.folder / f"not-a-number-{ranks}"
        with report.fault(f"NaN in the last of {ranks} ranks"):
            training = bench.start(run, ranks=ranks, fault=f"nan {ranks - 1} {_AT_STEP}")
            training.wait_for_step(_AT_STEP - 1)
            expect(report.end(training) == 1, f"not refused: {training.last_error()}")
            message = f"the loss or a gradient of step {_AT_STEP} is not finite"
            expect(message in training.output, f"another error: {training.last_error()}")
            batches = list(run.glob(f"non_finite_step_{_AT_STEP:08d}_rank_*"))
            expect(len(batches) == ranks, f"{len(batches)} of {ranks} batches are saved")
            bench.finish_equal(run, ranks=ranks)


def _signalled(bench: Bench, run: Path, number: signal.Signals, *settings: str) -> Training:
    """Start a run of two ranks and send a signal to the second one."""
    training = bench.start(run, *settings, ranks=2)
    training.wait_for_step(_AT_STEP)
    os.kill(training.rank(1), number)
    return training
