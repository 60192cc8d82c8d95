"""A fault that is not survived is reported and counted as such."""

from pathlib import Path

import pytest

from ssl_zoo.testing.faults.catalogue import SCENARIOS, line
from ssl_zoo.testing.faults.processes import Command, NotSurvived, expect
from ssl_zoo.testing.faults.scenario import Bench, NotPossible, Report, Scenario, choose


def outcome(tmp_path: Path, inject) -> Report:
    return Scenario("example", "how", "what", 1.0, inject).run(Bench(tmp_path))


def test_a_fault_counts_as_survived_only_when_its_block_ends_well(tmp_path: Path) -> None:
    def inject(bench: Bench, report: Report) -> None:
        for number in range(3):
            with report.fault(f"fault {number}"):
                expect(number < 2, "checkpoint lost")

    report = outcome(tmp_path, inject)
    assert (report.injected, report.survived, report.problem) == (3, 2, "fault 2: checkpoint lost")
    assert not report.has_passed and line(report).startswith("example: 2 of 3 faults survived")


def test_a_fault_that_is_not_possible_is_no_failure(tmp_path: Path) -> None:
    def inject(bench: Bench, report: Report) -> None:
        raise NotPossible("mounting is not permitted")

    report = outcome(tmp_path, inject)
    assert report.has_passed and line(report) == "example: not possible here: mounting is not permitted"


def test_scenarios_are_chosen_by_name() -> None:
    assert [scenario.name for scenario in choose(SCENARIOS, ["nan", "disk_full"])] == ["nan", "disk_full"]
    assert len(choose(SCENARIOS, [])) == len(SCENARIOS)
    with pytest.raises(ValueError, match="Did you mean 'disk_full'"):
        choose(SCENARIOS, ["disk_fill"])


@pytest.mark.slow
def test_a_process_that_exceeds_its_limit_is_killed(tmp_path: Path) -> None:
    failing = Command("timeit", ["-n1", "-r1", "raise OSError('broken')"], tmp_path / "log")
    assert failing.end(60) == 1 and failing.last_error() == "OSError: broken"
    sleeping = Command("timeit", ["-n1", "-r1", "import time; time.sleep(60)"], tmp_path / "log")
    with pytest.raises(NotSurvived, match="it still ran 1 s later"):
        sleeping.end(1)
    assert not sleeping.is_alive and sleeping.output == ""
