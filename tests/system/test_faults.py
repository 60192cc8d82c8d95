"""Every fault is survived: one test per scenario of tools/inject_faults.py."""

from pathlib import Path

import pytest

from ssl_zoo.testing.faults.catalogue import SCENARIOS
from ssl_zoo.testing.faults.scenario import Bench
from ssl_zoo.tools.inject_faults import main


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_is_survived(bench: Bench, name: str) -> None:
    report = SCENARIOS[name].run(bench)
    if report.impossible:
        pytest.skip(report.impossible)
    assert report.problem is None
    assert report.injected == report.survived > 0


@pytest.mark.slow
def test_the_tool_prints_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "table.md"
    assert main(["--only", "half_written", "--folder", str(tmp_path / "disk"), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == out.read_text() and "half_written: 2 of 2 faults survived" in printed.err
    assert (
        "| `half_written` | a step folder without manifest" in printed.out and "2 of 2 faults survived" in printed.out
    )
    assert list((tmp_path / "disk").iterdir()) == []


def test_an_unknown_fault_is_one_clear_error(capsys: pytest.CaptureFixture) -> None:
    assert main(["--only", "kill_in_safe"]) == 1
    assert capsys.readouterr().err.startswith("error: no fault is named 'kill_in_safe'. Did you mean 'kill_in_save'?")
