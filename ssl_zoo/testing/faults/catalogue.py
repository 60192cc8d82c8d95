"""All scenarios by name, and the table of their outcomes."""

import json
from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.testing.faults import kills, ranks, shards, storage, workers  # noqa: F401 - they register scenarios
from ssl_zoo.testing.faults.scenario import SCENARIOS, Report

__all__ = ["SCENARIOS", "line", "table"]


def line(report: Report) -> str:
    """Format a scenario's outcome as one line."""
    if report.impossible:
        return f"{report.scenario.name}: not possible here: {report.impossible}"
    outcome = (
        f"{report.scenario.name}: {report.survived} of {report.injected} faults survived in {report.seconds:.0f} s"
    )
    return f"{outcome}; {report.problem}" if report.problem else outcome


def table(reports: Sequence[Report], reference: Path, command: str) -> str:
    """Format outcomes as Markdown, with the command, the machine and the commit.

    Args:
        reference: a run on this machine, whose ``environment.json`` has machine and commit.
    """
    environment = json.loads((reference / "environment.json").read_text())
    commit = (environment["commit"] or "unknown")[:12] + (" with changes" if environment["dirty"] else "")
    head = ("name", "fault", "required outcome", "bound", "slowest", "injected", "survived")
    rows = [head, ("---",) * len(head), *map(_row, reports)]
    injected, survived = sum(report.injected for report in reports), sum(report.survived for report in reports)
    minutes = sum(report.seconds for report in reports) / 60
    return (
        "".join(f"| {' | '.join(row)} |\n" for row in rows)
        + f"\n{survived} of {injected} faults survived, in {minutes:.1f} minutes. `{command}`, on "
        + f"{environment['device']}, {environment['platform']}, commit {commit}.\n"
    )


def _row(report: Report) -> tuple[str, ...]:
    scenario = report.scenario
    bound = f"{scenario.bound_s:.0f} s" if scenario.bound_s else ""
    slowest = f"{report.slowest_s:.1f} s" if scenario.bound_s and report.injected else ""
    if report.impossible:
        survived = f"not possible here: {report.impossible}"
    else:
        survived = str(report.survived) + (f": {report.problem}" if report.problem else "")
    text = (scenario.injection, scenario.ending, bound, slowest, str(report.injected), survived)
    return (f"`{scenario.name}`", *(cell.replace("|", "\\|") for cell in text))
