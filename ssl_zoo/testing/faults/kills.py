"""SIGKILL of a whole job: at random moments, and in the middle of a save."""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from ssl_zoo.testing.faults.leftovers import checkpoints, step_of, unfinished
from ssl_zoo.testing.faults.processes import expect
from ssl_zoo.testing.faults.scenario import Laboratory, Report, Scenario, expect_whole_checkpoints
from ssl_zoo.testing.faults.training import NUM_STEPS, Training

_NUM_IN_SAVES, _NUM_ANYWHERE, _NUM_JOBS = 20, 14, 3
_SAVE_S, _START_UP_S, _STEPS_S = 0.01, 2.0, 0.3  # spans within which a moment is drawn


@dataclass
class _Victim:
    """A run that is killed again and again; when it comes to its end nevertheless, another one takes its place."""

    laboratory: Laboratory
    name: str
    moments: random.Random
    ranks: int = 1
    newest: int = 0  # step of the newest checkpoint
    number: int = field(default=0, init=False)

    @property
    def run(self) -> Path:
        return self.laboratory.folder / f"{self.name}-{self.number}"

    def start(self) -> Training:
        if self.newest == NUM_STEPS:
            self.check_end()
            self.number, self.newest = self.number + 1, 0
        return self.laboratory.start(self.run, ranks=self.ranks)

    def kill(self, training: Training) -> None:
        training.kill_all()
        expect_whole_checkpoints(self.run)
        newest = max([0, *map(step_of, checkpoints(self.run))])
        expect(newest >= self.newest, f"checkpoint {self.newest} is lost, the newest is {newest}")
        self.newest = newest

    def check_end(self) -> None:
        self.laboratory.finish_equal(self.run, ranks=self.ranks)

    def wait_in_save(self, training: Training) -> None:
        """Until a moment within one of the next saves; the second lets the run advance between two kills."""
        step = min(self.newest + self.moments.choice([1, 2]), NUM_STEPS)
        training.wait_for(lambda: _has_begun_save(self.run, step), f"the save of step {step}")
        time.sleep(self.moments.uniform(0.0, _SAVE_S))

    def wait_in_steps(self, training: Training) -> None:
        training.wait_for_step(min(self.newest + 1, NUM_STEPS))
        time.sleep(self.moments.uniform(0.0, _STEPS_S))


def _has_begun_save(run: Path, step: int) -> bool:
    started = [*unfinished(run), *checkpoints(run)]
    return any(step_of(path) >= step for path in started)


def in_saves(laboratory: Laboratory, report: Report) -> None:
    victim = _Victim(laboratory, "killed-in-saves", random.Random("saves"))
    for attempt in range(6 * _NUM_IN_SAVES):
        if report.injected == _NUM_IN_SAVES:
            break
        training = victim.start()
        victim.wait_in_save(training)
        victim.kill(training)
        if unfinished(victim.run):  # else the save had just ended
            with report.fault(f"kill {attempt + 1}"):
                expect_whole_checkpoints(victim.run)
    expect(report.injected == _NUM_IN_SAVES, f"of {attempt + 1} kills only {report.injected} met a save")
    victim.check_end()


def anywhere(laboratory: Laboratory, report: Report) -> None:
    victim = _Victim(laboratory, "killed-anywhere", random.Random("anywhere"))
    for number in range(_NUM_ANYWHERE):
        with report.fault(f"kill {number + 1}"):
            training = victim.start()
            if number % 2:
                victim.wait_in_steps(training)
            else:
                time.sleep(victim.moments.uniform(0.0, _START_UP_S))
            victim.kill(training)
    victim.check_end()


def whole_job(laboratory: Laboratory, report: Report) -> None:
    victim = _Victim(laboratory, "killed-jobs", random.Random("jobs"), ranks=2)
    for number in range(_NUM_JOBS):
        with report.fault(f"kill {number + 1}"):
            training = victim.start()
            (victim.wait_in_save if number % 2 else victim.wait_in_steps)(training)
            victim.kill(training)
    victim.check_end()


SCENARIOS = (
    Scenario(
        "kill_in_save",
        "SIGKILL while the folder of a checkpoint is being filled",
        "the newest published checkpoint is whole, the same command goes on",
        0.0,
        in_saves,
    ),
    Scenario(
        "kill_anywhere",
        "SIGKILL at a random moment of start-up, step or save",
        "the newest published checkpoint is whole, the same command goes on",
        0.0,
        anywhere,
    ),
    Scenario(
        "kill_job",
        "SIGKILL of torchrun and both ranks at once",
        "the newest published checkpoint is whole, the same command goes on",
        0.0,
        whole_job,
    ),
)
