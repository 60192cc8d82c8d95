"""Scenarios: a fault, its injection, the required outcome, and the report."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ssl_zoo.registry import nearest
from ssl_zoo.testing.faults.leftovers import checkpoints, damage, difference
from ssl_zoo.testing.faults.processes import Command, NotSurvived, expect
from ssl_zoo.testing.faults.training import Training

_RUN_SECONDS = 300.0  # limit of a training without faults


class NotPossible(Exception):
    """The fault can't be injected on this machine; the message has the reason."""


@dataclass
class Bench:
    """The test bench of all scenarios: a folder, common settings and reference runs.

    Args:
        folder: a folder on the file system to be tested.
        settings: settings of all trainings, e.g. ``trainer.device=cuda``.
    """

    folder: Path
    settings: Sequence[str] = ()
    _references: dict[tuple[object, ...], Path] = field(default_factory=dict)
    _started: list[Training] = field(default_factory=list)

    def start(self, run: Path, *settings: str, **options: object) -> Training:
        self._started.append(Training(run, [*self.settings, *settings], **options))
        return self._started[-1]

    def close(self) -> None:
        """Kill the trainings that still run, after a failure or a Ctrl-C."""
        while self._started:
            training = self._started.pop()
            if training.is_alive:
                training.kill_all()

    def reference(self, *settings: str, ranks: int = 1) -> Path:
        """Return a finished run without faults, trained on the first call."""
        key = (ranks, *settings)
        if key not in self._references:
            run = self.folder / f"reference-{len(self._references)}"
            self.finish(run, *settings, ranks=ranks)
            self._references[key] = run
        return self._references[key]

    def finish(self, run: Path, *settings: str, **options: object) -> None:
        """Start or resume a run that must finish."""
        training = self.start(run, *settings, **options)
        status = training.end(_RUN_SECONDS)
        expect(status == 0, f"the run could not resume: status {status}, {training.last_error()}")

    def finish_equal(self, run: Path, *settings: str, reference: Path | None = None, ranks: int = 1) -> None:
        """Resume a run from valid checkpoints to its end, which must equal that of the reference bit for bit."""
        expect_valid_checkpoints(run)
        self.finish(run, *settings, ranks=ranks)
        different = difference(run, reference or self.reference(ranks=ranks))
        expect(different is None, f"the resumed run differs from the reference: {different}")


def expect_valid_checkpoints(run: Path) -> None:
    """Raise NotSurvived unless every published checkpoint matches its manifest."""
    for checkpoint in checkpoints(run):
        found = damage(checkpoint)
        expect(found is None, f"a published checkpoint is damaged: {found}")


@dataclass
class Report:
    """Outcome of the faults of one scenario."""

    scenario: "Scenario"
    injected: int = 0
    survived: int = 0
    slowest_s: float = 0.0  # from a fault to the end of the affected processes
    seconds: float = 0.0  # duration of the scenario
    problem: str | None = None
    impossible: str | None = None

    @property
    def has_passed(self) -> bool:
        return self.problem is None and self.injected == self.survived

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """Count a fault, as survived when the block ends without NotSurvived."""
        self.injected += 1
        try:
            yield
        except NotSurvived as error:
            raise NotSurvived(f"{what}: {error}") from error
        self.survived += 1

    def end(self, command: Command) -> int:
        """Wait for a process that must end within the scenario's bound after a fault; return its exit status."""
        started = time.monotonic()
        status = command.end(self.scenario.bound_s)
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        return status

    def expect_error(self, command: Command, *messages: str) -> None:
        """Expect a process to end like ``end``, with status 1 and one error that matches every pattern."""
        status, error = self.end(command), command.last_error()
        expected = status == 1 and error.startswith("error: ") and all(re.search(m, error) for m in messages)
        expect(expected, f"status {status}, another error: {error}")


Inject = Callable[[Bench, Report], None]


@dataclass(frozen=True)
class Scenario:
    """A kind of fault.

    Attributes:
        injection: description of the injection.
        ending: description of the required outcome.
        bound_s: seconds within which the processes must end after the fault.
    """

    name: str
    injection: str
    ending: str
    bound_s: float
    inject: Inject

    def run(self, bench: Bench) -> Report:
        report, started = Report(self), time.monotonic()
        try:
            self.inject(bench, report)
        except NotSurvived as error:
            report.problem = str(error)
        except NotPossible as error:
            report.impossible = str(error)
        finally:
            bench.close()
        report.seconds = time.monotonic() - started
        return report


SCENARIOS: dict[str, Scenario] = {}  # by name


def scenario(injection: str, ending: str, *, bound_s: float = 0.0) -> Callable[[Inject], Inject]:
    """Register a function as the scenario of its name; see ``Scenario``."""

    def register(inject: Inject) -> Inject:
        SCENARIOS[inject.__name__] = Scenario(inject.__name__, injection, ending, bound_s, inject)
        return inject

    return register


def choose(scenarios: Mapping[str, Scenario], names: Sequence[str]) -> list[Scenario]:
    """Select scenarios by name, or all if there are no names.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in scenarios:
            near = nearest(name, scenarios)
            hint = f" Did you mean {near!r}?" if near else ""
            raise ValueError(f"no fault is named {name!r}.{hint} Known: {', '.join(scenarios)}")
    return [scenarios[name] for name in names] if names else list(scenarios.values())
