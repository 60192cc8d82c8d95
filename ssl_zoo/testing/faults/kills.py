"""SIGKILL of all processes of a job: at random moments, and during a save."""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from ssl_zoo.testing.faults.leftovers import checkpoints, step_of, unfinished
from ssl_zoo.testing.faults.processes import expect
from ssl_zoo.testing.faults.scenario import Bench, Report, expect_valid_checkpoints, scenario
from ssl_zoo.testing.faults.training import NUM_STEPS, Training

_NUM_IN_SAVES, _NUM_ANYWHERE, _NUM_JOBS = 20, 14, 3
_SAVE_S, _START_UP_S, _STEPS_S = 0.01, 2.0, 0.3  # intervals in which a random moment is sampled


@dataclass
class _Victim:
    """A run that is killed repeatedly; once it has finished, a new run takes its place."""

    bench: Bench
    name: str
    moments: random.Random
    ranks: int = 1
    newest: int = 0  # step of the newest checkpoint
    number: int = field(default=0, init=False)

    @property
    def run(self) -> Path:
        return self.bench.folder / f"{self.name}-{self.number}"

    def start(self) -> Training:
        if self.newest == NUM_STEPS:
            self.check_end()
            self.number, self.newest = self.number + 1, 0
        return self.bench.start(self.run, ranks=self.ranks)

    def kill(self, training: Training) -> None:
        training.kill_all()
        expect_valid_checkpoints(self.run)
        newest = max([0, *map(step_of, checkpoints(self.run))])
        expect(newest >= self.newest, f"checkpoint {self.newest} is lost, the newest is {newest}")
        self.newest = newest

    def check_end(self) -> None:
        self.bench.finish_equal(self.run, ranks=self.ranks)

    def wait_in_save(self, training: Training) -> None:
        """Wait until a moment within one of the next two saves; the second lets the run advance between two kills."""
        step = min(self.newest + self.moments.choice([1, 2]), NUM_STEPS)
        training.wait_for(lambda: _has_begun_save(self.run, step), f"the save of step {step}")
        time.sleep(self.moments.uniform(0.0, _SAVE_S))

    def wait_in_steps(self, training: Training) -> None:
        training.wait_for_step(min(self.newest + 1, NUM_STEPS))
        time.sleep(self.moments.uniform(0.0, _STEPS_S))


def _has_begun_save(run: Path, step: int) -> bool:
    return any(step_of(path) >= step for path in [*unfinished(run), *checkpoints(run)])


@scenario(
    "SIGKILL while a checkpoint is being written", "the newest published checkpoint is valid, the same command resumes"
)
def kill_in_save(bench: Bench, report: Report) -> None:
    victim = _Victim(bench, "killed-in-saves", random.Random("saves"))
    for attempt in range(6 * _NUM_IN_SAVES):
        if report.injected == _NUM_IN_SAVES:
            break
        training = victim.start()
        victim.wait_in_save(training)
        victim.kill(training)
        if unfinished(victim.run):  # otherwise the save had just ended
            with report.fault(f"kill {attempt + 1}"):
                expect_valid_checkpoints(victim.run)
    expect(report.injected == _NUM_IN_SAVES, f"only {report.injected} of {attempt + 1} kills hit a save")
    victim.check_end()


@scenario(
    "SIGKILL at a random moment of start-up, step or save",
    "the newest published checkpoint is valid, the same command resumes",
)
def kill_anywhere(bench: Bench, report: Report) -> None:
    victim = _Victim(bench, "killed-anywhere", random.Random("anywhere"))
    for number in range(_NUM_ANYWHERE):
        with report.fault(f"kill {number + 1}"):
            training = victim.start()
            if number % 2:
                victim.wait_in_steps(training)
            else:
                time.sleep(victim.moments.uniform(0.0, _START_UP_S))
            victim.kill(training)
    victim.check_end()


@scenario("SIGKILL of torchrun and both ranks", "the newest published checkpoint is valid, the same command resumes")
def kill_job(bench: Bench, report: Report) -> None:
    victim = _Victim(bench, "killed-jobs", random.Random("jobs"), ranks=2)
    for number in range(_NUM_JOBS):
        with report.fault(f"kill {number + 1}"):
            training = victim.start()
            (victim.wait_in_save if number % 2 else victim.wait_in_steps)(training)
            victim.kill(training)
    victim.check_end()
