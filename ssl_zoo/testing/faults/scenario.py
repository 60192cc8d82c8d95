"""A scenario: a fault, how it is injected, how it must end, and what came of it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ssl_zoo.registry import nearest
from ssl_zoo.testing.faults.leftovers import checkpoints, damage, difference
from ssl_zoo.testing.faults.processes import Command, NotSurvived, expect
from ssl_zoo.testing.faults.training import Training

_RUN_SECONDS = 300.0  # for an undisturbed training to end


class NotPossible(Exception):
    """This machine does not allow the fault to be injected; the message says why."""


@dataclass
class Laboratory:
    """Where scenarios take place.

    Args:
        folder: on the file system to be tested.
        settings: for all trainings, e.g. ``trainer.device=cuda``.
    """

    folder: Path
    settings: Sequence[str] = ()
    _references: dict[tuple[object, ...], Path] = field(default_factory=dict)
    _started: list[Training] = field(default_factory=list)

    def start(self, run: Path, *settings: str, **options: object) -> Training:
        self._started.append(Training(run, [*self.settings, *settings], **options))
        return self._started[-1]

    def close(self) -> None:
        """End the trainings that still run, after a failure or a Ctrl-C."""
        while self._started:
            training = self._started.pop()
            if training.is_alive:
                training.kill_all()

    def reference(self, *settings: str, ranks: int = 1) -> Path:
        """A finished, undisturbed run, trained when it is first asked for."""
        key = (ranks, *settings)
        if key not in self._references:
            run = self.folder / f"undisturbed-{len(self._references)}"
            self.finish(run, *settings, ranks=ranks)
            self._references[key] = run
        return self._references[key]

    def finish(self, run: Path, *settings: str, **options: object) -> None:
        """Start or continue a run that must come to its end."""
        training = self.start(run, *settings, **options)
        status = training.end(_RUN_SECONDS)
        expect(status == 0, f"the run could not go on: status {status}, {training.last_words()}")

    def finish_equal(self, run: Path, *settings: str, reference: Path | None = None, ranks: int = 1) -> None:
        """Continue a run to its end, which must be that of the undisturbed one, bit for bit."""
        self.finish(run, *settings, ranks=ranks)
        different = difference(run, reference or self.reference(ranks=ranks))
        expect(different is None, f"the continued run is not the undisturbed one: {different}")


def expect_whole_checkpoints(run: Path) -> None:
    """Every published checkpoint must be what its manifest says."""
    for checkpoint in checkpoints(run):
        found = damage(checkpoint)
        expect(found is None, f"a published checkpoint is damaged: {found}")


@dataclass
class Report:
    """What came of the faults of one scenario."""

    scenario: "Scenario"
    injected: int = 0
    survived: int = 0
    slowest_s: float = 0.0  # from a fault to the end of the processes that it hit
    seconds: float = 0.0  # all in all
    problem: str | None = None
    impossible: str | None = None

    @property
    def is_kept(self) -> bool:
        return self.problem is None and self.injected == self.survived

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """Count a fault; it counts as survived when the block ends without NotSurvived."""
        self.injected += 1
        try:
            yield
        except NotSurvived as error:
            raise NotSurvived(f"{what}: {error}") from error
        self.survived += 1

    def end(self, command: Command) -> int:
        """The exit status of a process that a fault has just hit, which must end within the scenario's bound."""
        started = time.monotonic()
        status = command.end(self.scenario.bound_s)
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        return status


@dataclass(frozen=True)
class Scenario:
    """A kind of fault.

    Attributes:
        injection: how it is done, in words.
        ending: what must come of it, in words.
        bound_s: seconds after the fault by which the processes must have ended.
    """

    name: str
    injection: str
    ending: str
    bound_s: float
    inject: Callable[[Laboratory, Report], None]

    def run(self, laboratory: Laboratory) -> Report:
        report, started = Report(self), time.monotonic()
        try:
            self.inject(laboratory, report)
        except NotSurvived as error:
            report.problem = str(error)
        except NotPossible as error:
            report.impossible = str(error)
        finally:
            laboratory.close()
        report.seconds = time.monotonic() - started
        return report


def choose(scenarios: Mapping[str, Scenario], names: Sequence[str]) -> list[Scenario]:
    """Scenarios by name, all without names.

    Raises:
        ValueError: one is unknown.
    """
    for name in names:
        if name not in scenarios:
            near = nearest(name, scenarios)
            hint = f" Did you mean {near!r}?" if near else ""
            raise ValueError(f"no fault is named {name!r}.{hint} Known: {', '.join(scenarios)}")
    return [scenarios[name] for name in names] if names else list(scenarios.values())
