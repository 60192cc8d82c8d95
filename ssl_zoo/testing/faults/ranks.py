"""One of two ranks: stopped politely, killed, halted, raising, or with a loss that is not a number."""

import os
import signal

from ssl_zoo.testing.faults.leftovers import checkpoints, metrics, step_of
from ssl_zoo.testing.faults.processes import expect
from ssl_zoo.testing.faults.scenario import Laboratory, Report, Scenario, expect_whole_checkpoints

_AT_STEP = 7
_TIMEOUT_MINUTES = 0.1
_GRACE_S = 30.0  # torchrun waits as long for ranks that do not end when they are told to, then kills them
_SLACK_S = 30.0  # for processes that take turns on one core


def terminated(laboratory: Laboratory, report: Report) -> None:
    run = laboratory.folder / "rank-terminated"
    with report.fault("SIGTERM"):
        training = laboratory.start(run, "trainer.checkpoint_every=1000", ranks=2)
        training.wait_for_step(_AT_STEP)
        os.kill(training.rank(1), signal.SIGTERM)
        status = report.end(training)
        expect(status == 0, f"status {status}: {training.last_words()}")
        saved, logged = [step_of(path) for path in checkpoints(run)], metrics(run)[-1]["step"]
        expect(saved == [logged], f"checkpoints {saved}, though step {logged} was the last")
        laboratory.finish_equal(run, "trainer.checkpoint_every=1000", ranks=2)


def killed(laboratory: Laboratory, report: Report) -> None:
    run = laboratory.folder / "rank-killed"
    with report.fault("SIGKILL"):
        training = laboratory.start(run, ranks=2)
        training.wait_for_step(_AT_STEP)
        os.kill(training.rank(1), signal.SIGKILL)
        expect(report.end(training) != 0, "the job ended with status 0")
        expect_whole_checkpoints(run)
        laboratory.finish_equal(run, ranks=2)


def halted(laboratory: Laboratory, report: Report) -> None:
    run = laboratory.folder / "rank-halted"
    with report.fault("SIGSTOP"):
        training = laboratory.start(run, f"trainer.timeout_minutes={_TIMEOUT_MINUTES}", ranks=2)
        training.wait_for_step(_AT_STEP)
        os.kill(training.rank(1), signal.SIGSTOP)
        expect(report.end(training) != 0, "the job ended with status 0")
        expect("trainer.timeout_minutes" in training.output, f"no word of the timeout: {training.last_words()}")
        expect_whole_checkpoints(run)
        laboratory.finish_equal(run, ranks=2)


def raising(laboratory: Laboratory, report: Report) -> None:
    run = laboratory.folder / "rank-raising"
    with report.fault("raise"):
        training = laboratory.start(run, ranks=2, fault=f"raise 1 {_AT_STEP}")
        training.wait_for_step(_AT_STEP - 1)
        expect(report.end(training) != 0, "the job ended with status 0")
        expect("as it was told to" in training.output, f"the reason is not told: {training.last_words()}")
        expect_whole_checkpoints(run)
        laboratory.finish_equal(run, ranks=2)


def not_a_number(laboratory: Laboratory, report: Report) -> None:
    for ranks in (1, 2):
        run = laboratory.folder / f"not-a-number-{ranks}"
        with report.fault(f"NaN in the last of {ranks} ranks"):
            training = laboratory.start(run, ranks=ranks, fault=f"nan {ranks - 1} {_AT_STEP}")
            training.wait_for_step(_AT_STEP - 1)
            expect(report.end(training) == 1, f"not refused: {training.last_words()}")
            told = f"the loss or a gradient of step {_AT_STEP} is not finite"
            expect(told in training.output, f"another reason: {training.last_words()}")
            batches = list(run.glob(f"non_finite_step_{_AT_STEP:08d}_rank_*"))
            expect(len(batches) == ranks, f"{len(batches)} of {ranks} batches are saved")
            expect_whole_checkpoints(run)
            laboratory.finish_equal(run, ranks=ranks)


SCENARIOS = (
    Scenario(
        "sigterm_rank",
        "SIGTERM to one of two ranks",
        "both save after the same step and end with status 0; the same command goes on",
        _SLACK_S,
        terminated,
    ),
    Scenario(
        "kill_rank",
        "SIGKILL of one of two ranks",
        "the job ends with an error; the same command goes on",
        _GRACE_S + _SLACK_S,
        killed,
    ),
    Scenario(
        "halt_rank",
        f"SIGSTOP of one of two ranks, trainer.timeout_minutes={_TIMEOUT_MINUTES}",
        "the other rank ends with an error that names the setting; the same command goes on",
        60 * _TIMEOUT_MINUTES + _GRACE_S + _SLACK_S,
        halted,
    ),
    Scenario(
        "raise_in_rank",
        "an exception in one of two ranks",
        "the job ends with the exception; the same command goes on",
        _GRACE_S + _SLACK_S,
        raising,
    ),
    Scenario(
        "nan",
        f"a loss that is not a number in step {_AT_STEP}, on the only and on one of two ranks",
        "one error, status 1, the batch is saved; the same command goes on",
        _GRACE_S + _SLACK_S,
        not_a_number,
    ),
)
